"""A studio's application, asked without a network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.testclient import TestClient

from focusdpo.studio.app import create_app
from focusdpo.studio.config import StudioConfig


class Client:
    """Asks as the pages' scripts do."""

    def __init__(self, root: Path, *runs: Path, preset: str = "pocket") -> None:
        self.root = root
        config = StudioConfig(root=str(root), runs=runs, preset=preset)
        self.app: Starlette = create_app(config)
        self.http = TestClient(self.app, base_url="http://localhost")
        self.csrf = {"x-csrf-token": self.app.state.keys.csrf, "accept": "application/json"}

    def page(self, path: str) -> Any:
        return self.http.get(path, headers={"accept": "text/html"})

    def get(self, path: str) -> Any:
        return self.http.get(path, headers={"accept": "application/json"})

    def post(self, path: str, **given: Any) -> Any:
        return self.http.post(path, headers=self.csrf, **given)

    def form(self, path: str, **fields: str) -> Any:
        """A form as a person sends it."""
        data = {"csrf": self.csrf["x-csrf-token"], **fields}
        return self.http.post(
            path, data=data, headers={"accept": "text/html"}, follow_redirects=False
        )

    def stream(self, path: str, pieces: Iterable[bytes], length: int | None) -> tuple[int, int]:
        """Send a body piece by piece; the status, and how many pieces were taken."""
        taken = 0
        left = iter(pieces)
        status = 0
        headers = [
            (b"host", b"localhost"),
            *((k.encode(), v.encode()) for k, v in self.csrf.items()),
        ]
        if length is not None:
            headers.append((b"content-length", str(length).encode()))
        target, _, query = path.partition("?")

        async def receive() -> dict[str, Any]:
            nonlocal taken
            piece = next(left, None)
            taken += piece is not None
            return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

        async def send(message: dict[str, Any]) -> None:
            nonlocal status
            status = message.get("status", status)

        scope = {
            "type": "http", "method": "POST", "path": target, "raw_path": target.encode(),
            "query_string": query.encode(), "headers": headers, "http_version": "1.1",
            "scheme": "http", "server": ("localhost", 80), "client": ("127.0.0.1", 1),
            "root_path": "",
        }  # fmt: skip
        call: Callable[..., Any] = self.app
        asyncio.run(call(scope, receive, send))
        return status, taken
