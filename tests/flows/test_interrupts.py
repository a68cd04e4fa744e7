"""Ctrl-C at any moment: one line, exit code 130, within two seconds; the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy_suite
from toy_root import HUES, TOY_CLI

from focusdpo.flows.cli import MESSAGE

SECONDS = 2.0
STUCK = """
import ctypes, sys
from focusdpo.flows.cli import Interrupts
with Interrupts():
    sys.stderr.write("computing\\n")
    try:
        {wait}
    except BaseException:
        {then}
"""


def interrupted(process: subprocess.Popen[str]) -> str:
    """What a process writes on stderr, which must end as wanted when it is interrupted."""
    started = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    took = time.monotonic() - started
    assert process.returncode == 130, errors
    assert errors.endswith(MESSAGE + "\n") and "Traceback" not in errors
    assert errors.count(MESSAGE) == 1
    assert took < SECONDS + 3, "three seconds are for a busy machine"
    return errors


def start(command: list[str], **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **more},
    )


def wait_for(process: subprocess.Popen[str], words: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            return
    raise AssertionError(f"it ended without '{words}'")


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    toy_suite.write_subjects(tmp_path / "subjects", HUES)
    where = ["--root", str(tmp_path / "root"), "--subjects", str(tmp_path / "subjects")]
    sets = ["compose.pair_rate=1", "compose.triple_rate=0", "compose.variants=1"]
    pair = ["pair.min_winner_identity=0", "pair.min_drop=0.02", "generate.candidates=3"]
    given = [word for one in [*sets, *pair] for word in ("--set", one)]
    return [*TOY_CLI, "build-dataset", *where, *given, "--json"]


def test_while_it_imports_and_while_a_model_computes(command: list[str], tmp_path: Path) -> None:
    importing = start(command)
    wait_for(importing, "build-dataset ...")
    interrupted(importing)
    (tmp_path / "waits").write_text("600")
    computing = start(command, TOY_SUITE="toy_waiting", TOY_WAITS=str(tmp_path / "waits"))
    wait_for(computing, "compose: ")
    time.sleep(1)
    interrupted(computing)
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert json.loads(ended.stdout.splitlines()[-1])["new"] is True


@pytest.mark.parametrize(
    ("wait", "then"),
    [
        ("[ctypes.CDLL(None).sleep(60) for _ in range(9)]", "raise"),
        ("import time; time.sleep(600)", "time.sleep(600)"),
        ("import time; time.sleep(600)", "sys.exit(1)"),
        ("import time; time.sleep(600)", "raise RuntimeError('in cleaning up')"),
    ],
    ids=["within a call of C", "a clean-up that hangs", "turned into an exit", "another error"],
)
def test_nothing_holds_it_up(wait: str, then: str) -> None:
    process = start([sys.executable, "-c", STUCK.format(wait=wait, then=then)])
    wait_for(process, "computing")
    time.sleep(0.3)
    interrupted(process)


def test_while_prefects_server_starts(command: list[str], tmp_path: Path) -> None:
    environment = {name: "" for name in os.environ if name.startswith("PREFECT_")}
    process = start([*command, "--prefect"], **environment)
    wait_for(process, "waiting for Prefect's server")
    time.sleep(0.5)
    interrupted(process)


@pytest.mark.slow
def test_while_a_flow_of_prefect_computes(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "waits").write_text("600")
    environment = {name: "" for name in os.environ if name.startswith("PREFECT_")}
    waiting = {"TOY_SUITE": "toy_waiting", "TOY_WAITS": str(tmp_path / "waits")}
    process = start([*command, "--prefect"], **environment, **waiting)
    wait_for(process, "compose: ")
    time.sleep(2)
    interrupted(process)


ENDING = """
import atexit, sys, time
from focusdpo.flows.cli import main
def end():
    sys.stderr.write("ending\\n")
    time.sleep(60)
atexit.register(end)
sys.argv = ["focusdpo", "--version"]
main()
"""


def test_while_the_interpreter_is_taken_apart() -> None:
    """As by what Prefect has still to store when all is done."""
    process = start([sys.executable, "-c", ENDING])
    wait_for(process, "ending")
    interrupted(process)


def test_a_command_that_ignores_interrupts_goes_on_ignoring_them() -> None:
    """As one that a script has put into the background."""
    code = (
        "import signal, os\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from focusdpo.flows.cli import Interrupts\n"
        "with Interrupts(): os.kill(os.getpid(), signal.SIGINT)\n"
        "print('whole')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "whole\n"
