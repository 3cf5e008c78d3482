"""A stand-in for the Hugging Face hub on loopback: the endpoints that huggingface_hub's own client asks, over real HTTP."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_a_token_that_may_write"
LARGE = 1000
"""From this size on, files go the way of large ones. [bytes]"""


@dataclass
class Repo:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    gated: bool = False
    private: bool = False

    def commit(self, files: Mapping[str, bytes], branch: str = "main", message: str = "") -> str:
        """Adds files on top of a branch; returns the new commit."""
        whole = self.files(branch) | dict(files) if branch in self.refs else dict(files)
        content = repr(
            (sorted((name, hashlib.sha256(data).hexdigest()) for name, data in whole.items()), self.messages)
        )
        sha = hashlib.sha1(content.encode()).hexdigest()
        self.commits[sha], self.refs[branch] = whole, sha
        self.messages.append(message)
        return sha

    def at(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)

    def files(self, revision: str) -> dict[str, bytes]:
        return self.commits[self.at(revision) or ""]


class Hub(ThreadingHTTPServer):
    """The stand-in: its repositories, what it was asked, and how it fails."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        """By models/OWNER/NAME or datasets/OWNER/NAME."""
        self.uploaded: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.cut: str | None = None
        """A file of which only the first half is sent, again and again."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def repo(self, name: str, kind: str = "models") -> Repo:
        return self.repos.setdefault(f"{kind}/{name}", Repo())


class RefusedError(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Handler(BaseHTTPRequestHandler):
    """One request; the address says which endpoint."""

    protocol_version = "HTTP/1.1"
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *arguments: Any) -> None:
        """Tests are quiet."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "chunked" in (self.headers.get("Transfer-Encoding") or ""):
            self.body = self._chunks()
        try:
            for pattern, endpoint in ENDPOINTS:
                if found := re.fullmatch(pattern, path):
                    return endpoint(self, **found.groupdict())
            raise RefusedError(404, f"no endpoint {path}")
        except RefusedError as refusal:
            self._send(
                str(refusal).encode(), refusal.status, {"X-Error-Code": refusal.code, "X-Error-Message": str(refusal)}
            )

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    @property
    def _allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repo(self, kind: str, name: str) -> Repo:
        repo = self.server.repos.get(f"{kind}/{name}")
        if repo is None or (repo.private and not self._allowed):
            raise RefusedError(404 if self._allowed else 401, "Repository not found", "RepoNotFound")
        return repo

    def _revision(self, kind: str, name: str, revision: str | None) -> tuple[Repo, str]:
        repo = self._repo(kind, name)
        if (sha := repo.at(revision or "main")) is None:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repo, sha

    def _writer(self) -> None:
        if not self._allowed:
            raise RefusedError(401, "Invalid username or password.")

    def info(self, kind: str, name: str, revision: str | None = None) -> None:
        repo, sha = self._revision(kind, name, revision)
        siblings = [{"rfilename": file} for file in repo.commits[sha]]
        self._json({"id": name, "sha": sha, "siblings": siblings, "private": repo.private, "tags": []})

    def tree(self, kind: str, name: str, revision: str) -> None:
        repo, sha = self._revision(kind, name, revision)
        if repo.gated and not self._allowed:
            raise RefusedError(403, "Access to this model is restricted", "GatedRepo")
        self._json(
            [
                {"type": "file", "path": file, "size": len(data), "oid": _oid(data)}
                for file, data in repo.commits[sha].items()
            ]
        )

    def refs(self, kind: str, name: str) -> None:
        repo = self._repo(kind, name)
        named = [{"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": sha} for ref, sha in repo.refs.items()]
        self._json({"branches": named, "tags": [], "converts": []})

    def resolve(self, name: str, revision: str, file: str, kind: str | None = None) -> None:
        repo, sha = self._revision((kind or "models/").strip("/"), name, revision)
        if repo.gated and not self._allowed:
            raise RefusedError(403, "Access to this model is restricted", "GatedRepo")
        if file not in repo.commits[sha]:
            raise RefusedError(404, f"no {file}", "EntryNotFound")
        data = repo.commits[sha][file]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{_oid(data)}"', "Accept-Ranges": "bytes"}
        start = int(re.findall(r"bytes=(\d+)-", self.headers.get("Range") or "bytes=0-")[0])
        if self.command == "GET" and self.server.cut == file:
            self.send_response(200)
            for key, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        self._send(data[start:], 206 if start else 200, headers)

    def create(self) -> None:
        self._writer()
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        known = f"models/{name}" in self.server.repos
        if not known:
            self.server.repo(name).private = bool(asked.get("private")) or asked.get("visibility") == "private"
            self.server.repo(name).commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        self._json({"url": f"{self.server.url}/{name}", "name": name, "id": name}, 409 if known else 200)

    def branch(self, kind: str, name: str, branch: str) -> None:
        self._writer()
        repo = self._repo(kind, name)
        known = branch in repo.refs
        if not known:
            repo.refs[branch] = repo.refs["main"]
        self._json({}, 409 if known else 200)

    def preupload(self, kind: str, name: str, revision: str) -> None:
        self._writer()
        asked = json.loads(self.body)["files"]
        modes = [
            {"path": file["path"], "uploadMode": "lfs" if file["size"] >= LARGE else "regular", "shouldIgnore": False}
            for file in asked
        ]
        self._json({"files": modes, "commitOid": self._revision(kind, name, revision)[1]})

    def batch(self, name: str) -> None:
        self._writer()
        asked = json.loads(self.body)["objects"]
        objects = [
            {
                "oid": one["oid"],
                "size": one["size"],
                "actions": {"upload": {"href": f"{self.server.url}/storage/{one['oid']}", "header": {}}},
            }
            for one in asked
        ]
        self._json({"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.uploaded[oid] = self.body
        self._send(b"")

    def commit(self, kind: str, name: str, revision: str) -> None:
        self._writer()
        repo, _ = self._revision(kind, name, revision)
        lines = [json.loads(line) for line in self.body.splitlines()]
        files, message = {}, ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.uploaded[value["oid"]]
        sha = repo.commit(files, revision, message)
        self._json({"commitUrl": f"{self.server.url}/{name}/commit/{sha}", "commitOid": sha, "success": True})

    def validate(self) -> None:
        """The hub's rules for the entries that we write."""
        head = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], re.S)
        values = yaml.safe_load(head[1]) if head else None
        if not isinstance(values, dict) or not isinstance(values.get("license", ""), str):
            raise RefusedError(400, "Invalid metadata in README.md")
        for index in values.get("model-index", []):
            for result in index["results"]:
                assert result["task"]["type"] and result["dataset"]["name"] and result["metrics"][0]["type"]
        self._json({"errors": [], "warnings": []})


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


_REPO = r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)"
ENDPOINTS = (
    (_REPO, Handler.info),
    (rf"{_REPO}/revision/(?P<revision>.+)", Handler.info),
    (rf"{_REPO}/tree/(?P<revision>[^/]+)/?", Handler.tree),
    (rf"{_REPO}/refs", Handler.refs),
    (rf"{_REPO}/branch/(?P<branch>.+)", Handler.branch),
    (rf"{_REPO}/preupload/(?P<revision>.+)", Handler.preupload),
    (rf"{_REPO}/commit/(?P<revision>.+)", Handler.commit),
    (r"/api/repos/create", Handler.create),
    (r"/api/validate-yaml", Handler.validate),
    (r"/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)", Handler.resolve),
    (r"/(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch", Handler.batch),
    (r"/storage/(?P<oid>\w+)", Handler.store),
)


@contextmanager
def serving() -> Iterator[Hub]:
    """Runs a stand-in for as long as the block."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
