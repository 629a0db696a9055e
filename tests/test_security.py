# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""What SECURITY.md promises: nothing is unpickled, no shell, no network unless asked, small code beside a model."""

import ast
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from processing.command_line import main
from processing.hub import code_hashes
from processing.predict import SHIPPED_MODEL, load
from tests.test_command_line import save_tiny_model


ROOT = Path(__file__).parent.parent
SOURCES = [
    path
    for place in ("modeling_tamiseg", "processing", "spaces_demo", "experiments", "train_hf.py")
    for path in sorted([ROOT / place] if place.endswith(".py") else (ROOT / place).rglob("*.py"))
]
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
STARTERS = {"subprocess", "pty", "popen2"}
# A call by its last two names -> the keyword without which it is dangerous, None where it always is.
CALLS = {
    "eval": None,
    "exec": None,
    "os.system": None,
    "os.popen": None,
    "yaml.load": None,
    "yaml.unsafe_load": None,
    "pandas.read_pickle": None,
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
# What code beside a model may import: the user must have it anyway, and none of it starts programs or talks.
BESIDE_A_MODEL = {"torch", "transformers", "huggingface_hub", "numpy", "PIL"} | {
    "__future__", "collections", "contextlib", "copy", "dataclasses", "functools", "inspect", "io", "itertools",
    "math", "os", "pathlib", "re", "types", "typing", "warnings", "weakref",
}  # fmt: skip


def name_of(node: ast.expr) -> str:
    """`torch.load` of a call's function; the last name alone where it is not that of a module."""
    if isinstance(node, ast.Attribute):
        return f"{node.value.id}.{node.attr}" if isinstance(node.value, ast.Name) else f"?.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found


def dangers(source: str) -> set[str]:
    tree = ast.parse(source)
    found = imports(tree) & (UNPICKLERS | STARTERS)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        keywords = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
        name = name_of(node.func)
        if name in CALLS and (CALLS[name] is None or keywords.get(CALLS[name][0]) is not CALLS[name][1]):
            found.add(name)
        if keywords.get("shell") or keywords.get("trust_remote_code"):
            found.add(name)
    return found


@pytest.mark.parametrize(
    "line",
    ["import pickle", "from dill import loads", "torch.load(path)", "torch.load(path, weights_only=False)", "eval(x)"]
    + ["os.system(x)", "run(x, shell=True)", "AutoModel.from_pretrained(x, trust_remote_code=True)", "yaml.load(x)"]
    + ["np.load(x, allow_pickle=True)", "import subprocess"],
)
def test_the_search_finds_what_it_is_for(line):
    assert dangers(line)
    assert not dangers("torch.load(path, weights_only=True); model.eval(); yaml.safe_load(x); re.compile(x)")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_is_unpickled_and_no_program_is_started(path):
    # The matrix starts train_hf.py and `tamiseg evaluate`, without a shell.
    expected = {"subprocess"} if path == ROOT / "experiments" / "matrix.py" else set()
    assert dangers(path.read_text(encoding="utf-8")) == expected


def test_code_beside_a_model_is_small_listed_and_needs_nothing_else():
    code = {path.name: path for path in SHIPPED_MODEL.glob("*.py")}
    assert sum(path.stat().st_size for path in code.values()) < 128 * 1024
    for path in code.values():
        assert imports(ast.parse(path.read_text(encoding="utf-8"))) <= BESIDE_A_MODEL, path.name
    assert (SHIPPED_MODEL / "code.sha256").read_bytes() == code_hashes(code), (
        "run in checkpoints/tamiseg-mobile-qata: LC_ALL=C sha256sum *.py > code.sha256"
    )


QUIET = """
import os, sys
def watch(event, arguments):
    if event.startswith(("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "urllib.", "ftplib.")):
        if event not in ("socket.__new__", "socket.gethostname"):
            raise SystemExit(f"{event} {arguments}")
    writes = event == "open" and isinstance(arguments[1], str) and set("wax+") & set(arguments[1])
    if writes and arguments[0] != os.devnull:
        raise SystemExit(f"{event} {arguments}")
sys.addaudithook(watch)
import modeling_tamiseg, processing, processing.command_line
print("quiet")
"""


def test_importing_asks_nobody_and_writes_nothing(tmp_path):
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf")}
    run = subprocess.run(
        [sys.executable, "-B", "-c", QUIET], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
    )
    assert run.stdout == "quiet\n", run.stderr
    assert list(tmp_path.iterdir()) == []


class Trap:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_and_pickles_in_a_models_folder_are_left_alone(tmp_path, capsys):
    folder, sprung = tmp_path / "model", tmp_path / "sprung"
    save_tiny_model(folder)
    for path in folder.glob("*.py"):
        path.write_text(f"open({str(sprung)!r}, 'w')\n" + path.read_text())
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(sprung)))
    model, _ = load(str(folder))
    assert not sprung.exists() and torch.is_tensor(next(model.parameters()))
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(ValueError, match="holds no model that can be used"):
        load(str(folder))
    # A kind of model that only its own code knows.
    (folder / "other.safetensors").rename(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "unknown"}))
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"")
    assert main(["predict", str(picture), "--model", str(folder), "--output", str(tmp_path / "mask.png")]) == 2
    assert not sprung.exists() and "no model that can be used" in capsys.readouterr().err
