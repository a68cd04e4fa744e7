"""What uploads use of the Hugging Face Hub's protocol, on loopback: repositories in memory, every
request written down.

Made after the requests that huggingface_hub sends: create, list, preupload, LFS batch, upload to
the given address, commit as newline-separated JSON.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_loopback-never-shown"
API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)/(\w+)(?:/([^/?]+))?")
BATCH = re.compile(r"/(?:datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch")


@dataclass
class Repository:
    """A repository's files after each commit."""

    kind: str
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)


@dataclass
class Hub:
    """What the server has, and how it fails when told to."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    seen: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of every request."""
    refuse: dict[str, int] = field(default_factory=dict)
    """Word in a path -> status to answer."""

    @property
    def environment(self) -> dict[str, str]:
        """For a process that is to use this Hub."""
        return {
            "HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*",
        }  # fmt: skip


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A running Hub."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing on stderr."""

        def do_GET(self) -> None:  # noqa: N802
            self._serve()

        do_POST = do_PUT = do_GET  # noqa: N815

        def _serve(self) -> None:
            body = self._body()
            path = self.path.partition("?")[0]
            hub.seen.append((self.command, path))
            status = next((code for word, code in hub.refuse.items() if word in path), 0)
            if status:
                self._answer(status, {"error": "refused as told"})
            elif not path.startswith("/blob/") and (
                self.headers.get("authorization") != f"Bearer {TOKEN}"
            ):
                self._answer(401, {"error": "Invalid credentials"})
            else:
                self._answer(*_route(hub, self.command, path, body))

        def _body(self) -> bytes:
            if self.headers.get("transfer-encoding", "") != "chunked":
                return self.rfile.read(int(self.headers.get("content-length") or 0))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _answer(self, status: int, told: Any) -> None:
            data = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler


def _route(hub: Hub, method: str, path: str, body: bytes) -> tuple[int, Any]:
    if path == "/api/repos/create":
        return _create(hub, json.loads(body))
    if path == "/api/validate-yaml":
        return 200, {"errors": [], "warnings": []}
    if path.startswith("/blob/"):
        digest = hashlib.sha256(body).hexdigest()
        hub.blobs[digest] = body
        return (200, {}) if path == f"/blob/{digest}" else (400, {"error": "other bytes"})
    if found := BATCH.fullmatch(path):
        return 200, {"objects": [_lfs(hub, one) for one in json.loads(body)["objects"]]}
    found = API.fullmatch(path)
    repository = hub.repositories.get(found[2]) if found else None
    if found is None or repository is None:
        return 404, {"error": "Repository not found"}
    if found[3] == "preupload":
        files = json.loads(body)["files"]
        return 200, {"files": [_mode(repository, one) for one in files]}
    if found[3] == "commit":
        return _commit(hub, found[2], repository, body)
    if found[3] in ("revision", "tree"):
        if found[3] == "tree":
            return 200, [
                {"type": "file", "path": name, "size": len(data), "oid": _oid(data)}
                for name, data in repository.files.items()
            ]
        siblings = [{"rfilename": name} for name in repository.files]
        sha = f"{len(repository.commits):040x}"
        return 200, {"id": found[2], "sha": sha, "siblings": siblings, "private": True, "tags": []}
    return 404, {"error": f"{method} {path}"}


def _create(hub: Hub, asked: dict[str, Any]) -> tuple[int, Any]:
    owner = asked.get("organization") or "me"
    name = f"{owner}/{asked['name']}"
    url = f"{hub.url}/{'datasets/' if asked.get('type') == 'dataset' else ''}{name}"
    if name in hub.repositories:
        return 409, {"error": "You already created this repo", "url": url}
    private = bool(asked.get("private")) or asked.get("visibility") == "private"
    hub.repositories[name] = Repository(asked.get("type") or "model", private)
    return 200, {"url": url, "name": name}


def _mode(repository: Repository, one: dict[str, Any]) -> dict[str, Any]:
    large = one["path"].endswith((".parquet", ".tar", ".png", ".safetensors"))
    told = {"path": one["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
    data = repository.files.get(one["path"])
    if data is not None:
        told["oid"] = hashlib.sha256(data).hexdigest() if large else _oid(data)
    return told


def _oid(data: bytes) -> str:
    """git's name of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _lfs(hub: Hub, one: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {"oid": one["oid"], "size": one["size"]}
    if one["oid"] not in hub.blobs:
        told["actions"] = {"upload": {"href": f"{hub.url}/blob/{one['oid']}", "header": {}}}
    return told


def _commit(hub: Hub, name: str, repository: Repository, body: bytes) -> tuple[int, Any]:
    files = dict(repository.files)
    summary = ""
    for line in body.splitlines():
        step = json.loads(line)
        value = step["value"]
        if step["key"] == "header":
            summary = value["summary"]
        elif step["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif step["key"] == "lfsFile":
            files[value["path"]] = hub.blobs[value["oid"]]
        elif step["key"] == "deletedFile":
            del files[value["path"]]
        else:
            return 400, {"error": step["key"]}
    repository.files = files
    repository.commits.append(summary)
    oid = f"{len(repository.commits):040x}"
    prefix = "datasets/" if repository.kind == "dataset" else ""
    url = f"{hub.url}/{prefix}{name}/commit/{oid}"
    return 200, {"success": True, "commitOid": oid, "commitUrl": url}
