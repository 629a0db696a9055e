# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""Push, pull and push-space against a Hub on the loopback interface: what is uploaded, what others can load, and what
is left behind when the connection breaks."""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants
from PIL import Image
from safetensors.torch import load_file, save_file

import segment
import train_hf
from processing import hub as hub_commands
from processing.command_line import main
from tests.loopback_hub import LoopbackHub, Repo, connect


REPO = "user/tamiseg-tiny"
CODE = {"configuration_tamiseg.py", "modeling_tamiseg.py", "outputs.py", "vision_encoder.py", "text_encoder.py",
        "alignment.py", "decoder.py", "inference.py", "losses.py", "tiling.py", "processing_tamiseg.py",
        "image_processing_tamiseg.py", "pipeline_tamiseg.py", "prompts.py"}  # fmt: skip
MODEL = {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
         "code.sha256"}  # fmt: skip
BESIDE = {"README.md", "LICENSE", "config.yaml", "metrics.jsonl", "result.json", "curves.png", "examples.png"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a real training run, of seconds."""
    folder = tmp_path_factory.mktemp("run")
    train_hf.main(
        ["--stage", "finetune", "--output_dir", str(folder), "--image_size", "32", "--batch_size", "4",
         "--cpu", "true", "--max_train_samples", "8", "--max_eval_samples", "6", "--max_steps", "2"]
    )  # fmt: skip
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(hub_commands, "FIRST_WAIT", 0.0)
    with LoopbackHub() as hub:
        connect(hub, monkeypatch, tmp_path / "cache")
        yield hub


def refused(capsys, *words) -> str:
    """The one sentence that a command ends with."""
    capsys.readouterr()
    assert main(list(map(str, words))) == 2
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("tamiseg:")]
    assert len(lines) == 1 and "Traceback" not in said
    return lines[0]


def test_a_push_is_one_private_commit_of_the_whole_model_and_nothing_else(run, hub, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    Image.new("L", (8, 8)).save(folder / "best" / "patient_7.png")
    assert main(["push", str(folder), REPO]) == 0
    told = capsys.readouterr().out
    repo = hub.repos["model", REPO]
    assert repo.private and len(repo.commits) == 2  # the empty one of its making, and ours
    files = hub.files(REPO)
    assert files.keys() == CODE | MODEL | BESIDE | {".gitattributes"}
    listed = [line.split("  ") for line in files["code.sha256"].decode().splitlines()]
    assert listed == [[hashlib.sha256(files[name]).hexdigest(), name] for name in sorted(CODE)]
    assert "left out, no part of a model: patient_7.png" in told and list(repo.commits)[-1] in told
    for name in CODE | MODEL - {"config.json"}:
        assert files[name] == (folder / "best" / name).read_bytes()
    # The card loads the repo by its name; nobody learns in which folders this was done.
    assert files["README.md"].decode().count(REPO) == 4
    assert "(curves.png)" in files["README.md"].decode()
    for name in BESIDE - {"curves.png", "examples.png"} | {"config.json"}:
        assert str(run.parent) not in files[name].decode(), name
    assert str(run) in (run / "config.yaml").read_text()  # so the line above has looked for something
    assert json.loads(files["result.json"])["scores"] == json.loads((run / "result.json").read_text())["scores"]


def test_run_folder_and_best_are_the_same_and_an_unchanged_push_is_no_commit(run, hub):
    assert main(["push", str(run), REPO]) == 0
    first = hub.files(REPO)
    assert main(["push", str(run / "best"), REPO]) == 0
    assert len(hub.repos["model", REPO].commits) == 2
    assert main(["push", str(run / "best"), "user/other"]) == 0
    other = hub.files("user/other")
    assert other.keys() == first.keys()
    assert {name for name in first if other[name] != first[name]} == {"README.md"}


def test_training_pushes_at_its_end(hub, tmp_path):
    words = ["--stage", "finetune", "--image_size", "32", "--batch_size", "4", "--cpu", "true", "--max_steps", "1",
             "--max_train_samples", "4", "--max_eval_samples", "3", "--push_to_hub", "true"]  # fmt: skip
    words += ["--output_dir", str(tmp_path / "run")]
    with pytest.raises(ValueError, match="hub_model_id"):
        train_hf.parse_arguments(words)
    with pytest.raises(ValueError, match="a name of your own"):
        train_hf.main([*words, "--hub_model_id", "somebody/else"])
    assert not (tmp_path / "run").exists()  # said before the training, not after it
    train_hf.main([*words, "--hub_model_id", REPO, "--hub_private", "false"])
    assert not hub.repos["model", REPO].private
    assert CODE | MODEL | BESIDE <= hub.files(REPO).keys()


STRANGER = """
import json, sys
from pathlib import Path
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline
repo, revision, again = sys.argv[1:]
try:
    import modeling_tamiseg
    raise SystemExit("the package can be imported: this process proves nothing")
except ImportError:
    pass
for snippet in json.loads(Path("snippets.json").read_text()):
    exec(compile(snippet, "<the card>", "exec"), {})
pinned = {"revision": revision, "trust_remote_code": True}
segment = pipeline("image-segmentation", model=repo, **pinned)
found = segment("picture.png", text="left lung", threshold=0.0)[0]
model = AutoModel.from_pretrained(repo, **pinned)
processor = AutoProcessor.from_pretrained(repo, **pinned)
model.push_to_hub(again, private=True)
processor.push_to_hub(again)
model.save_pretrained("saved")
processor.save_pretrained("saved")
loaded = AutoModel.from_pretrained(again, trust_remote_code=True)
assert AutoProcessor.from_pretrained(again, trust_remote_code=True).image_processor.size["height"] == 32
print(json.dumps({"mask": found["mask"].size, "label": found["label"],
                  "module": type(loaded).__module__,
                  "same": all(a.equal(b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values()))}))
"""


def test_a_stranger_loads_a_pinned_revision_runs_the_card_and_pushes_it_again(run, hub, tmp_path):
    assert main(["push", str(run), REPO]) == 0
    pinned = list(hub.repos["model", REPO].commits)[-1]
    hub.repos["model", REPO].commit({**hub.files(REPO), "config.json": b"broken by a later commit"})
    good = dict(hub.repos["model", REPO].commits[pinned])
    card = good["README.md"].decode()
    snippets = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(snippets) == 2
    # As a reader would pin it: the newest commit is broken, so an unpinned snippet could not run.
    snippets = [s.replace("trust_remote_code=True", f'revision="{pinned}", trust_remote_code=True') for s in snippets]
    (tmp_path / "snippets.json").write_text(json.dumps(snippets))
    Image.effect_noise((50, 40), 60).save(tmp_path / "picture.png")
    site = next(path for path in sys.path if path.endswith("site-packages"))
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_write",
                   "HF_HUB_DISABLE_XET": "1", "PATH": os.environ["PATH"]}  # fmt: skip
    code = f"import sys; sys.path.append({site!r})\n" + STRANGER
    stranger = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, REPO, pinned, "user/again"],
        capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=250,
    )  # fmt: skip
    assert stranger.returncode == 0, stranger.stderr[-3000:]
    told = json.loads(stranger.stdout.strip().splitlines()[-1])
    assert told["same"] and told["module"].startswith("transformers_modules.")
    assert told["mask"] == [50, 40] and told["label"] == "left lung"
    assert (tmp_path / "mask.png").is_file()  # which the card's first snippet writes
    assert CODE | MODEL - {"code.sha256"} <= hub.files("user/again").keys()  # pushed by transformers alone
    assert hub.files("user/again")["model.safetensors"] == good["model.safetensors"]
    # The card's third snippet, where our package is installed: the code is the package's then, the weights the repo's.
    hub.repos["model", REPO].commit(good)
    (command,) = re.findall(r"^tamiseg (predict .*)$", card, re.MULTILINE)
    installed = subprocess.run(
        [sys.executable, "-m", "processing.command_line", *shlex.split(command)],
        capture_output=True, text=True, cwd=tmp_path, timeout=100,
        env={**environment, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    assert installed.returncode == 0 and "found.png" in installed.stdout, installed.stderr[-2000:]
    # Saved by that process and pushed by ours: the code is all there, and the repo's receipts stay.
    (tmp_path / "saved" / "notes.txt").write_text("mine")
    assert main(["push", str(tmp_path / "saved"), REPO]) == 0
    assert hub.files(REPO).keys() == good.keys()
    assert hub.files(REPO)["README.md"] == good["README.md"]
    assert "--" not in json.loads(hub.files(REPO)["config.json"])["auto_map"]["AutoModel"]


def change_weights(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def test_receipts_never_outlive_their_weights(run, hub, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    assert main(["push", str(folder), REPO]) == 0
    score = f"{100 * json.loads((run / 'result.json').read_text())['scores']['full_text']['recall']:.2f}"
    assert score in hub.files(REPO)["README.md"].decode()
    change_weights(folder / "best")
    assert "other weights" in refused(capsys, "push", folder, REPO)
    bare = tmp_path / "bare"
    shutil.copytree(folder / "best", bare)
    assert main(["push", str(bare), REPO]) == 0
    files = hub.files(REPO)
    assert files.keys() == CODE | MODEL | {"README.md", "LICENSE", "config.yaml", ".gitattributes"}
    assert "no score is claimed" in files["README.md"].decode()
    # A card of the user's own is pushed as it is.
    (bare / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    assert main(["push", str(bare), REPO]) == 0
    assert hub.files(REPO)["README.md"].decode().endswith("# Mine\n")


@pytest.mark.parametrize(
    "faults",
    [
        [("cut", "PUT /lfs")],
        [("cut", "POST .*/commit/main")],
        [("unheard", "POST .*/commit/main")],
        [("unheard", "POST /api/repos/create"), ("unheard", "POST .*/info/lfs"), ("unheard", "PUT /lfs")],
        [("busy", "POST .*/preupload"), ("busy", "POST .*/commit"), ("cut", "GET /api/models")],
    ],
    ids=["weights cut", "commit cut", "commit unheard", "making unheard", "busy"],
)
def test_a_broken_connection_is_tried_again_and_leaves_one_commit(run, hub, faults):
    hub.faults = list(faults)
    assert main(["push", str(run), REPO]) == 0
    assert hub.faults == []
    assert len(hub.repos["model", REPO].commits) == 2
    assert hub.files(REPO).keys() == CODE | MODEL | BESIDE | {".gitattributes"}


def test_a_connection_that_stays_broken_leaves_nothing_and_no_new_version_of_a_repo(run, hub, tmp_path, capsys):
    hub.faults = [("cut", "POST .*/commit/main")] * hub_commands.TRIES
    assert "cannot be reached" in refused(capsys, "push", run, REPO)
    assert hub.files(REPO).keys() == {".gitattributes"}
    assert main(["push", str(run), REPO]) == 0  # and the next push goes on from there
    before = hub.files(REPO)
    folder = tmp_path / "best"
    shutil.copytree(run / "best", folder)
    change_weights(folder)
    hub.faults = [("busy", "POST .*/commit/main")] * hub_commands.TRIES
    assert "busy" in refused(capsys, "push", folder, REPO)
    assert hub.files(REPO) == before


def test_what_the_hub_refuses_is_one_sentence_with_its_remedy(run, hub, monkeypatch, capsys):
    assert main(["push", str(run), REPO]) == 0
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    assert "hf auth login" in refused(capsys, "push", run, REPO)
    assert "hf auth login" in refused(capsys, "push", run, "user/new")
    monkeypatch.setenv("HF_TOKEN", "hf_read")
    (run / "best" / "README.md").touch()
    assert "write role" in refused(capsys, "push", run, REPO)
    assert "write role" in refused(capsys, "push", run, "user/new")
    monkeypatch.setenv("HF_TOKEN", "hf_write")
    assert "a name of your own" in refused(capsys, "push", run, "somebody/else")
    assert "USER/NAME" in refused(capsys, "push", run, "name")
    assert "is private" in refused(capsys, "push", run, REPO, "--public")
    hub.repos["model", REPO].private = False
    assert "is public" in refused(capsys, "push", run, REPO)
    assert ("model", "user/new") not in hub.repos and len(hub.repos["model", REPO].commits) == 2


def test_a_repo_of_something_else_is_not_touched(run, hub, capsys):
    for name, content in (("bert", {"config.json": b'{"model_type": "bert"}'}), ("data", {"train.csv": b"1,2"})):
        repo = hub.repos["model", f"user/{name}"] = Repo(private=True)
        repo.commit(content)
        assert "holds no TAMISeg model" in refused(capsys, "push", run, f"user/{name}")
        assert len(repo.commits) == 1
    repo = hub.repos["model", "user/reserved"] = Repo(private=True)
    repo.commit({"README.md": b"soon"})
    assert main(["push", str(run), "user/reserved"]) == 0


def test_no_connection(run, hub, monkeypatch, capsys):
    hub.server.shutdown()
    hub.server.server_close()
    assert "cannot be reached" in refused(capsys, "push", run, REPO)
    assert "cannot be reached" in refused(capsys, "pull", REPO, run.parent / "pulled")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()  # the client of the session so far may go online
    assert "HF_HUB_OFFLINE" in refused(capsys, "push", run, REPO)
    close_session()


def test_a_model_is_asked_of_an_unreachable_hub_once(run, hub, tmp_path, monkeypatch, capsys):
    assert main(["push", str(run), REPO]) == 0
    Image.effect_noise((50, 40), 60).save(tmp_path / "a.png")
    words = ["predict", str(tmp_path / "a.png"), "--output", str(tmp_path / "mask.png"), "--overwrite", "--model"]
    assert main([*words, REPO]) == 0
    hub.server.shutdown()
    hub.server.server_close()
    assert main([*words, REPO]) == 0  # as it was fetched before
    started = time.monotonic()
    said = refused(capsys, *words, "user/other")
    assert f"there is no folder 'user/other' here, and {hub.url} cannot be reached: check the connection" in said
    with pytest.raises(ValueError, match="No model can be loaded from 'user/other'"):
        segment.Segmenter("user/other")
    with pytest.raises(ValueError, match="No model can be loaded from 'nomodel'"):
        segment.Segmenter("nomodel")
    assert segment.Segmenter(REPO).knows_examples
    assert time.monotonic() - started < 10
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    assert main([*words, REPO]) == 0
    assert "'user/other' was not fetched yet, and HF_HUB_OFFLINE forbids to" in refused(capsys, *words, "user/other")
    close_session()


def test_folders_that_cannot_be_pushed(run, hub, tmp_path, capsys):
    assert "no folder" in refused(capsys, "push", tmp_path / "nowhere", REPO)
    assert "holds no config" in refused(capsys, "push", tmp_path, REPO)
    for file, sentence in (("modeling_tamiseg.py", "no code"), ("model.safetensors", "no weights")):
        folder = tmp_path / file
        shutil.copytree(run / "best", folder)
        (folder / file).unlink()
        assert sentence in refused(capsys, "push", folder, REPO)
    stage_one = tmp_path / "stage one"
    shutil.copytree(run / "best", stage_one)
    config = json.loads((stage_one / "config.json").read_text())
    config["architectures"] = ["TAMISegForConsistencyPretraining"]
    (stage_one / "config.json").write_text(json.dumps(config))
    assert "finetune" in refused(capsys, "push", stage_one, REPO)
    assert hub.asked == []


def test_a_broken_pull_goes_on(run, hub, tmp_path, capsys):
    assert main(["push", str(run), REPO]) == 0
    folder = tmp_path / "pulled"
    hub.faults = [("cut", "HEAD .*/resolve/.*/model.safetensors")] * hub_commands.TRIES
    assert "cannot be reached" in refused(capsys, "pull", REPO, folder)
    assert folder.is_dir() and not (folder / "model.safetensors").exists()
    (folder / "notes.txt").write_text("mine")
    assert "notes.txt' is there already and no file of" in refused(capsys, "pull", REPO, folder)
    (folder / "notes.txt").unlink()
    hub.faults = [("busy", "GET .*/tree"), ("cut", "GET .*/resolve/.*/model.safetensors"), ("busy", "GET /api/models")]
    assert main(["pull", REPO, str(folder)]) == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == hub.files(REPO)


@pytest.mark.parametrize(
    "files",
    [
        ["README.md", ".cache/pip/wheel"],
        ["README.md", ".cache/huggingface/token"],
        [".cache/huggingface/download/a.metadata", ".cache/huggingface/token"],
        [".cache/huggingface/download/a.metadata", ".cache/pip/wheel"],
        [".cache/huggingface/download/a.metadata", "README.md", ".bashrc"],
    ],
    ids=["a cache", "the client's cache", "a token", "two caches", "a home"],
)
def test_a_folder_that_no_pull_left_is_not_touched(run, hub, tmp_path, capsys, files):
    assert main(["push", str(run), REPO]) == 0
    home = tmp_path / "home"
    for name in files:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("mine")
    assert "already" in refused(capsys, "pull", REPO, home)
    assert {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()} == set(files)
    assert all((home / name).read_text() == "mine" for name in files)


def test_pull_gives_the_pushed_files_and_refuses_what_is_not_there(run, hub, tmp_path, monkeypatch, capsys):
    assert main(["push", str(run), REPO]) == 0
    pinned, files = list(hub.repos["model", REPO].commits)[-1], hub.files(REPO)
    hub.repos["model", REPO].commit({**files, "README.md": b"---\na: b\n---\nlater"})
    folder = tmp_path / "pulled"
    assert main(["pull", REPO, str(folder), "--revision", pinned]) == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert "holds something already" in refused(capsys, "pull", REPO, folder)
    assert "no such revision" in refused(capsys, "pull", REPO, tmp_path / "a", "--revision", "v9")
    assert "that this token may see" in refused(capsys, "pull", "user/nobody", tmp_path / "b")
    assert main(["push", str(folder), "user/copy"]) == 0
    assert hub.files("user/copy").keys() == files.keys()
    monkeypatch.delenv("HF_TOKEN")
    assert "hf auth login" in refused(capsys, "pull", REPO, tmp_path / "c")


def test_predict_asks_a_pinned_revision(run, hub, tmp_path, capsys):
    assert main(["push", str(run), REPO]) == 0
    pinned, files = list(hub.repos["model", REPO].commits)[-1], hub.files(REPO)
    hub.repos["model", REPO].commit({**files, "config.json": b"broken by a later commit"})
    (tmp_path / "scans").mkdir()
    Image.effect_noise((50, 40), 60).save(tmp_path / "scans" / "a.png")
    words = ["predict", str(tmp_path / "scans"), "--output", str(tmp_path / "masks"), "--text", "left lung"]
    assert main([*words, "--model", REPO, "--revision", pinned]) == 0
    assert Image.open(tmp_path / "masks" / "a.png").size == (50, 40)
    assert f"{REPO}@{pinned}" in (tmp_path / "masks" / "predictions.csv").read_text()
    # None of these may take the answers of another model for its own.
    assert f"model was '{REPO}@{pinned}' and is '{REPO}'" in refused(capsys, *words, "--model", REPO)
    words.append("--overwrite")
    said = refused(capsys, *words, "--model", REPO)
    assert f"there is no folder '{REPO}' here, and '{REPO}' on the Hub holds no model that can be used" in said
    assert "v9" in refused(capsys, *words, "--model", REPO, "--revision", "v9")
    assert "is a folder" in refused(capsys, *words, "--model", run / "best", "--revision", pinned)


def test_pull_looks_at_the_code(run, hub, tmp_path, capsys):
    assert main(["push", str(run), REPO]) == 0
    files = hub.files(REPO)
    assert main(["pull", REPO, str(tmp_path / "same")]) == 0
    assert "its code is that of this installation" in capsys.readouterr().out
    changed = {**files, "losses.py": files["losses.py"] + b"print('hello')\n"}
    hub.repos["model", REPO].commit(changed)
    assert "is not what code.sha256 there lists: do not run it" in refused(capsys, "pull", REPO, tmp_path / "changed")
    # A list that was made anew hides nothing: what is installed here is another list.
    code = {name: content for name, content in changed.items() if name in CODE}
    hub.repos["model", REPO].commit({**changed, "code.sha256": hub_commands.code_hashes(code)})
    assert main(["pull", REPO, str(tmp_path / "listed")]) == 0
    assert "code that differs from this installation's: losses.py" in capsys.readouterr().out


def test_code_of_another_release_or_of_an_old_list_is_no_tampering(run, hub, tmp_path, capsys):
    assert main(["push", str(run), REPO]) == 0
    files = hub.files(REPO)
    older = {**files, "older_module.py": b"x = 1\n", "notes/mine.py": b"y = 1\n"}
    hub.repos["model", REPO].commit(older)
    assert main(["push", str(run), REPO]) == 0
    assert hub.files(REPO).keys() == older.keys() - {"older_module.py"}
    assert main(["pull", REPO, str(tmp_path / "again")]) == 0
    # As transformers' own push_to_hub leaves it: the code is new, the list is not.
    hub.repos["model", REPO].commit({**files, "code.sha256": b"0" * 64 + b"  losses.py\n"})
    capsys.readouterr()
    assert main(["pull", REPO, str(tmp_path / "listed")]) == 0
    assert "is that of this installation (code.sha256 there is out of date)" in capsys.readouterr().out


def test_a_vocabulary_goes_along_whatever_its_tokenizer_calls_it(run, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(run / "best", folder)
    told = json.loads((folder / "tokenizer_config.json").read_text())
    for tokenizer, name in (("BertweetTokenizer", "bpe.codes"), ("XLNetTokenizer", "spiece.model")):
        (folder / name).write_text("a vocabulary")
        assert name not in hub_commands.collect(folder)[1]  # of no tokenizer that is there
        (folder / "tokenizer_config.json").write_text(json.dumps({**told, "tokenizer_class": tokenizer}))
        assert name in hub_commands.collect(folder)[1]
    (folder / "tokenizer_config.json").write_text(json.dumps({**told, "tokenizer_class": "NobodyKnows"}))
    assert "tokenizer.json" in hub_commands.collect(folder)[1]


def test_result_files_that_are_not_as_they_were_written_get_one_sentence(run, hub, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    whole = json.loads((folder / "result.json").read_text())
    for content, words in (
        (b"{", "is not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (json.dumps(whole).encode().replace(b'"', b"\xff", 1), "is not in UTF-8"),
        (json.dumps({**whole, "scores": [1]}).encode(), "is not as train_hf.py and tamiseg evaluate write them"),
    ):
        (folder / "result.json").write_bytes(content)
        assert words in refused(capsys, "push", folder, REPO)
    (folder / "result.json").unlink()
    (folder / "best" / "config.json").write_bytes(b"[]")
    assert "holds no JSON object" in refused(capsys, "push", folder, REPO)


def test_space(hub, tmp_path, capsys):
    demo = tmp_path / "demo"
    (demo / "examples").mkdir(parents=True)
    (demo / "__pycache__").mkdir()
    assert "no app.py" in refused(capsys, "push-space", demo, "user/demo", "--model", REPO)
    (demo / "app.py").write_text("print('a demo')")
    (demo / "README.md").write_text("# no front matter\n")
    assert "sdk: gradio" in refused(capsys, "push-space", demo, "user/demo", "--model", REPO)
    (demo / "README.md").write_text("---\ntitle: Demo\nsdk: gradio\napp_file: app.py\n---\n# Demo\n")
    (demo / "requirements.txt").write_text("transformers\n")
    (demo / "examples" / "one.png").write_bytes(b"a picture")
    (demo / "__pycache__" / "app.py").write_text("not this one")
    (demo / "upload.dcm").write_bytes(b"somebody's scan")
    for _ in range(2):
        assert main(["push-space", str(demo), "user/demo", "--model", REPO]) == 0
    repo = hub.repos["space", "user/demo"]
    assert repo.private and repo.variables == {"TAMISEG_MODEL": REPO} and len(repo.commits) == 2
    assert hub.files("user/demo", "space").keys() == {
        ".gitattributes", "app.py", "README.md", "requirements.txt", "examples/one.png"
    }  # fmt: skip
    assert "secret HF_TOKEN" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("--dataset /home/jane/scans/qata --seed 0", "--dataset qata --seed 0"),
        ("--dataset=/home/jane/scans/qata", "--dataset=qata"),
        ("C:\\Users\\jane doe\\best", "best"),
        ("/home/jane doe/scans", "scans"),
        ("~/scans/qata", "qata"),
        ("see https://a.org/b/c and runs/a/best, ../data/x", "see https://a.org/b/c and runs/a/best, ../data/x"),
        ("and/or \n\n a \u2013 b", "and/or \n\n a \u2013 b"),
    ],
)
def test_folders_are_left_out_of_paths(text, without):
    assert hub_commands.without_folders({"a": [text, 3, None]}) == {"a": [without, 3, None]}


def test_the_licence_is_found():
    assert b"Apache License" in hub_commands.licence()
    assert hub_commands.licence() == (Path(__file__).parent.parent / "LICENSE").read_bytes()
