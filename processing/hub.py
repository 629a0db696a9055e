# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""`tamiseg push`, `pull` and `push-space`: a trained model to the Hub and back. A push is one commit, so that a repo
holds all of it or nothing; it is private unless told otherwise, and uploads no file that is not part of a model."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import time
from collections.abc import Callable
from contextlib import contextmanager
from fnmatch import fnmatch
from importlib.metadata import distribution
from pathlib import Path, PurePosixPath, PureWindowsPath
from shutil import rmtree

import yaml  # which the Hub client needs too

from .model_card import MARK, as_written, model_card
from .predict import check_model_folder
from .reading import read_json, sha256


# Whatever else lies in a model's folder stays at home: masks and pictures of patients are easily written there.
MODEL_FILES = ("config.json", "processor_config.json", "preprocessor_config.json", "model*.safetensors",
               "model.safetensors.index.json", "tokenizer*.json", "special_tokens_map.json", "added_tokens.json",
               "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "*.py")  # fmt: skip
RUN_FILES = ("README.md", "LICENSE", "config.yaml", "metrics.jsonl", "curves.png", "examples.png", "result*.json")
# Receipts: what they say is true of one set of weights only.
RECEIPTS = ("README.md", "metrics.jsonl", "curves.png", "examples.png", "result*.json")
SPACE_FILES = ("*.py", "*.txt", "*.md", "*.css", "*.js", "*.png", "*.jpg", "*.jsonl", "*.json", "LICENSE")
CODE_HASHES = "code.sha256"  # what `sha256sum -c` reads
PULL_NOTES = ("download", "trees", ".gitignore", ".gitignore.lock", "CACHEDIR.TAG")  # of the Hub's client
TRIES, FIRST_WAIT = 5, 1.0  # seconds, doubled before each further try


def add_command(commands) -> None:
    """Adds `push`, `pull` and `push-space` to the subcommands of `tamiseg`."""
    command = commands.add_parser("push", help="upload a trained model to the Hub, private unless --public")
    command.add_argument("folder", help="folder of a training run, its best/, or any folder of a saved model")
    command.add_argument("repo", help="USER/NAME on the Hub; made if it is not there")
    command.add_argument("--public", action="store_true", help="let everybody see it")
    command.set_defaults(run=lambda arguments: push(arguments.folder, arguments.repo, arguments.public))

    command = commands.add_parser("pull", help="download a model from the Hub into a folder")
    command.add_argument("repo", help="USER/NAME on the Hub")
    command.add_argument("folder", help="folder to write, which must not hold anything yet")
    command.add_argument("--revision", help="commit, tag or branch; the newest commit if left out")
    command.set_defaults(run=lambda arguments: pull(arguments.repo, arguments.folder, arguments.revision))

    command = commands.add_parser("push-space", help="upload a demo to the Hub as a Space, private unless --public")
    command.add_argument("folder", help="folder with app.py and README.md, such as spaces_demo")
    command.add_argument("repo", help="USER/NAME of the Space; made if it is not there")
    command.add_argument("--model", required=True, help="USER/NAME of the model that it shows")
    command.add_argument("--public", action="store_true", help="let everybody see it")
    command.set_defaults(
        run=lambda arguments: push_space(arguments.folder, arguments.repo, arguments.model, arguments.public)
    )


def push(folder: str | Path, repo_id: str, public: bool = False) -> str:
    """Uploads a model with its processor, code, card, curves, config and licence in one commit.

    The card is written anew from the result files, unless the folder has a README.md without the generated card's
    mark. Folders are left out of absolute paths in what is uploaded: a repo tells what was done, not where one lives.

    Args:
        folder: the output folder of a training run, its `best/`, or any folder of a saved model.
        repo_id: `USER/NAME`. An existing repo must hold a TAMISeg model, or nothing yet.
        public: whether everybody may see it; must agree with what an existing repo is.

    Returns:
        The hash of the commit.

    Raises:
        ValueError: no model, receipts of other weights, a repo of something else, a token that is refused.
        OSError: no connection.
    """
    from huggingface_hub import HfApi

    model_folder, files = collect(Path(folder))
    weights = {name: path for name, path in files.items() if name.endswith(".safetensors")}
    results = [json.loads(read(content)) for name, content in files.items() if fnmatch(name, "result*.json")]
    if "model.safetensors" in files:
        told = {result.get("weights_sha256") for result in results}
        if told - {sha256(files["model.safetensors"])}:
            raise ValueError(
                f"a result file of '{folder}' tells of other weights than its model.safetensors: evaluate these "
                "weights, or move the file away."
            )
    beside = {path.name for path in model_folder.iterdir() if path.is_file() and not path.name.startswith(".")}
    left_out = sorted(beside - files.keys())

    there = reserve(repo_id, public)
    api = HfApi()
    with in_plain_words(repo_id):
        # Weights under another name, and modules that another release had: the list of the code would miss them.
        old = {name for name in there if name.endswith(".safetensors") or fnmatch(name, "*.py") and "/" not in name}
        stale = old - files.keys()
        if "README.md" not in files or MARK.encode() in read(files["README.md"]):
            files.pop("README.md", None)
            # A model that was loaded and saved again comes without receipts. Those of the repo stay true as long as
            # the weights are the same; they do not survive other weights.
            if results or not same_weights(api, repo_id, weights):
                pictures = {name: name for name in files if name.endswith(".png")}
                with as_written(f"a result file of '{folder}'"):
                    files["README.md"] = model_card(results, repo_id, pictures).encode()
                stale |= {name for name in there if is_any_of(name, RECEIPTS) and name not in files}
        sha = commit(api, repo_id, "model", files, stale)
    print(f"pushed {len(files)} files to {api.endpoint}/{repo_id} ({'public' if public else 'private'}), commit {sha}")
    if left_out:
        print(f"left out, no part of a model: {', '.join(left_out)}")
    print(f'load it with AutoModel.from_pretrained("{repo_id}", revision="{sha}", trust_remote_code=True)')
    return sha


def reserve(repo_id: str, public: bool = False) -> list[str]:
    """Makes the repo where there is none, or checks that ours may go there: better before a training than after it.

    Returns:
        The names of the files that are in it.

    Raises:
        ValueError, OSError: as `push`.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with in_plain_words(repo_id):
        there = open_repo(api, repo_id, "model", public)
        if there and not is_model(api, repo_id, there):
            raise ValueError(f"'{repo_id}' exists and holds no TAMISeg model: choose another name.")
    return there


def pull(repo_id: str, folder: str | Path, revision: str | None = None) -> None:
    """Downloads a model into a new or empty folder, or goes on with one that a broken pull left.

    Raises:
        ValueError: the folder holds something else, there is no such repo, revision or model in it, or its code is not
            the code that it lists.
        OSError: no connection.
    """
    from huggingface_hub import HfApi

    folder = Path(folder)
    notes = folder / ".cache" / "huggingface"
    if folder.exists() and not (folder.is_dir() and ((notes / "download").is_dir() or not any(folder.iterdir()))):
        raise ValueError(f"'{folder}' holds something already: give a new folder.")
    check_name(repo_id)
    api = HfApi()
    with in_plain_words(repo_id):
        info = retried(lambda: api.repo_info(repo_id, revision=revision))
        names = {file.rfilename for file in info.siblings}
        if (stranger := find_stranger(folder, names)) is not None:
            raise ValueError(f"'{stranger}' is there already and no file of '{repo_id}': give a new folder.")

        def download():
            api.snapshot_download(repo_id, revision=info.sha, local_dir=folder)
            # Where the Hub stops to answer, the client is content with the files that are there already.
            if any(not (folder / name).is_file() for name in names):
                raise ConnectionError("not all files have come")

        retried(download)
    rmtree(notes)
    if not any(notes.parent.iterdir()):
        notes.parent.rmdir()
    check_model_folder(str(folder))
    print(f"{repo_id} is in {folder}; {check_code(folder)}")


def find_stranger(folder: Path, names: set[str]) -> Path | None:
    """What a broken pull of files of these names cannot have left in a folder; None where there is nothing else."""
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        noted = parts[:2] == (".cache", "huggingface") and (len(parts) == 2 or parts[2] in PULL_NOTES)
        # A folder is judged by what is in it.
        if not noted and "/".join(parts) not in names and not (path.is_dir() and not path.is_symlink()):
            return path
    return None


def push_space(folder: str | Path, repo_id: str, model: str, public: bool = False) -> str:
    """Uploads a demo as a Space in one commit, and tells it by the variable TAMISEG_MODEL which model to show.

    Returns:
        The hash of the commit.

    Raises:
        ValueError: the folder is no Gradio demo, or a token is refused.
        OSError: no connection.
    """
    from huggingface_hub import HfApi, ModelCard

    folder = Path(folder)
    for name in ("app.py", "README.md"):
        if not (folder / name).is_file():
            raise ValueError(f"'{folder}' has no {name}: give the folder of the demo, such as spaces_demo.")
    if ModelCard.load(folder / "README.md", ignore_metadata_errors=True).data.get("sdk") != "gradio":
        raise ValueError(f"the front matter of '{folder / 'README.md'}' lacks 'sdk: gradio': add it.")
    files = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and is_any_of(path.name, SPACE_FILES)
        and not any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)
    }
    check_name(model)
    api = HfApi()
    with in_plain_words(repo_id):
        there = open_repo(api, repo_id, "space", public)
        if there and "app.py" not in there and set(there) - {".gitattributes", "README.md"}:
            raise ValueError(f"the Space '{repo_id}' exists and has no app.py: choose another name.")
        retried(lambda: api.add_space_variable(repo_id, "TAMISEG_MODEL", model))
        sha = commit(api, repo_id, "space", files)
    print(f"pushed {len(files)} files to {api.endpoint}/spaces/{repo_id}, commit {sha}; it shows {model}")
    print(f"if {model} is private, add a secret HF_TOKEN that may read it in the settings of the Space")
    return sha


def collect(folder: Path) -> tuple[Path, dict[str, Path | bytes]]:
    """The folder of the model, and what is to be uploaded: names in the repo, with a path or the content itself."""
    if (folder / "best" / "config.json").is_file():
        folder = folder / "best"
    if not folder.is_dir():
        raise ValueError(f"there is no folder '{folder}': give the output folder of a training run, or its best/.")
    check_model_folder(str(folder))
    if not (folder / "modeling_tamiseg.py").is_file():
        raise ValueError(
            f"'{folder}' holds no code (modeling_tamiseg.py), so nobody could load it: save the model anew with "
            "save_pretrained, after `import modeling_tamiseg`."
        )
    if read_json(folder / "config.json").get("architectures") != ["TAMISegForImageSegmentation"]:
        raise ValueError(f"'{folder}' is no model that segments: push the result of the finetune stage.")
    # What lies in the run's folder, beside best/, belongs to the model too; what lies in best/ comes first.
    places = [(folder, MODEL_FILES + RUN_FILES + tokenizer_files(folder))]
    if folder.resolve().name == "best":
        places.insert(0, (folder.resolve().parent, RUN_FILES))
    files: dict[str, Path | bytes] = {}
    for place, patterns in places:
        for path in sorted(place.iterdir()):
            if path.is_file() and is_any_of(path.name, patterns):
                files[path.name] = path
    for name in files:
        if name.endswith("config.json") or fnmatch(name, "result*.json"):
            content = read_json(files[name])
            if isinstance(command := content.get("command"), str):
                content["command"] = shlex.join(without_folders(shlex.split(command)))
            if without_folders(content) != content:
                files[name] = (json.dumps(without_folders(content), indent=2) + "\n").encode()
        elif name == "config.yaml":
            content = yaml.safe_load(files[name].read_text(encoding="utf-8"))
            files[name] = yaml.safe_dump(without_folders(content), sort_keys=False).encode()
    files.setdefault("LICENSE", licence())
    files[CODE_HASHES] = code_hashes(files)
    return folder, files


def tokenizer_files(folder: Path) -> tuple[str, ...]:
    """The names by which the tokenizer of a model's folder reads its vocabulary; none where nobody knows it."""
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    told = folder / "tokenizer_config.json"
    name = read_json(told).get("tokenizer_class") if told.is_file() else None
    tokenizer = tokenizer_class_from_name(name) if isinstance(name, str) else None
    return () if tokenizer is None else tuple(tokenizer.vocab_files_names.values())


def code_hashes(files: dict[str, Path | bytes]) -> bytes:
    """The list that lies beside a model's code: the SHA-256 and the name of each of its files."""
    code = sorted(name for name in files if name.endswith(".py"))
    return "".join(f"{hashlib.sha256(read(files[name])).hexdigest()}  {name}\n" for name in code).encode()


def list_code(folder: Path) -> None:
    """Writes the list of the code that lies in a model's folder."""
    (folder / CODE_HASHES).write_bytes(code_hashes({path.name: path for path in folder.glob("*.py")}))


def check_code(folder: Path) -> str:
    """Says whether the code that lies with a model is the one that is installed here.

    Raises:
        ValueError: it is neither the installed code nor that of its own list.
    """
    listed = folder / CODE_HASHES
    code = {path.name: path for path in folder.glob("*.py")}
    package = Path(__file__).parent
    ours = [*package.glob("*.py"), *(package.parent / "modeling_tamiseg").glob("*.py")]
    known = {path.name: sha256(path) for path in ours if path.name != "__init__.py"}
    others = sorted(name for name, path in code.items() if known.get(name) != sha256(path))
    as_listed = not listed.is_file() or listed.read_bytes() == code_hashes(code)
    if not others:
        # transformers' own push_to_hub writes the code anew and leaves the list of the push before.
        return "its code is that of this installation" + (
            "" if as_listed else f" ({CODE_HASHES} there is out of date)"
        )
    if not as_listed:
        raise ValueError(
            f"the code in '{folder}' is not what {CODE_HASHES} there lists: do not run it; pull it again, or have it "
            f"pushed again by `tamiseg push` ({', '.join(others)} differ from this installation's)."
        )
    return f"code that differs from this installation's: {', '.join(others)} (read it before trust_remote_code=True)"


def without_folders(value):
    """Leaves of each absolute path its last part, in the strings of a parsed JSON or YAML file."""
    if isinstance(value, dict):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_folders(item) for item in value]
    if not isinstance(value, str):
        return value
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(value).is_absolute():
            return kind(value).name
    return re.sub(r"(?<![\w:/.])(?:~|[A-Za-z]:)?[\\/]+(?:[^\s\"'=,\\/]+[\\/]+)+", "", value)


def licence() -> bytes:
    """The text of our own licence, from the checkout or the installed package."""
    checkout = Path(__file__).parent.parent / "LICENSE"
    if checkout.is_file():
        return checkout.read_bytes()
    return distribution("tamiseg").read_text("licenses/LICENSE").encode()


def read(file: Path | bytes) -> bytes:
    return file if isinstance(file, bytes) else file.read_bytes()


def is_any_of(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def check_name(repo_id: str) -> None:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ValueError(f"'{repo_id}' is no name on the Hub: write it as USER/NAME.")


def open_repo(api, repo_id: str, kind: str, public: bool) -> list[str]:
    """Makes the repo where it is missing; the names of the files that are in it."""
    from huggingface_hub.errors import RepositoryNotFoundError

    check_name(repo_id)
    try:
        info = retried(lambda: api.repo_info(repo_id, repo_type=kind))
    except RepositoryNotFoundError:
        sdk = {"space_sdk": "gradio"} if kind == "space" else {}
        # A try whose answer was lost has made it: hence exist_ok.
        retried(lambda: api.create_repo(repo_id, repo_type=kind, private=not public, exist_ok=True, **sdk))
        return []
    if public and info.private:
        raise ValueError(f"'{repo_id}' is private: leave --public out, or make it public in its settings first.")
    if not public and not info.private:
        raise ValueError(f"'{repo_id}' is public: add --public if everybody may see this, or choose another name.")
    return [file.rfilename for file in info.siblings]


def is_model(api, repo_id: str, there: list[str]) -> bool:
    """Whether a repo holds a model of ours, or nothing yet."""
    if "config.json" not in there:
        return set(there) <= {".gitattributes", "README.md", "LICENSE"}
    config = retried(lambda: api.hf_hub_download(repo_id, "config.json"))
    return json.loads(Path(config).read_text()).get("model_type") == "tamiseg"


def same_weights(api, repo_id: str, weights: dict[str, Path]) -> bool:
    """Whether the repo holds these very weights."""
    there = {
        entry.path: entry.lfs and entry.lfs.sha256
        for entry in retried(lambda: list(api.list_repo_tree(repo_id)))
        if entry.path.endswith(".safetensors")
    }
    return there == {name: sha256(path) for name, path in weights.items()}


def commit(api, repo_id: str, kind: str, files: dict[str, Path | bytes], stale=frozenset()) -> str:
    """One commit. `upload_folder` may make several, and break off between them."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    def send():
        # Made anew for each try, which asks what is there by then: a commit whose answer was lost is not made twice.
        changes = [CommitOperationAdd(name, content) for name, content in sorted(files.items())]
        if stale:
            gone = stale.intersection(api.list_repo_files(repo_id, repo_type=kind))
            changes += [CommitOperationDelete(name) for name in sorted(gone)]
        return api.create_commit(repo_id, changes, commit_message="Push by tamiseg", repo_type=kind).oid

    return retried(send)


def retried(ask: Callable):
    """Asks again where the connection broke or the server was busy."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    for wait in [*(FIRST_WAIT * 2**turn for turn in range(TRIES - 1)), None]:
        try:
            return ask()
        except (HTTPError, OSError, RuntimeError) as error:
            # The client reports the trouble of a large file as a RuntimeError, with what happened as its cause.
            trouble = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
            if isinstance(trouble, HfHubHTTPError):
                passing = trouble.response.status_code >= 500 or trouble.response.status_code == 429
            else:
                passing = isinstance(trouble, (HTTPError, ConnectionError, TimeoutError, RuntimeError))
            if wait is None or not passing or isinstance(trouble, OfflineModeIsEnabled):
                raise trouble from None
            time.sleep(wait)


@contextmanager
def in_plain_words(repo_id: str):
    """Turns what the Hub refuses into one sentence with its remedy."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except RevisionNotFoundError as error:
        raise ValueError(f"'{repo_id}' has no such revision: give a commit, tag or branch of it.") from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"there is no '{repo_id}' that this token may see: check the name, and log in with `hf auth login` if it "
            "is private."
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            raise ValueError(
                "the Hub does not know this token, or there is none: log in with `hf auth login`."
            ) from error
        if status == 403:
            raise ValueError(
                f"this token may not write to '{repo_id}': take one with the write role, and a name of your own or "
                "of an organisation that you belong to."
            ) from error
        said = error.server_message or f"status {status}"
        raise ValueError(f"the Hub refused '{repo_id}' ({said}): try again later.") from error
    except OfflineModeIsEnabled as error:
        raise OSError("HF_HUB_OFFLINE forbids to ask the Hub: unset it.") from error
    except (HTTPError, LocalEntryNotFoundError, ConnectionError, TimeoutError, RuntimeError) as error:
        if constants.HF_HUB_OFFLINE:
            raise OSError(f"'{repo_id}' was not fetched yet, and HF_HUB_OFFLINE forbids to: unset it.") from error
        raise OSError(f"{constants.ENDPOINT} cannot be reached: check the connection and try again.") from error
