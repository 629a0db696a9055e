# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""`tamiseg report`: every number comes from a result file, the docs are not stale, and the page stands alone."""

import csv
import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from experiments.matrix import read_matrix, write_summary
from processing import comparison, metrics
from processing.ablations import ablations_page, load_summaries
from processing.command_line import main
from processing.evaluation import COLUMNS
from processing.report import (
    MARKS,
    QUEUE_MARK,
    curve_pictures,
    load_leaks,
    load_recipes,
    load_results,
    open_recipes,
    queue,
    results_page,
)
from train_hf import Arguments, parse_arguments


ROOT = Path(__file__).parent.parent


def scores(dice, **more):
    share = {name: dice for name in ("dice_per_image", "dice_global", "iou_per_image", "iou_global")}
    return {
        **share, "precision": 0.75, "recall": 0.5, "num_images": 12, "num_empty_targets": 0,
        "empty_target_false_positive_rate": None, **more,
    }  # fmt: skip


def training_result(**changes):
    """As train_hf.py writes it."""
    return {
        "command": "python train_hf.py --stage finetune --dataset ../data/qata_cov19",
        "arguments": {"stage": "finetune", "dataset": "../data/qata_cov19"},
        "split": "validation",
        "scores": {
            arm: scores(dice) for arm, dice in (("full_text", 0.8123), ("no_text", 0.7), ("shuffled_text", 0.6))
        },
        "data": {"train": "a" * 64, "validation": "b" * 64},
        "rows": {"validation": {"rows": 12, "patients": 5, "rows_without_patient": 0, "sentences": 3}},
        "weights_sha256": "c" * 64,
        "seed": 3,
        "steps": 10,
        "versions": {"torch": "2.13.0"},
        "hardware": {"machine": "x86_64", "threads": 2, "device": "cpu"},
        **changes,
    }


def evaluation_result(**changes):
    """As tamiseg evaluate writes it, with intervals, outlines and calibration."""
    bins = {"pixels": [90, *[0] * 18, 10], "probabilities": [9.0, *[0] * 18, 9.5], "hits": [4, *[0] * 18, 9]}
    more = {
        "dice_per_image_interval": [0.85, 0.92], "hd95": 3.456, "hd95_undefined": 1, "surface_dice": 0.66,
        "ece": 0.055, "reliability": bins,
    }  # fmt: skip
    fields = {
        "command": "tamiseg evaluate best --dataset kvasir_seg",
        "arguments": {"dataset": "kvasir_seg"},
        "split": "test",
        "scores": {"full_text": scores(0.9, **more), "typo": scores(0.88, **more)},
        "surface": {"tolerance": 2.0, "spacing": 0.5, "unit": "mm"},
    }
    return training_result(**{**fields, **changes})


@pytest.fixture
def folder(tmp_path):
    """A checkout's experiments folder, with recipes and no result."""
    folder = tmp_path / "experiments"
    (folder / "results").mkdir(parents=True)
    for path in (ROOT / "experiments").glob("*.*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def report(folder) -> Path:
    output = folder.parent / "docs"
    assert main(["report", "--results", str(folder / "results"), "--output", str(output)]) == 0
    return output


def write(folder, **results):
    for name, result in results.items():
        (folder / "results" / f"{name.replace('_seed', '-seed')}.json").write_text(json.dumps(result))


def test_docs_are_those_of_the_results():
    results = load_results(ROOT / "experiments" / "results")
    recipes = load_recipes(ROOT / "experiments")
    summaries = load_summaries(ROOT / "experiments" / "results")
    leaks = load_leaks(ROOT / "experiments" / "results")
    stale = "`tamiseg report` writes it anew"
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert page == results_page(results, recipes, summaries, leaks), stale
    readme = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    assert readme.split(QUEUE_MARK + "\n\n")[1] == queue(open_recipes(results, recipes, summaries)), stale
    assert (ROOT / "docs" / "ablations.md").read_text(encoding="utf-8") == ablations_page(summaries), stale
    for name, drawn in curve_pictures(summaries).items():
        # Where points lie, not how letters look, which differs between versions of matplotlib.
        there = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert outlines(there) == pytest.approx(outlines(drawn), abs=0.01), stale
    for name, summary in summaries.items():
        assert summary["matrix"] == f"experiments/{name}.yaml"
        told = {group: {row["variant"] for row in table["rows"]} for group, table in summary["groups"].items()}
        for variant in read_matrix(ROOT / summary["matrix"]):
            missing = f"{variant.name}, seed {variant.seed}" in summary["groups"][variant.group]["missing"]
            assert missing or variant.name in told[variant.group], stale


def test_the_page_names_the_folder_that_it_was_written_from(tmp_path):
    assert "from the files in `runs/mine/`; change those" in results_page({}, {}, {}, {}, Path("runs/mine"))
    assert f"from the files in `{tmp_path.name}/`; change those" in results_page({}, {}, {}, {}, tmp_path)


def outlines(picture: str) -> list[float]:
    """The numbers of the lines and areas of an SVG that curves are drawn by."""
    parts = re.findall(r'<g id="(?:line2d|FillBetweenPolyCollection|PolyCollection)_\d+">.*?</g>', picture, re.DOTALL)
    assert parts
    return [float(value) for part in parts for value in re.findall(r"-?\d+\.\d+", part)]


def test_summaries_are_those_of_the_runs(tmp_path, monkeypatch):
    # Without the intervals over patients, which take their time.
    monkeypatch.setattr(comparison, "RESAMPLES", 2)
    resample = metrics.resample
    monkeypatch.setattr(metrics, "resample", lambda cases, terms, seed: resample(cases, terms, seed, 2))
    for path in (ROOT / "experiments" / "results").glob("*/summary.json"):
        results = tmp_path / path.parent.name
        shutil.copytree(path.parent, results)
        write_summary(ROOT / "experiments" / f"{path.parent.name}.yaml", results)
        there, again = (
            {
                way: leaf
                for way, leaf in flat(json.loads(file.read_text())["groups"]).items()
                if "/interval/" not in way
            }
            for file in (path, results / "summary.json")
        )
        assert again == pytest.approx(there, abs=1e-6), (
            "`python -m experiments.matrix FILE --summarise` writes it anew"
        )


def flat(tree, name="") -> dict[str, float]:
    """The numbers of nested dicts and lists, by the way to them; other leaves by how they read."""
    if isinstance(tree, dict | list):
        pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {way: leaf for key, some in pairs for way, leaf in flat(some, f"{name}/{key}").items()}
    return {name: tree} if isinstance(tree, float | int) else {f"{name}: {tree}": 0}


def test_the_front_page_says_what_the_files_say():
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    groups = load_summaries(ROOT / "experiments" / "results")["matrix_qata_cpu"]["groups"]
    rows = {group: {row["variant"]: row for row in table["rows"]} for group, table in groups.items()}
    sentence = -100 * rows["parts"]["no_text"]["compared"]["main"]["difference"]
    decoder = -100 * rows["baselines"]["encoder_unet"]["compared"]["main"]["difference"]
    assert (
        f"are worth {sentence:.1f} points of Dice" in readme and f"our decoder {decoder:.1f} over a U-Net's" in readme
    )
    shipped = json.loads((ROOT / "experiments" / "results" / "tamiseg_mobile_qata.json").read_text(encoding="utf-8"))
    for arm in ("full_text", "no_text"):
        dices = [100 * shipped["scores"][arm][name] for name in ("dice_per_image", "dice_global")]
        assert all(f"{dice:.1f}" in readme for dice in dices), arm


def test_every_result_has_its_receipt():
    files = sorted((ROOT / "experiments" / "results").glob("*.json"))
    assert files
    for path in files:
        check_receipt(json.loads(path.read_text(encoding="utf-8")))


def check_receipt(result):
    """That a result tells what it is of, and where it was made, without folders of that place."""
    assert result["command"].split()[0] in ("tamiseg", "python") and isinstance(result["seed"], int)
    assert all(len(digest) == 64 for digest in (result["weights_sha256"], *result["data"].values()))
    assert {"torch", "transformers", "python"} <= result["versions"].keys()
    assert {"machine", "threads", "device"} <= result["hardware"].keys()
    assert "/tmp" not in json.dumps(result) and result["arguments"]


def test_every_run_of_a_matrix_has_its_receipt():
    for path in (ROOT / "experiments" / "results").glob("*/*-seed*.json"):
        run = json.loads(path.read_text(encoding="utf-8"))
        check_receipt(run)
        assert run["training"]["command"] and run["training"]["data"]
        assert run["training"]["arguments"]["seed"] == run["seed"]
        assert path.name == f"{run['group']}-{run['variant']}-seed{run['seed']}.json"


def test_a_recipe_says_what_it_takes_and_its_commands_are_understood():
    recipes = load_recipes(ROOT / "experiments")
    assert {"quickstart", "qata_mobile_160", "qata_resnet50_256", "kvasir_resnet50_256"} <= recipes.keys()
    for name, recipe in recipes.items():
        stages = []
        for command in recipe["commands"]:
            words = shlex.split(command.replace("$SEED", "1"))
            if words[:2] == ["python", "train_hf.py"]:
                assert words[words.index("--config") + 1] == f"experiments/{name}.yaml"
                words[words.index("--config") + 1] = str(ROOT / "experiments" / f"{name}.yaml")
                arguments = parse_arguments(words[2:])
                assert isinstance(arguments, Arguments) and arguments.output_dir.startswith("runs/")
                stages.append(arguments.stage)
            if words[:3] == ["python", "-m", "experiments.matrix"]:
                assert words[3] == f"experiments/{name}.yaml" and len(read_matrix(ROOT / words[3])) > 100
        if not name.startswith("matrix_"):
            assert stages == ["pretrain", "finetune"]
            assert any(command.startswith("tamiseg evaluate") for command in recipe["commands"])


def test_no_result_yet(folder, capsys):
    output = folder.parent / "docs"
    for name, sentence in (("results", "holds no result"), ("resluts", "there is no folder")):
        assert main(["report", "--results", str(folder / name), "--output", str(output)]) == 2
        assert sentence in capsys.readouterr().err and not output.exists()  # no page is replaced by an empty one
    page = results_page({}, load_recipes(folder), {}, {})  # as where a matrix alone was run
    assert "There is no result file yet" in page and page.count("| open |") == len(load_recipes(folder))
    for _, marks in MARKS.values():
        for mark in marks:
            assert f"| {mark.score} | {mark.convention} |" in page


def test_numbers_commands_and_receipts(folder):
    write(folder, qata_mobile_160=training_result(), kvasir=evaluation_result())
    shutil.copytree(ROOT / "experiments" / "results" / "leaks", folder / "results" / "leaks")
    output = report(folder)
    page = (output / "results.md").read_text()
    assert "## qata_cov19" in page and "### qata_mobile_160" in page and "## kvasir_seg" in page
    parts = ["## kvasir_seg", "| near picture | 0 |", "## qata_cov19", "| near picture | 3 (", "### qata_mobile_160"]
    assert [page.index(part) for part in parts] == sorted(page.index(part) for part in parts)
    assert "| its own sentence | 81.23 | 81.23 | 81.23 | 81.23 | 75.00 | 50.00 | 12 |" in page  # no empty columns
    assert "so it flatters them. Intervals were not computed." in page
    assert "| letters exchanged | 88.00 [85.00, 92.00] | 88.00 |" in page
    assert "HD95 (mm)" in page and "| 3.46 | 66.00 | 5.50 |" in page and "within 2.0 mm" in page
    for result in (training_result(), evaluation_result()):
        assert f"```bash\n{result['command']}\n```" in page
    assert "seed 3" in page and "`cccccccccccccccc`" in page and "torch 2.13.0" in page and "threads 2" in page
    # Published marks stand in the section of their data set, the rest in one of their own.
    qata = page.split("## qata_cov19")[1].split("\n## ")[0]
    assert "| QaTa-COV19 | 84.8 |" in qata and "Kvasir" not in qata
    assert "| MosMedData+ |" in page.split("## Published, without")[1]
    # What has been run is open no more.
    readme = (folder / "README.md").read_text()
    assert "### qata_mobile_160" not in readme and "### qata_resnet50_256" in readme
    assert "`experiments/qata_mobile_160.yaml`" in page and page.count("| yes |") == 1
    before = {path: path.read_bytes() for path in (*output.iterdir(), folder / "README.md")}
    report(folder)
    assert {path: path.read_bytes() for path in before} == before


def test_seeds_are_summed_up(folder):
    some = {
        f"qata_resnet50_256_seed{i}": training_result(scores={"full_text": scores(0.8 + i / 100)}) for i in range(3)
    }
    write(folder, **some)
    page = (report(folder) / "results.md").read_text()
    assert "| qata_resnet50_256 | 3 | its own sentence | 81.00 (80.00 to 82.00) | 81.00 (80.00 to 82.00) |" in page
    assert (
        "### qata_resnet50_256-seed2" in page and "### qata_resnet50_256\n" not in (folder / "README.md").read_text()
    )


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.links = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag == "img":
            self.images.append(attributes)
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_stands_alone(folder):
    result = evaluation_result(command='tamiseg evaluate "<b>&x</b>"')
    write(folder, qata=training_result(), kvasir=result)
    text = (report(folder) / "report.html").read_text()
    page = Page(text)
    assert page.open == [] and len(page.images) == 3  # Dice of each, calibration of one
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert all(image["alt"] for image in page.images)
    assert "&lt;b&gt;&amp;x&lt;/b&gt;" in text and "<b>" not in text
    assert not re.search(r"https?://", text) and "<script" not in text


def test_page_of_ones_own_evaluation_shows_its_cases(folder):
    write(folder, result=evaluation_result())
    results = folder / "results"
    with open(results / "cases.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for i, dice in enumerate((0.9, 0.1)):
            for arm in ("full_text", "typo"):
                row = {"name": f"case-{i}", "arm": arm, "dice": dice, "tp": 5, "fn": 2, "surface_dice": 0.5}
                writer.writerow(row | {"sentence": "<i>the lesion</i>"})
    (results / "worst.png").write_bytes(b"drawn")
    text = (report(folder) / "report.html").read_text()
    page = Page(text)
    assert page.open == [] and len(page.images) == 5  # Dice, calibration, over the area, in pairs, and the drawn one
    assert "Dice: letters exchanged" in text and "under several sentences" in text
    assert text.index("case-1") < text.index("case-0") and text.count("case-1") == 1
    assert "&lt;i&gt;the lesion" in text and "2 cases with its own sentence" in text


def test_findings_and_pairs(folder):
    interval = {"dice_per_image_interval": [0.7, 0.9]}
    group = {"cases": 7, "scores": {"full_text": scores(0.8, **interval), "typo": scores(0.6, **interval)}}
    difference = {"mean": -0.2, "interval": [-0.3, -0.1], "cases": 7}
    result = evaluation_result(
        findings={"side": {"left": group}}, paired={"typo": {"difference": difference, "worse": 0.5, "better": 0.25}}
    )
    write(folder, kvasir=result)
    output = report(folder)
    page = (output / "results.md").read_text()
    assert "| finding |  | cases | its own sentence | letters exchanged |" in page
    assert "| side | left | 7 | 80.00 [70.00, 90.00] | 60.00 |" in page
    assert "| letters exchanged | -20.00 [-30.00, -10.00] | 50.00 | 25.00 |" in page
    html = (output / "report.html").read_text()
    assert "Dice of each finding" in html and "-20.00 [-30.00, -10.00]" in html


def analysis(**entry):
    """As tamiseg analyse-prompts and analyse-teacher write it."""
    result = evaluation_result(split="validation", arguments={"dataset": "data/qata_cov19"}, **entry)
    for name in ("scores", "surface"):
        del result[name]
    return result


def test_other_kinds_of_results(folder):
    some = {"mean": 0.5, "interval": [0.25, 0.75], "cases": 4}
    ranked = {name: some for name in ("highest", "other", "lowest", "difference")}
    word = {"word": "left", "rows": 6, "attention": 0.125, "change": 0.3, "loss": 0.1}
    found = {
        "rows": 4,
        "side": {name: some for name in ("before", "after", "moved", "emptied")},
        "agreement": {"truth": {"own": {"side": some}}, "no_text": {"own": {"side": some, "zones": some}}},
        "words": {
            "change": ranked, "loss": ranked, "rank_correlation": some, "on_words": some, "by_word": [word]
        },
    }  # fmt: skip
    probed = {"dice_per_image": 0.4, "dice_per_image_interval": [0.3, 0.5], "dice_global": 0.6}
    both = {"here": 0.25, "elsewhere": 0.5}
    features = [
        {"name": "teacher", "channels": 9, "probe": probed, "separation": {"auc": 0.9, "fisher": None}},
        {"name": "best, stage 1", "channels": 4, "probe": probed, "cka": both, "dimension": both},
    ]
    taught = {"grid": [7, 7], "elsewhere": "9 synthetic pictures", "features": features}
    write(folder, prompts_seed0=analysis(faithfulness=found), prompts_seed1=analysis(faithfulness=found),
          teacher=analysis(transfer=taught))  # fmt: skip
    output = report(folder)
    page = (output / "results.md").read_text()
    assert "| none: the truth | the row's own sentence | 50.00 [25.00, 75.00] | - |" in page
    assert (
        "| another word, at random | 50.00 [25.00, 75.00] |" in page and "| left | 6 | 12.50 | 30.00 | 10.00 |" in page
    )
    assert "| teacher | 9 | 40.00 [30.00, 50.00] | 60.00 | 0.900 | - | - | - | - | - |" in page
    assert "| best, stage 1 | 4 | 40.00 [30.00, 50.00] | 60.00 | - | - | 0.250 | 0.500 | 0.2 | 0.5 |" in page
    assert page.count("so it flatters them") == 2 and "Intervals were not computed" not in page
    html = (output / "report.html").read_text()
    assert Page(html).open == [] and Page(html).images == [] and "40.00 [30.00, 50.00]" in html


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("results/a.json", "{", "is not JSON"),
        ("results/a.json", "[1]", "is no result"),
        ("results/a.json", '{"scores": {}}', "is no result"),
        (
            "results/a.json",
            '{"scores": [1], "command": "", "split": "test", "arguments": {}}',
            "is not as train_hf.py",
        ),
        ("a.yaml", yaml.safe_dump({"recipe": {"data": "x", "commands": []}}), "does not say its cost, expected"),
        ("a.yaml", "recipe: [", "a.yaml' is no YAML"),
        ("a.yaml", "recipe: soon", "a.yaml' is no mapping"),
    ],
)
def test_bad_files_get_one_sentence(folder, capsys, name, content, sentence):
    (folder / name).write_text(content)
    assert main(["report", "--results", str(folder / "results"), "--output", str(folder.parent / "docs")]) == 2
    assert sentence in capsys.readouterr().err
