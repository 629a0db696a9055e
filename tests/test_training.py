# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Both stages on a handful of drawn rows: what is written, what is repeatable, what is refused."""

import json
import os
import shlex
import subprocess
import sys
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import datasets
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file

import train_hf
from modeling_tamiseg.decoder import MultiScaleModule
from modeling_tamiseg.losses import segmentation_loss
from processing.reading import sha256
from tests.test_modeling import tiny_model
from train_hf import compute_losses, label_weights, main, memory_format_for, parse_arguments

from .test_data import table, write_image_folder, write_parquet


SMALL = ["--dataset", "builtin", "--image_size", "32", "--batch_size", "4", "--cpu", "true",
         "--max_train_samples", "10", "--max_eval_samples", "6", "--projector_size", "16",
         "--freeze_text_encoder", "false"]  # fmt: skip
DRAWN = ["--stage", "finetune", "--image_size", "32", "--batch_size", "4", "--cpu", "true", "--epochs", "2"]


def train(folder, *words):
    return main(["--output_dir", str(folder), *SMALL, *words])


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain")
    train(folder, "--stage", "pretrain", "--epochs", "2")
    return folder


def test_both_stages_leave_a_folder_that_loads(pretrained, tmp_path):
    from transformers import AutoModel, AutoProcessor

    result = train(
        tmp_path, "--stage", "finetune", "--epochs", "2", "--vision_model", str(pretrained / "best"),
        "--teacher", str(pretrained_teacher(tmp_path)),
    )  # fmt: skip
    assert set(result["scores"]) == {"full_text", "no_text", "shuffled_text"}
    for scores in result["scores"].values():
        assert 0 <= scores["dice_per_image"] <= 1 and scores["num_images"] == 6
        d = scores["dice_global"]
        assert scores["iou_global"] == pytest.approx(d / (2 - d))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[0]["step"] == 3  # 10 rows in steps of 4: every row is visited
    assert -1 <= lines[0]["train_distillation"] <= 1
    assert lines[-1]["learning_rate"] == pytest.approx(0, abs=1e-12)  # the plan ends with the last step
    best = max(line["validation_dice_per_image"] for line in lines)  # validation selects
    assert result["scores"]["full_text"]["dice_per_image"] == pytest.approx(best)
    model = AutoModel.from_pretrained(tmp_path / "best")
    assert not any("teacher" in key or "projector" in key for key in model.state_dict())
    assert AutoProcessor.from_pretrained(tmp_path / "best").image_processor.size["height"] == 32
    for name in ("config.yaml", "result.json", "checkpoints"):
        assert (tmp_path / name).exists()


def pretrained_teacher(folder):
    from transformers import AutoModel, ResNetConfig

    teacher = AutoModel.from_config(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]))
    teacher.save_pretrained(folder / "teacher")
    return folder / "teacher"


def weights(folder):
    newest = sorted((folder / "checkpoints").glob("epoch-*"))[-1]
    return load_file(newest / "model.safetensors")


def test_same_seed_twice_and_resumed_gives_the_same_weights(tmp_path, monkeypatch):
    words = ("--stage", "finetune", "--epochs", "3")
    train(tmp_path / "a", *words)
    train(tmp_path / "b", *words)
    first, second = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all((first[key] == second[key]).all() for key in first)
    # Broken off in the third evaluation, and gone on with from the second epoch's state.
    evaluations = []

    def evaluate_twice(*arguments):
        evaluations.append(1)
        if len(evaluations) == 3:
            raise InterruptedError
        return evaluate_twice.original(*arguments)

    evaluate_twice.original = train_hf.evaluate
    monkeypatch.setattr(train_hf, "evaluate", evaluate_twice)
    with pytest.raises(InterruptedError):
        train(tmp_path / "c", *words)
    monkeypatch.undo()
    train(tmp_path / "c", *words, "--resume", "auto")
    resumed = weights(tmp_path / "c")
    assert all((first[key] == resumed[key]).all() for key in first)


def test_resuming_looks_at_rows_and_weights_not_at_where_they_lie(tmp_path, capsys):
    for split in ("train", "validation"):
        write_image_folder(tmp_path / "data", split)
    teacher, moved = pretrained_teacher(tmp_path), tmp_path / "moved"

    def go_on(folder):
        words = ["--dataset", str(folder / "data"), "--teacher", str(folder / "teacher"), "--resume", "auto"]
        return main(["--output_dir", str(tmp_path / "run"), *DRAWN, "--projector_size", "16", *words])

    go_on(tmp_path)
    moved.mkdir()
    (tmp_path / "data").rename(moved / "data")
    teacher.rename(moved / "teacher")
    go_on(moved)
    assert "resumed from" in capsys.readouterr().out
    Image.new("L", (40, 30), 255).save(moved / "data" / "train" / "masks" / "0.png")
    with pytest.raises(ValueError, match=r"dataset \(.*\) holds other rows than before.*: give the old values, data"):
        go_on(moved)
    write_image_folder(tmp_path / "new", "train")
    (moved / "data" / "train").rename(moved / "spoilt")
    (tmp_path / "new" / "train").rename(moved / "data" / "train")
    pretrained_teacher(moved)  # other weights
    with pytest.raises(ValueError, match=r"teacher \(.*\) holds other weights than before"):
        go_on(moved)
    # A checkpoint of an older version tells no contents, and lacks newer fields.
    state = sorted((tmp_path / "run" / "checkpoints").glob("epoch-*"))[-1]
    told = json.loads((state / "progress.json").read_text())
    del told["contents"], told["run"]["horizontal_flip"]
    told["run"] |= {"dataset": str(moved / "data"), "teacher": str(moved / "teacher")}
    (state / "progress.json").write_text(json.dumps(told))
    manifest = json.loads((state / "manifest.json").read_text())
    (state / "manifest.json").write_text(json.dumps(manifest | {"progress.json": sha256(state / "progress.json")}))
    capsys.readouterr()
    go_on(moved)
    assert f"resumed from {state}" in capsys.readouterr().out


def test_max_steps_beats_epochs_and_both_say_so(tmp_path):
    assert train(tmp_path, "--stage", "pretrain", "--epochs", "1", "--max_steps", "4")["steps"] == 4  # an epoch has 3
    told = [train_hf.Arguments.__dataclass_fields__[name].metadata["help"] for name in ("epochs", "max_steps")]
    assert "max_steps" in told[0] and "more than epochs" in told[1]


def test_the_next_command_names_the_same_data(tmp_path, prepared, capsys):
    config = '{"num_labels": 3}'
    words = ["--dataset", str(prepared), *DRAWN[2:], "--max_steps", "1", "--model_config", config]
    main(["--stage", "pretrain", "--output_dir", str(tmp_path / "my run"), *words])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("next: "))
    arguments = parse_arguments(shlex.split(line)[3:])
    assert (arguments.dataset, arguments.image_size, arguments.model_config) == (str(prepared), 32, config)
    assert (arguments.stage, arguments.vision_model) == ("finetune", str(tmp_path / "my run" / "best"))
    assert "batch_size" not in line and "validation_share" not in line


def test_a_checkpoint_goes_on_in_another_folder(pretrained, tmp_path, capsys):
    first, last = sorted((pretrained / "checkpoints").glob("epoch-*"))
    words = ["--stage", "pretrain", "--epochs", "2", "--resume"]
    state = json.loads((first / "progress.json").read_text())
    assert state["progress"]["epoch"] == 1
    result = train(tmp_path / "b", *words, str(first))
    assert "the best epoch is chosen among those that come now" in capsys.readouterr().out
    (line,) = (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()
    dice = json.loads(line)["validation_dice_per_image"]
    assert result["scores"]["no_text"]["dice_per_image"] == pytest.approx(dice)
    train(tmp_path / "c", *words, str(last))
    assert "no epoch was left: the weights of the checkpoint are taken" in capsys.readouterr().out
    best, kept = (load_file(f / "model.safetensors") for f in (tmp_path / "c" / "best", last))
    assert all((kept[key] == value).all() for key, value in best.items())


def test_two_processes_evaluate_every_row_once(tmp_path):
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone",
               str(root / "train_hf.py"), "--stage", "finetune", "--output_dir", str(tmp_path), *SMALL,
               "--max_steps", "2", "--prompt_dropout", "1"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment, cwd=root)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "2 process(es)" in run.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert all(scores["num_images"] == 6 for scores in result["scores"].values())


def test_distillation_weighs_as_in_the_paper():
    assert parse_arguments(["--stage", "finetune", "--output_dir", "x"]).distillation_weight == 0.5


def test_flag_beats_file_beats_default(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("epochs: 7\nlearning_rate: 3.0e-4\nstage: pretrain\n")
    words = ["--config", str(path), "--output_dir", "x"]
    assert parse_arguments(words).epochs == 7 and parse_arguments(words).stage == "pretrain"
    assert parse_arguments(words).learning_rate == pytest.approx(3e-4)
    assert parse_arguments([*words, "--epochs", "2"]).epochs == 2
    assert parse_arguments([f"--config={path}", "--output_dir", "x"]).epochs == 7
    path.write_text("model_config: {hidden_size: 96}\nstage: pretrain\nepochs:\ncache: true\nmixed_precision: no\n")
    read = parse_arguments(words)
    assert read.mixed_precision == "no"  # which YAML reads as false
    assert (read.model_config, read.epochs, read.cache) == ('{"hidden_size": 96}', 20, True)


def test_a_text_encoder_from_scratch_learns_unless_told_otherwise(tmp_path, capsys):
    def frozen(*words):
        return parse_arguments(["--stage", "finetune", "--output_dir", "x", *words]).freeze_text_encoder

    assert frozen() is False and frozen("--text_model", "some/bert") is True
    assert frozen("--freeze_text_encoder", "true") is True
    assert frozen("--text_model", "some/bert", "--freeze_text_encoder", "false") is False
    for no_use in (["--prompt_dropout", "1"], ["--model_class", "a:B"], ["--stage", "pretrain"]):
        assert frozen(*no_use) is True
    train(tmp_path, "--stage", "finetune", "--freeze_text_encoder", "true", "--dry_run", "true")
    assert "the tiny text encoder stays as it was drawn and learns nothing" in capsys.readouterr().out


def test_help_of_a_switch_turned_off_says_the_opposite():
    actions = {words: action for action in train_hf.make_parser()._actions for words in action.option_strings}
    negated = [words for words in actions if words.startswith("--no_")]
    assert "--no_hub_private" in negated and actions["--no_hub_private"].help == "let everybody see it"
    for words in negated:
        assert actions[words].help != actions[words.replace("--no_", "--")].help


def test_pictures_are_normalised_as_the_encoder_knows_them(tmp_path):
    words = ["--stage", "finetune", "--output_dir", "x", "--vision_model"]
    rows = [{"prompt": "left"}]
    (tmp_path / "none").mkdir()
    for name in ("tiny", str(tmp_path / "none")):
        processor = train_hf.build_processor(parse_arguments([*words, name]), rows)
        assert processor.image_processor.image_mean == pytest.approx([0.485, 0.456, 0.406])
    told = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.5, 0.5], "do_resize": False}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    processor = train_hf.build_processor(parse_arguments([*words, str(tmp_path)]), rows)
    images = processor.image_processor
    assert (list(images.image_mean), list(images.image_std)) == (told["image_mean"], told["image_std"])
    processor.save_pretrained(tmp_path / "ours")  # as stage 1 leaves it for stage 2
    again = train_hf.build_processor(parse_arguments([*words, str(tmp_path / "ours")]), rows)
    assert list(again.image_processor.image_std) == told["image_std"] and again.image_processor.do_resize


def test_the_text_encoder_of_a_trained_model_is_taken_with_its_words(pretrained, tmp_path):
    finetune = ["--stage", "finetune", "--max_steps", "1"]
    train(tmp_path / "first", *finetune)
    best = tmp_path / "first" / "best"
    train(tmp_path / "second", *finetune, "--text_model", str(best), "--freeze_text_encoder", "true")
    given, taken = (load_file(folder / "model.safetensors") for folder in (best, tmp_path / "second" / "best"))
    texts = [key for key in given if key.startswith("text_encoder.")]
    assert texts and all((given[key] == taken[key]).all() for key in texts)
    words = [json.loads((tmp_path / run / "best" / "tokenizer.json").read_text()) for run in ("first", "second")]
    assert words[0]["model"] == words[1]["model"]
    with pytest.raises(ValueError, match="is of stage 1, which has no text encoder: give a model of stage 2"):
        train(tmp_path / "third", *finetune, "--text_model", str(pretrained / "best"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("epoch: 7", "unknown fields ['epoch']"),
        ("[stage, pretrain]", "holds a list"),
        ("stage: [pretrain", "cannot be read as YAML"),
        ("stage: Pretrain", "argument --stage: invalid choice: 'Pretrain'"),
        ("epochs: 2.5", "argument --epochs: invalid int value: '2.5'"),
        ("cache: maybe", "argument --cache: Truthy value expected"),
        ("model_config: [1]", "model_config is [1]: write it as"),
        ("model_config: {text_config: {}}", "model_config has unknown fields ['text_config']"),
    ],
)
def test_what_a_file_says_is_checked_as_flags_are(tmp_path, capsys, text, sentence):
    path = tmp_path / "run.yaml"
    path.write_text(text + "\n")
    stage = [] if "stage" in text else ["--stage", "pretrain"]
    with pytest.raises((ValueError, SystemExit)) as error:
        parse_arguments(["--config", str(path), "--output_dir", "x", *stage])
    said = f"{error.value} {capsys.readouterr().err}"
    assert sentence in said, said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--dataset", "EMPTY"], "EMPTY"),
        (["--config", "none.yaml"], "'none.yaml' is not there: check the path."),
        (["--model_config", "{hidden"], "model_config"),
        (["--model_config", '{"hidden_size": 18}'], "multiple of 4"),
        (["--model_config", '{"hidden_size": "96"}'], "hidden_size"),
        (["--image_size", "0"], "image_size"),
        (["--vision_model", "EMPTY"], "EMPTY"),
    ],
)
def test_bad_input_ends_with_one_sentence(tmp_path, words, sentence):
    empty = tmp_path / "EMPTY"
    empty.mkdir()
    words = [str(empty) if word == "EMPTY" else word for word in words]
    root = Path(__file__).parent.parent
    command = [sys.executable, str(root / "train_hf.py"), "--stage", "finetune", "--output_dir", str(tmp_path)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [*command, *words], capture_output=True, text=True, timeout=100, env=environment, cwd=tmp_path
    )
    assert run.returncode == 2, run.stderr
    assert "Traceback" not in run.stderr
    said = [line for line in run.stderr.splitlines() if line.startswith("train_hf.py:")]
    assert len(said) == 1 and sentence in said[0], run.stderr


def test_without_a_validation_split_a_share_of_the_patients_is_held_out(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    # Row 0 and 1 are one patient, row 6 shows row 0's picture, rows 7 to 9 have no patient.
    pictures = table(10)[:]["image"]
    pictures[6] = pictures[0]
    patients = ["a", "a", "b", "b", "c", "c", None, None, None, None]
    columns = {"image": pictures, "mask": table(10)[:]["mask"], "patient_id": patients, "name": list("0123456789")}
    data = datasets.Dataset.from_dict(columns)
    write_parquet(tmp_path / "data", "train", data)
    words = ["--stage", "finetune", "--output_dir", "x", "--dataset", str(tmp_path / "data")]
    with pytest.raises(ValueError, match="or give --validation_share 0.1 to hold out a tenth of the training rows"):
        train_hf.load_splits(parse_arguments(words))
    for share in (0.1, 0.3, 0.9):
        arguments = parse_arguments([*words, "--validation_share", str(share), "--seed", str(share)[-1]])
        train_rows, eval_rows = train_hf.load_splits(arguments)
        names = [set(train_hf.column(rows, "name")) for rows in (train_rows, eval_rows)]
        assert len(train_rows) + len(eval_rows) == 10 and not names[0] & names[1]
        assert all(n & {*"016"} in ({*"016"}, set()) for n in names)
        assert train_hf.shared_patients(train_rows, eval_rows) == 0 and len(train_rows)
        assert len(eval_rows) >= min(10 * share, 7)
    assert train_hf.fingerprint(train_hf.load_splits(arguments)[1]) == train_hf.fingerprint(eval_rows)
    few = ["--validation_share", "0.3", "--max_train_samples", "4", "--max_eval_samples", "2"]
    result = main([*words, *DRAWN, "--output_dir", str(tmp_path / "run"), *few])
    assert result["steps"] == 2 and result["scores"]["no_text"]["num_images"] == 2
    write_parquet(tmp_path / "data", "validation", table(2))
    with pytest.raises(ValueError, match="has a split 'validation': leave out validation_share"):
        train_hf.load_splits(arguments)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder as `tamiseg data prepare` writes it."""
    from processing.prepare import Plan, prepare
    from tests.test_prepare import write_folder

    folder = tmp_path_factory.mktemp("prepared")
    write_folder(folder / "source", 20)
    prepare("folder", folder / "source", folder / "data", Plan(sentences="lung"))
    return folder / "data"


@pytest.mark.parametrize("way", ["streaming", "cache"])
def test_streamed_and_cached_rows_train(tmp_path, prepared, way):
    result = main([*DRAWN, "--dataset", str(prepared), "--output_dir", str(tmp_path), f"--{way}", "true"])
    assert result["steps"] == 8  # 16 rows in steps of 4, twice
    assert ("train" not in result["data"]) == (way == "streaming")
    assert result["scores"]["full_text"]["num_images"] == 2


def test_two_processes_share_a_stream(tmp_path, prepared):
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone",
               str(root / "train_hf.py"), *DRAWN, "--dataset", str(prepared), "--output_dir", str(tmp_path),
               "--streaming", "true", "--batch_size", "3", "--freeze_text_encoder", "false"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment, cwd=root)
    assert run.returncode == 0, run.stderr[-3000:]
    assert json.loads((tmp_path / "result.json").read_text())["steps"] == 6  # 8 rows each, in steps of 3, twice


def test_a_stream_keeps_and_picks_nothing():
    words = ["--stage", "finetune", "--output_dir", "x", "--streaming", "true"]
    for also in (["--cache", "true"], ["--max_train_samples", "3"]):
        with pytest.raises(ValueError, match="streaming keeps no rows and picks none"):
            parse_arguments([*words, *also])


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_rows_without_masks_serve_where_a_loss_asks_nothing_of_them(tmp_path, stage):
    few = ["--stage", stage, "--label_budget", "0.2", "--epochs", "1"]
    teacher = ["--teacher", str(pretrained_teacher(tmp_path))] if stage == "finetune" else []
    switched_off = [] if stage == "finetune" else ["--model_config", '{"consistency_weight": 0}']
    # Three of ten rows are labelled, those of one picture. With the others a pass has seven of each kind, else ten.
    assert train(tmp_path / "with", *few, *teacher)["steps"] == 4
    assert train(tmp_path / "without", *few, *switched_off)["steps"] == 3


def test_few_labels_make_the_same_step_in_pieces():
    logits = torch.randn(8, 2, 6, 6)
    labels = torch.randint(0, 2, (8, 6, 6))
    labels[[1, 4, 5, 6, 7]] = 255
    weights = label_weights(Accelerator(cpu=True), labels)
    assert weights.tolist() == pytest.approx([8 / 3, 0, 8 / 3, 8 / 3, 0, 0, 0, 0]) and weights.mean() == 1
    whole = segmentation_loss(logits, labels)
    for cuts in ([0, 8], [0, 4, 8], [0, 2, 5, 8]):
        parts = [
            (b - a) / 8 * weights[a:b].mean().item() * segmentation_loss(logits[a:b], labels[a:b])
            for a, b in pairwise(cuts)
        ]
        torch.testing.assert_close(sum(parts), whole)
    unlabelled = label_weights(Accelerator(cpu=True), torch.full((2, 6, 6), 255))
    assert unlabelled.tolist() == [0, 0]


def test_few_labels_weigh_what_a_step_has_of_them(tmp_path, monkeypatch):
    compute, weights = train_hf.compute_losses, []

    def spy(*words):
        weights.append(words[4]["label_weight"])
        return compute(*words)

    monkeypatch.setattr(train_hf, "compute_losses", spy)
    few = ["--stage", "pretrain", "--label_budget", "0.5", "--max_steps", "2"]
    train(tmp_path, *few, "--batch_size", "2", "--gradient_accumulation_steps", "2")
    for first, second in zip(weights[::2], weights[1::2], strict=True):
        assert torch.cat([first, second]).mean() == pytest.approx(1)


def test_teacher_and_student_see_the_same_square():
    """At 40 pixels the student's maps cover 48, as many as its coarsest stride needs."""
    model, seen = tiny_model().train(), []

    def distiller(maps, pixels):
        seen.append(pixels)
        return maps[-1].mean()

    batch = {"pixel_values": torch.randn(2, 3, 40, 40), "labels": torch.ones(2, 40, 40).long(), "prompt": [None] * 2}
    compute_losses(model, distiller, lambda prompts: {}, nullcontext, batch, 0.5)
    expected = torch.nn.functional.pad(batch["pixel_values"], (0, 8, 0, 8))
    assert torch.equal(seen[0], expected)


def test_a_model_that_never_read_is_chosen_without_a_sentence(tmp_path):
    result = train(tmp_path, "--stage", "finetune", "--epochs", "2", "--prompt_dropout", "1")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    best = max(line["validation_dice_per_image"] for line in lines)
    assert result["scores"]["no_text"]["dice_per_image"] == pytest.approx(best)


def test_gradients_in_bf16_on_a_cpu_are_those_of_fp32():
    # With channels last oneDNN leaves some of them unwritten; the NaNs are what would then be found in that memory.
    torch.manual_seed(0)
    cpu = torch.device("cpu")
    layout = memory_format_for(cpu, "bf16")
    module = MultiScaleModule(32, [2, 6]).to(memory_format=layout)
    pixels = torch.randn(4, 32, 40, 40).contiguous(memory_format=layout)
    weights = [conv.weight for conv in module.wide]

    def gradients(precision):
        junk = [torch.full((1 << 18,), torch.nan) for _ in range(20)]
        del junk
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = (module(pixels).float() ** 2).mean()
        return torch.cat([g.ravel() for g in torch.autograd.grad(loss, weights)])

    expected = gradients("no")
    for _ in range(3):
        assert (gradients("bf16") - expected).abs().max() < 0.05 * expected.abs().max()
    assert memory_format_for(cpu, "no") == torch.channels_last
    assert memory_format_for(torch.device("cuda"), "bf16") == torch.channels_last
