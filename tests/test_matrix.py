# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""The matrix of experiments: its file says what is meant, a small one runs to its page, and baselines learn."""

import json
import shlex
import shutil
import sys
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
import yaml
from accelerate.state import AcceleratorState
from transformers import BertConfig, BertModel, DINOv3ViTConfig, DINOv3ViTModel, ResNetConfig, ResNetModel

import train_hf
from experiments import matrix
from experiments.baselines import CLASSES
from modeling_tamiseg import TAMISegConfig
from processing import ablations, command_line, comparison
from processing.ablations import ablations_page, load_summaries

from .test_data import write_image_folder
from .test_processing import make_tokenizer


ROOT = Path(__file__).parent.parent
TINY = """
recipe: {data: the built-in sample, cost: seconds, expected: nothing, commands: []}
seeds: [0]
fields: {dataset: builtin, image_size: 32, max_train_samples: 6, max_eval_samples: 3, batch_size: 3, cpu: true,
         prompt_dropout: 0.2}
starts:
  tiny: {vision_model: tiny, epochs: 1}
groups:
  parts:
    about: A test.
    against: full
    fields: {epochs: 1, start: tiny}
    test_rows: 6
    variants:
      full: {}
      no_text: {prompt_dropout: 1.0}
      half_0.5: {against: no_text, label_budget: 0.5}
      unet: {start: null, vision_model: tiny, model_class: "experiments.baselines:UNet"}
  searched:
    about: A test.
    against: full
    search: {learning_rate: [1.0e-3, 3.0e-3]}
    fields: {epochs: 1, start: tiny}
    test_rows: 3
    variants:
      full: {}
"""


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("matrix_*.yaml")), ids=lambda path: path.stem)
def test_shipped_matrices_are_understood(path):
    variants = matrix.read_matrix(path)
    assert len({v.key for v in variants}) == len(variants)
    for variant in variants:
        for training in filter(None, (variant.start, *variant.candidates)):
            arguments = train_hf.parse_arguments(training.command()[1:])
            assert arguments.stage == training.stage and arguments.seed == variant.seed
            TAMISegConfig(**json.loads(arguments.model_config))
    groups = yaml.safe_load(path.read_text())["groups"]
    for group in groups.values():
        budgets = {name: own["label_budget"] for name, own in group["variants"].items() if "label_budget" in own}
        assert all(name.endswith(f"_{budget:g}") for name, budget in budgets.items())  # so it stands on a curve
        # Of each curve all points, but not of what tries another batch: with all masks shown it is another question.
        kinds = {name.rpartition("_")[0] for name in budgets if "_batch_" not in name}
        assert all(f"{kind}_1" in group["variants"] for kind in kinds)


class Here:
    """A pool that does at once, in this process and thread, what it is given."""

    def __init__(self, jobs):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def submit(self, function, *arguments):
        future = Future()
        try:
            future.set_result(function(*arguments))
        except RuntimeError as error:
            future.set_exception(error)
        return future

    def shutdown(self, cancel_futures):
        pass


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A folder with the small matrix, whose commands are run without new processes."""

    def run(words, log, threads):
        match words:
            case ["train_hf.py", *rest]:
                train_hf.main(rest)
            case ["-m", "processing.command_line", *rest]:
                assert command_line.main(rest) == 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(matrix, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(matrix, "ThreadPoolExecutor", Here)
    monkeypatch.setattr(matrix, "run", run)
    monkeypatch.setattr(sys, "argv", ["matrix", "small.yaml"])
    (tmp_path / "small.yaml").write_text(TINY)
    return tmp_path


def test_a_matrix_runs_to_its_page(small, monkeypatch, capsys):
    assert matrix.main() == 0
    assert "5 runs, 5 of them open" in capsys.readouterr().out
    summaries = load_summaries(small / "results")
    rows = {row["variant"]: row for row in summaries["small"]["groups"]["parts"]["rows"]}
    assert rows["full"]["compared"] == {} and rows["no_text"]["main"] == "no_text"
    assert rows["no_text"]["compared"]["main"]["units"] == 2  # six rows of two pictures
    assert rows["half_0.5"]["against"] == "no_text" and rows["half_0.5"]["label_budget"] == 0.5
    mean = np.mean(rows["full"]["scores"]["full_text"]["dice_per_image"])
    low, high = rows["full"]["scores"]["full_text"]["interval"]
    assert low <= mean <= high
    tried = {
        entry["value"]: entry["score"]
        for entry in summaries["small"]["groups"]["searched"]["rows"][0]["search"]["scores"]
    }
    best = max(tried, key=tried.get)
    searched = json.loads((small / "results/small/searched-full-seed0.json").read_text())
    assert set(tried) == {0.001, 0.003} and searched["training"]["arguments"]["learning_rate"] == best
    page = ablations_page(summaries)
    assert f"- full: **{best:g}** (0.001 " in page
    for variant in ("full", "no text", "unet"):
        assert f"| {variant} |" in page
    first = json.loads((small / "results/small/parts-full-seed0.json").read_text())
    assert f"{100 * first['scores']['full_text']['dice_per_image']:.2f}" in page

    run = matrix.run
    monkeypatch.setattr(matrix, "run", None)  # what has a result is not run again
    assert matrix.main() == 0
    assert "5 runs, 0 of them open" in capsys.readouterr().out
    assert load_summaries(small / "results") == summaries

    shutil.rmtree(small / "runs")  # as on another machine, which has the results alone
    assert matrix.main() == 0
    assert load_summaries(small / "results") == summaries
    (small / "results/small/parts-full-seed0.npz").unlink()
    assert matrix.main() == 0
    assert "parts: the cases of some runs were not kept, so its summary stays as it was" in capsys.readouterr().out
    unkept = load_summaries(small / "results")
    page = ablations_page(unkept)
    assert "no file gives the differences again" in page
    unkept["small"]["groups"]["parts"]["cases_kept"] = True
    assert unkept == summaries
    (small / "results/small/summary.json").rename(small / "summary.json")
    assert matrix.main() == 2
    assert "parts-full-seed0.json without its .npz: remove it" in capsys.readouterr().err
    (small / "summary.json").rename(small / "results/small/summary.json")

    described = (small / "small.yaml").read_text()
    (small / "small.yaml").write_text(
        described.replace("fields: {epochs: 1, start: tiny}", "fields: {epochs: 2, start: tiny}", 1)
    )
    with pytest.raises(SystemExit):  # before anything is run
        matrix.main()
    assert "parts-full-seed0.json' is of a training with epochs 1, not 2: remove it" in capsys.readouterr().err
    (small / "small.yaml").write_text(described.replace("[1.0e-3, 3.0e-3]", "[1.0e-3, 1.0e-2]"))
    with pytest.raises(SystemExit):
        matrix.main()
    assert "is of a search over other values" in capsys.readouterr().err
    (small / "small.yaml").write_text(described)

    output = small / "docs"
    assert command_line.main(["report", "--results", str(small / "results"), "--output", str(output)]) == 0
    assert (output / "ablations.md").read_text() == page
    assert "![Dice over the share of masks that were shown](small-parts.svg)" in page
    assert "<svg" in (output / "small-parts.svg").read_text()
    told = (output / "report.html").read_text()
    assert "<h2>small</h2>" in told and "<strong>no text</strong> against full" in told
    assert told.count("<img") == 2 and "Wilcoxon signed-rank" in told and "is the best of a search" in told

    described = described.replace("[1.0e-3, 3.0e-3]", "[1.0e-3, 1.0e-2]")
    (small / "small.yaml").write_text(described)
    (small / "results/small/search-searched-full.json").unlink()  # as the sentence says
    monkeypatch.setattr(matrix, "run", run)
    assert matrix.main() == 0
    assert "5 runs, 1 of them open" in capsys.readouterr().out
    assert [
        entry["value"]
        for entry in load_summaries(small / "results")["small"]["groups"]["searched"]["rows"][0]["search"]["scores"]
    ] == [0.001, 0.01]
    (small / "small.yaml").write_text(described.replace("epochs: 1}", "epochs: 3}", 1))  # of stage 1
    with pytest.raises(SystemExit):
        matrix.main()
    assert "seed0.json' is of an older stage 1: remove it too." in capsys.readouterr().err


def test_a_training_of_other_fields_is_not_taken_for_done(small):
    variant = matrix.read_matrix(Path("small.yaml"))[0]
    training = matrix.replace(variant.training, fields={**variant.training.fields, "vision_model": "tiny"})
    assert not training.done()
    train_hf.main(training.command()[1:])
    assert training.done()
    with pytest.raises(RuntimeError, match="was trained with epochs 1, not 3: remove it"):
        matrix.replace(training, fields={**training.fields, "epochs": 3}).done()
    with pytest.raises(RuntimeError, match="was trained with max_train_samples 6, not None"):  # a field left out
        matrix.replace(training, fields={k: v for k, v in training.fields.items() if k != "max_train_samples"}).done()
    # The same in other words: what YAML leaves a string, and a path, of which a result keeps the last part.
    data = Path("sample").absolute()
    fields = {**training.fields, "dataset": str(data), "learning_rate": "1e-3"}
    assert matrix.replace(training, fields=fields).changed({"dataset": "sample", "learning_rate": 0.001}) == ""


def test_kept_dice_compare_as_the_cases_do(small):
    assert matrix.main() == 0
    results = small / "results" / "small"
    runs = [run for run in matrix.read_matrix(small / "small.yaml", ["parts"]) if run.name != "unet"]
    kept = [[matrix.kept_cases(run, results, "no_text")] for run in runs]
    read = [[matrix.read_cases(run.training.folder / "test", "no_text")] for run in runs]
    for ours, theirs in ((kept, read), (kept[1:], read[1:])):
        one, other = (matrix.compare(side[0], side[1]) for side in (ours, theirs))
        assert one.pop("interval") == pytest.approx(other.pop("interval"), abs=1e-6)
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6)
    with np.load(results / "parts-full-seed0.npz") as stored:
        assert set(stored) == {"rows", "patient", "full_text", "no_text", "shuffled_text"}
        assert not any("builtin" in str(stored[name]) for name in stored)  # no name of a case or patient


def test_a_dry_run_tries_each_training_once(small, monkeypatch, capsys):
    commands = []

    def run(words, log, threads):
        commands.append(words)
        if "--prompt_dropout" in words and words[words.index("--prompt_dropout") + 1] == "1.0":
            raise RuntimeError("log.txt ends with: no such file")

    monkeypatch.setattr(matrix, "run", run)
    monkeypatch.setattr(sys, "argv", ["matrix", "small.yaml", "--dry_run"])
    assert matrix.main() == 1
    said = capsys.readouterr().out
    assert "parts-full, pretrain: ready" in said and "7 trainings tried, 1 of them not ready" in said
    assert "parts-no_text, finetune: log.txt ends with: no such file" in said
    assert all(words[words.index("--vision_model") + 1] == "tiny" for words in commands)  # stage 1 was not made
    assert all(train_hf.parse_arguments(words[1:]).dry_run for words in commands)


@pytest.fixture
def like_the_paper(tmp_path, monkeypatch):
    """A folder with data and encoders under the names that the recipes for a GPU have, tiny and random; and the words
    that make their pictures, batches and projectors small too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("data/qata_cov19", "data/kvasir_seg"):
        for split in ("train", "validation"):
            write_image_folder(tmp_path / name, split)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    resnet = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 16, 24], depths=[1, 1, 1, 1])
    ResNetModel(resnet).save_pretrained("microsoft/resnet-50")
    BertModel(BertConfig(vocab_size=20, **small)).save_pretrained("emilyalsentzer/Bio_ClinicalBERT")
    make_tokenizer().save_pretrained("emilyalsentzer/Bio_ClinicalBERT")
    DINOv3ViTModel(DINOv3ViTConfig(**small)).save_pretrained("facebook/dinov3-vitb16-pretrain-lvd1689m")
    # Accelerate keeps the precision of a process's first run: the recipes' bf16 must neither find nor leave another.
    AcceleratorState._reset_state(reset_partial_state=True)
    yield ["--image_size", "32", "--batch_size", "2", "--num_workers", "0", "--projector_size", "16", "--cpu", "true"]
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("name", ["qata_resnet50_256", "kvasir_resnet50_256"])
def test_recipes_for_a_gpu_pass_a_dry_run(like_the_paper, name, capsys):
    recipe = ROOT / "experiments" / f"{name}.yaml"
    commands = yaml.safe_load(recipe.read_text())["recipe"]["commands"]
    trainings = [command for command in commands if command.startswith("python train_hf.py")]
    assert len(trainings) == 2
    for command in trainings:
        words = shlex.split(command.replace("$SEED", "0").replace(f"experiments/{name}.yaml", str(recipe)))[2:]
        first = ["--vision_model", "microsoft/resnet-50"]  # stands in for what comes of stage 1
        train_hf.main([*words, *first, *like_the_paper, "--dry_run", "true"])
    assert capsys.readouterr().out.count("dry run: data, model, one step, evaluation and saving work") == 2


def test_a_matrix_for_a_gpu_passes_a_dry_run(like_the_paper, monkeypatch, capsys):
    monkeypatch.setattr(matrix, "run", lambda words, log, threads: train_hf.main([*words[1:], *like_the_paper]))
    chosen = {"parts-width_128", "distillation-weight_0.5", "budgets-ours_0.05", "baselines-clipseg_decoder"}
    variants = matrix.read_matrix(ROOT / "experiments" / "matrix_qata_resnet50_256.yaml", seeds=[0])
    assert {variant.group for variant in variants} == {name.partition("-")[0] for name in chosen}
    assert matrix.try_all([variant for variant in variants if f"{variant.group}-{variant.name}" in chosen]) == 0
    said = capsys.readouterr().out
    assert "6 trainings tried, 0 of them not ready" in said  # with the stage 1 of all masks, and of few
    assert all(f"{name}, finetune: ready" in said for name in chosen)


def test_a_run_that_fails_is_said_and_the_others_go_on(small, monkeypatch, capsys):
    done = matrix.run

    def run(words, log, threads):
        if "experiments.baselines:UNet" in words:
            raise RuntimeError("log.txt ends with: the disk is full")
        done(words, log, threads)

    monkeypatch.setattr(matrix, "run", run)
    assert matrix.main() == 1
    assert "parts-unet-seed0: log.txt ends with: the disk is full" in capsys.readouterr().out
    assert len(list((small / "results/small").glob("parts-*.json"))) == 3


def test_a_matrix_that_is_stopped_goes_on(small, monkeypatch, capsys):
    done, trained = matrix.run, []

    def run(words, log, threads):
        if words[0] == "train_hf.py":
            trained.append(words[words.index("--output_dir") + 1].removeprefix("runs/small/"))
        if len(trained) == 3:
            trained.append("stopped")
            raise KeyboardInterrupt
        done(words, log, threads)

    described = yaml.safe_load(TINY)
    described["groups"] = {"parts": described["groups"]["parts"]}
    described["groups"]["parts"]["variants"] = {"full": {}, "no_text": {"prompt_dropout": 1.0}}
    (small / "small.yaml").write_text(yaml.safe_dump(described))
    monkeypatch.setattr(matrix, "run", run)
    assert matrix.main() == 130
    kept = {path.name: path.read_bytes() for path in (small / "results/small").iterdir()}
    assert set(kept) == {"parts-full-seed0.json", "parts-full-seed0.npz"}
    capsys.readouterr()
    assert matrix.main() == 0
    assert "2 runs, 1 of them open" in capsys.readouterr().out
    assert (small / "results/small/parts-no_text-seed0.json").is_file()
    assert all((small / "results/small" / name).read_bytes() == before for name, before in kept.items())
    again = "parts/no_text-seed0"
    assert trained == ["starts/tiny-seed0", "parts/full-seed0", again, "stopped", again]


def test_the_end_of_a_log_says_why(tmp_path):
    with pytest.raises(RuntimeError, match="ends with: no such thing"):
        matrix.run(["-c", "import sys; sys.exit('no such thing')"], tmp_path / "log.txt", threads=1)


@pytest.mark.parametrize("words", [["nowhere.yaml"], ["small.yaml", "--groups", "nothing"]])
def test_bad_words_get_one_sentence(small, monkeypatch, capsys, words):
    monkeypatch.setattr(sys, "argv", ["matrix", *words])
    with pytest.raises(SystemExit) as end:
        matrix.main()
    assert end.value.code == 2
    assert words[-1] in capsys.readouterr().err.splitlines()[-1]


def test_unknown_names_are_refused(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(TINY.replace("start: tiny}", "start: other}"))
    with pytest.raises(ValueError, match="starts from 'other'"):
        matrix.read_matrix(path)
    with pytest.raises(ValueError, match="has no group"):
        matrix.read_matrix(path, groups=["nothing"])
    path.write_text(TINY.replace("against: no_text", "against: nobody"))
    with pytest.raises(ValueError, match="parts/half_0.5 is compared to 'nobody'"):
        matrix.read_matrix(path)
    path.write_text(TINY.replace("search: {", "search: {seed: [1, 2], "))
    with pytest.raises(ValueError, match="one field is what can be searched"):
        matrix.read_matrix(path)


def test_curves_are_of_the_variants_that_name_their_share():
    def row(name, dice, **budget):
        scores = {"full_text": {"dice_per_image": dice, "interval": [0.1, 0.9]}}
        return {"variant": name, "main": "full_text", "scores": scores, **budget}

    rows = [row("ours_1", [0.8, 0.6]), row("other", [0.5]), row("ours_0.1", [0.4], label_budget=0.1)]
    points = ablations.curves({"rows": rows})["ours"]
    assert list(ablations.curves({"rows": rows})) == ["ours"]
    assert [(point["share"], point["seeds"]) for point in points] == [(0.1, [0.4]), (1, [0.8, 0.6])]
    assert points[1]["dice"] == pytest.approx(0.7) and points[1]["interval"] == [0.1, 0.9]
    assert ablations.curves({"rows": rows[:2]}) == {}


def test_a_difference_that_does_not_spread_is_a_dash():
    scores = {"full_text": {"dice_per_image": [0.5], "dice_global": [0.6], "interval": [0.4, 0.6]}}
    told = {"difference": 0.1, "interval": [0.1, 0.1], "difference_by_seed": [0.1], "seed_interval": None}
    told |= {"p_wilcoxon_holm": 0.5, "effect_size": None}
    row = {"variant": "full", "main": "full_text", "scores": scores, "against": "other", "gflops": 1.0}
    row |= {"compared": {"main": told, "no_text": told}, "million_parameters": 2.0}
    head, cells = ablations.group_rows({"rows": [row]})
    assert cells[head.index("d")] == cells[head.index("over seeds")] == "-"
    assert cells[head.index("difference, over patients")] == "+10.00 [+10.00, +10.00]"
    assert cells[head.index("p (Wilcoxon, t)")] == "0.500, -"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "2.00 points better, in each of 3 seeds"),
        ({"p_t_holm": 0.06}, "no difference shown, [+1.00, +3.00] over patients"),
        ({"interval": [-0.01, 0.03]}, "no difference shown, [-1.00, +3.00] over patients"),
        (
            {"difference_by_seed": [0.01, 0.02, 0.03], "seed_interval": [-0.005, 0.045]},
            "2.00 points better, in each of 3 seeds, but so few seeds do not make it sure: [-0.50, +4.50] over seeds",
        ),
        (
            {"difference_by_seed": [0.05, 0.02, -0.01], "seed_interval": [-0.05, 0.09]},
            "+2.00 points, but the seeds do not agree on the sign, [-5.00, +9.00] over seeds",
        ),
        (
            {"difference_by_seed": [0.02], "seed_interval": None},
            "2.00 points better, in the one seed that was run",
        ),
        (
            {"p_wilcoxon_holm": 0.5, "seed_interval": [-0.1, 0.14]},
            "no difference shown, [+1.00, +3.00] over patients, [-10.00, +14.00] over seeds",
        ),
    ],
)
def test_a_verdict_is_no_surer_than_patients_and_seeds(changes, said):
    told = {"difference": 0.02, "interval": [0.01, 0.03], "p_wilcoxon_holm": 0.001, "p_t_holm": 0.001}
    told |= {"difference_by_seed": [0.019, 0.02, 0.021], "seed_interval": [0.0175, 0.0225], **changes}
    assert ablations.seen(told) == said


def test_the_interval_over_seeds_is_that_of_the_t_test():
    low, high = comparison.over_seeds([0.01, 0.02, 0.03])
    assert scipy.stats.ttest_1samp([0.01, 0.02, 0.03], popmean=low).pvalue == pytest.approx(0.05)
    assert (low + high) / 2 == pytest.approx(0.02) and comparison.over_seeds([0.1]) is None


@pytest.mark.parametrize("name", CLASSES)
def test_baselines_learn_answer_and_load(name, tmp_path):
    torch.manual_seed(0)
    config = TAMISegConfig(
        vision_config={"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 16], "depths": [1, 1, 1],
                       "layer_type": "basic"},
        text_config={"model_type": "bert", "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1,
                     "num_attention_heads": 2, "intermediate_size": 32},
    )  # fmt: skip
    model = CLASSES[name](config)
    pixels = torch.randn(2, 3, 40, 56)
    words, mask = torch.randn(2, 4, 32), torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0]])
    labels = torch.randint(0, 2, (2, 40, 56))
    model(pixels, text_embeds=words, attention_mask=mask, labels=labels).loss.backward()
    assert any(p.requires_grad for p in model.vision_encoder.parameters()) == model.reads_our_encoder
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)  # as several processes want it
    gradients = [p.grad for p in model.network.parameters()]
    assert any(g is not None and g.abs().sum() > 0 for g in gradients)

    model.eval()
    with torch.no_grad():
        asked = torch.tensor([0, 0, 1])
        logits = model(
            pixels, text_embeds=words[[0, 1, 0]], attention_mask=mask[[0, 1, 0]], image_indices=asked
        ).logits
        assert logits.shape == (3, 2, 40, 56)
        reads = not torch.equal(logits[0], logits[1])
        assert reads == (name == "ClipSegDecoder")
        model.save_pretrained(tmp_path)
        again = CLASSES[name].from_pretrained(tmp_path).eval()
        torch.testing.assert_close(again(pixels).logits, model(pixels).logits, rtol=1e-4, atol=1e-4)
