"""A Prefect server that cannot be used: one line, exit code 2, and `doctor` says BAD and why."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from in_process import run
from processes import free_ports
from toy_root import Toy

Capture = pytest.CaptureFixture[str]


class _Answers(http.server.BaseHTTPRequestHandler):
    """A web server: Prefect's of version 2 below /api, of version 9 below /nine/api, and somebody's
    page elsewhere."""

    def do_GET(self) -> None:
        known = {
            "/api/health": True,
            "/api/admin/version": "2.20.4",
            "/locked/api/health": True,
        }
        if self.path == "/locked/api/admin/version":
            self.send_error(401)
            return
        body = json.dumps(known[self.path]) if self.path in known else "<h1>A page</h1>"
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def address(kind: str, web: str) -> tuple[str, str]:
    """An address that cannot be used, and what its refusal must say."""
    return {
        "no api": (f"http://{web}", f"PREFECT_API_URL=http://{web}/api"),
        "no scheme": (f"{web}/api", "http://"),
        "dead": (f"http://127.0.0.1:{free_ports(1)[0]}/api", "prefect server start"),
        "foreign": (f"http://{web}/foreign/api", "no Prefect server"),
        "other major": (f"http://{web}/api", "Prefect 2.20.4"),
        "locked": (f"http://me:secret@{web}/locked/api", "PREFECT_API_AUTH_STRING"),
        "no host": ("http:///api", "http://"),
    }[kind]


@pytest.mark.parametrize(
    "kind", ["no api", "no scheme", "dead", "foreign", "other major", "locked", "no host"]
)
def test_an_address_that_cannot_be_used(
    kind: str, web: str, toy: Toy, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, why = address(kind, web)
    monkeypatch.setenv("PREFECT_API_URL", url)
    for arguments in (toy.arguments[:-1], ["prefect-setup"]):
        code, _, err = run(arguments, capsys)
        lines = [line for line in err.splitlines() if not line.endswith(" ...")]
        assert code == 2 and len(lines) == 1, err
        assert lines[0].startswith("error: PREFECT_API_URL=") and why in lines[0]
        assert "secret" not in err
    code, out, _ = run(["doctor"], capsys)
    bad = [line for line in out.splitlines() if line.startswith("BAD  prefect:")]
    assert code == 3 and len(bad) == 1 and why in bad[0]


def test_a_home_that_is_a_file(
    toy: Toy, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.write_text("in the way")
    monkeypatch.setenv("PREFECT_HOME", str(home))
    for arguments in ([*toy.arguments[:-1], "--prefect"], ["prefect-setup"]):
        code, _, err = run(arguments, capsys)
        lines = [line for line in err.splitlines() if not line.endswith(" ...")]
        assert code == 2 and len(lines) == 1 and str(home) in lines[0], err
    code, out, _ = run(["doctor"], capsys)
    assert code == 3 and f"BAD  prefect: PREFECT_HOME={home}" in out
