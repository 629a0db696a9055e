# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""A Hub on the loopback interface, of the standard library alone: what a push, a load and a pull ask of the real one.

Repositories with commits, small files in the commit and large ones by LFS, tokens that may write or only read, private
repositories, and connections that break on demand. It can prove nothing about xet, gating, the real server's rules,
widgets or the build of a Space.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


TOKENS = {"hf_write": "write", "hf_read": "read"}  # both are of USER
USER = "user"
KINDS = {"model": "", "space": "spaces/"}


@dataclass
class Repo:
    """One repository; `commits` maps each commit hash to its files, oldest first, a file being its whole content."""

    private: bool
    variables: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits[sha] = files
        return sha

    def resolve(self, revision: str) -> str | None:
        if revision == "main":
            return list(self.commits)[-1]
        return revision if revision in self.commits else None


class LoopbackHub:
    """`with LoopbackHub() as hub:` serves at `hub.url` until the block ends.

    Attributes:
        repos: by `("model" or "space", "user/name")`.
        faults: what goes wrong with the next requests, as pairs `(how, pattern)`, each used once. A request whose
            "METHOD path" the pattern matches is `"cut"` (half of its body is read, then the connection breaks),
            `"unheard"` (done, but the answer is lost) or `"busy"` (answered by 503).
        asked: "METHOD path" of all requests, in their order.
    """

    def __init__(self):
        self.repos: dict[tuple[str, str], Repo] = {}
        self.large_files: dict[str, bytes] = {}
        self.faults: list[tuple[str, str]] = []
        self.asked: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()

    def files(self, name: str, kind: str = "model") -> dict[str, bytes]:
        """The newest files of a repository."""
        return list(self.repos[kind, name].commits.values())[-1]

    def take_fault(self, request: str) -> str | None:
        for how, pattern in self.faults:
            if re.search(pattern, request):
                self.faults.remove((how, pattern))
                return how
        return None


def connect(hub: LoopbackHub, monkeypatch, cache) -> None:
    """Makes this process a client of the hub, with a token that may write. What the client reads from its environment
    at import is set by hand."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", "hf_write")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub

    def log_message(self, *message):
        pass  # pytest's output is for the tests

    def answer(self):
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        self.hub.asked.append(request)
        self.fault = self.hub.take_fault(request)
        if self.fault == "cut":
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            return self.break_connection()
        self.body = self.read_body()
        if self.fault == "busy":
            return self.say(503, {"error": "busy"})
        self.role = TOKENS.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))
        if self.headers.get("Authorization") and self.role is None:
            return self.refuse(401, "Invalid credentials in Authorization header")
        for method, pattern, act in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method.split("|"):
                return act(self, **match.groupdict())
        return self.refuse(404, "Not here", "EntryNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def break_connection(self):
        self.close_connection = True
        self.connection.close()

    def say(self, status: int, content, headers=()):
        if self.fault == "unheard":
            return self.break_connection()
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status: int, message: str, code: str | None = None):
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self.say(status, {"error": message}, headers)

    def find(self, kind: str, name: str, revision: str = "main"):
        """The repository and the commit, or None after a refusal: the real Hub hides what one may not see."""
        repo = self.hub.repos.get((kind, name))
        if repo is None or (repo.private and self.role is None):
            return self.refuse(401 if self.role is None else 404, "Repository not found", "RepoNotFound")
        sha = repo.resolve(revision)
        if sha is None:
            return self.refuse(404, "Invalid rev id", "RevisionNotFound")
        return repo, sha

    def may_write(self) -> bool:
        if self.role == "write":
            return True
        self.refuse(403 if self.role else 401, "You don't have the rights: the token must have write access")
        return False

    # What is asked, one method each.

    def create(self):
        asked = json.loads(self.body)
        kind, name = asked.get("type", "model"), f"{asked['organization'] or USER}/{asked['name']}"
        if not self.may_write():
            return
        if not name.startswith(USER + "/"):
            return self.refuse(403, f"You don't have the rights to create a {kind} under the namespace")
        url = f"{self.hub.url}/{KINDS[kind]}{name}"
        if (kind, name) in self.hub.repos:
            return self.say(409, {"error": "You already created this repo", "url": url})
        variables = {variable["key"]: variable["value"] for variable in asked.get("variables", ())}
        repo = self.hub.repos[kind, name] = Repo(asked.get("visibility") == "private", variables)
        repo.commit({".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        self.say(200, {"url": url, "name": name})

    def check_card(self):
        card = json.loads(self.body)["content"]
        if re.match(r"---\n(.*\n)+---\n", card):
            return self.say(200, {"errors": [], "warnings": []})
        self.say(400, {"errors": [{"message": "there is no front matter"}], "warnings": []})

    def info(self, kind, name, revision="main"):
        if found := self.find(kind, name, revision):
            repo, sha = found
            siblings = [{"rfilename": path} for path in repo.commits[sha]]
            self.say(200, {"id": name, "sha": sha, "private": repo.private, "tags": [], "siblings": siblings})

    def tree(self, kind, name, revision, folder=None):
        if found := self.find(kind, name, revision):
            repo, sha = found
            files = repo.commits[sha]
            if folder is not None and not any(path.startswith(folder + "/") for path in files):
                return self.refuse(404, "Entry not found", "EntryNotFound")
            entries = [self.entry(path, content) for path, content in files.items()]
            self.say(200, [entry for entry in entries if entry["path"].startswith(folder or "")])

    def entry(self, path, content):
        entry = {"type": "file", "path": path, "size": len(content), "oid": blob_hash(content)}
        if is_large(path):
            sha256 = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
        return entry

    def preupload(self, kind, name, revision):
        if (found := self.find(kind, name, revision)) and self.may_write():
            repo, sha = found
            files = []
            for file in json.loads(self.body)["files"]:
                path = file["path"]
                entry = {"path": path, "uploadMode": "lfs" if is_large(path) else "regular", "shouldIgnore": False}
                if path in repo.commits[sha]:
                    there = self.entry(path, repo.commits[sha][path])
                    entry["oid"] = there["lfs"]["oid"] if is_large(path) else there["oid"]
                files.append(entry)
            self.say(200, {"files": files})

    def batch(self, name):
        if self.may_write():
            objects = []
            for asked in json.loads(self.body)["objects"]:
                upload = {"upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}", "header": {}}}
                known = asked["oid"] in self.hub.large_files
                objects.append(asked if known else {**asked, "actions": upload})
            self.say(200, {"transfer": "basic", "objects": objects})

    def store(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.refuse(400, "the content is not what was announced")
        self.hub.large_files[oid] = self.body
        self.say(200, {})

    def commit(self, kind, name, revision):
        if (found := self.find(kind, name, revision)) and self.may_write():
            repo, sha = found
            files = dict(repo.commits[sha])
            for line in self.body.splitlines():
                line = json.loads(line)
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.hub.large_files[value["oid"]]
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            oid = repo.commit(files)
            url = f"{self.hub.url}/{KINDS[kind]}{name}/commit/{oid}"
            self.say(200, {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def set_variable(self, name):
        if (found := self.find("space", name)) and self.may_write():
            asked = json.loads(self.body)
            found[0].variables[asked["key"]] = asked["value"]
            self.say(200, {asked["key"]: {"value": asked["value"]}})

    def resolve(self, prefix, name, revision, path):
        kind = "space" if prefix else "model"
        if found := self.find(kind, name, revision):
            repo, sha = found
            if path not in repo.commits[sha]:
                return self.refuse(404, "Entry not found", "EntryNotFound")
            content = repo.commits[sha][path]
            entry = self.entry(path, content)
            headers = {"X-Repo-Commit": sha, "ETag": f'"{entry["oid"]}"'}
            if "lfs" in entry:
                headers |= {"X-Linked-Etag": f'"{entry["lfs"]["oid"]}"', "X-Linked-Size": str(len(content))}
            self.say(200, content, headers)


def is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".png"))


def blob_hash(content: bytes) -> str:
    """The name git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


_REPO, _API = r"(?P<name>[^/]+/[^/]+)", r"/api/(?P<kind>model|space)s/(?P<name>[^/]+/[^/]+)"
ROUTES = (
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.check_card),
    ("GET", _API, _Handler.info),
    ("GET", _API + r"/revision/(?P<revision>[^/]+)", _Handler.info),
    ("GET", _API + r"/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", _Handler.tree),
    ("POST", _API + r"/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ("POST", r"/(spaces/)?" + _REPO + r"\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", _Handler.store),
    ("POST", _API + r"/commit/(?P<revision>[^/]+)", _Handler.commit),
    ("POST", r"/api/spaces/" + _REPO + r"/variables", _Handler.set_variable),
    ("GET|HEAD", r"/(?P<prefix>(spaces/)?)" + _REPO + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
)
