"""`focusdpo studio` as a process: its address, its errors, its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from in_process import run
from small_root import small_version
from studio_walk import served


def get(address: str) -> tuple[int, str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    asked = urllib.request.Request(address, headers={"accept": "text/html"})
    with opener.open(asked, timeout=60) as answer:
        return answer.status, answer.read().decode()


def test_the_token_is_never_printed(tmp_path: Path) -> None:
    token = "a-secret-of-some-length"
    with served(tmp_path / "root", "--token", token) as address:
        assert token not in address
        status, page = get(f"{address}/pairs")
    assert status == 200 and "Log in" in page and token not in page


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "a token is needed"),
        (["--token", "short"], "at least 16"),
        (["--host", "no-such-host.invalid", "--token", "x" * 20], "cannot be had"),
    ],
)
def test_what_cannot_be_served_is_told(
    tmp_path: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, errors = run(["studio", "--root", str(tmp_path / "root"), *options], capsys)
    assert code == 2 and said in errors and "Traceback" not in errors


def test_a_port_that_is_taken_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, _, errors = run(["studio", "--root", str(tmp_path / "root"), "--port", port], capsys)
    assert code == 2 and "another program listens there" in errors


def test_a_folder_of_something_else_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("hours of work")
    code, _, errors = run(["studio", "--root", str(tmp_path), "--port", "0"], capsys)
    assert code == 2 and "not a FocusDPO dataset root" in errors


def test_it_serves_names_its_port_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    small_version(tmp_path / "root", scenes=2)
    command = [sys.executable, "-m", "focusdpo.flows.cli", "studio"]
    process = subprocess.Popen(
        [*command, "--root", str(tmp_path / "root"), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    address = process.stdout.readline().split(" (")[0].rpartition(" ")[2]
    status, page = get(address)
    assert status == 200 and "2 pairs of 2 subjects" in page
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert "Traceback" not in said
    assert process.returncode in (0, 130)
