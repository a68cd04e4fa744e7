"""What downloads use of the Hugging Face Hub's protocol, on loopback: a repository whose files and
commit change, as after a new upload."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME = "someone/model"


@dataclass
class DownloadHub:
    """A repository's newest commit, and all that there were."""

    url: str = ""
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    newest: str = ""
    sent: list[str] = field(default_factory=list)
    """Names of the files whose content was asked for."""

    def upload(self, files: dict[str, bytes]) -> str:
        """A new commit."""
        self.newest = hashlib.sha1(
            json.dumps(sorted(map(repr, files.items()))).encode()
        ).hexdigest()
        self.commits[self.newest] = files
        return self.newest


@contextmanager
def download_hub() -> Iterator[DownloadHub]:
    """A running hub with one repository."""
    hub = DownloadHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if found := re.fullmatch(rf"/api/models/{NAME}/(revision|tree)/(\w+)/?", path):
                commit = hub.newest if found[2] == "main" else found[2]
                files = hub.commits[commit]
                rows = [
                    {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}
                    for name, data in files.items()
                ]
                siblings = [{"rfilename": name, "size": len(d)} for name, d in files.items()]
                about = {"id": NAME, "sha": commit, "siblings": siblings}
                self._answer(json.dumps(rows if found[1] == "tree" else about).encode())
            elif found := re.fullmatch(rf"/{NAME}/resolve/(\w+)/(.+)", path):
                commit = hub.newest if found[1] == "main" else found[1]
                data = hub.commits[commit][found[2]]
                if self.command == "GET":
                    hub.sent.append(found[2])
                self._answer(data, {"X-Repo-Commit": commit, "ETag": f'"{_etag(data)}"'})
            else:
                self.send_error(404)

        do_HEAD = do_GET

        def _answer(self, data: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(200)
            for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, *_args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield hub
    server.shutdown()


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
