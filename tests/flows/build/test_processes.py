"""A build shared out over processes of this machine: the same version and bytes as one process's,
whoever dies on the way; Ctrl-C ends all of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from toy_root import TOY_CLI, Toy

from focusdpo.flows.build.stages import STAGES
from focusdpo.flows.cli import MESSAGE

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(900)]


@pytest.fixture
def accidents(tmp_path: Path) -> Path:
    """See ray_suite."""
    folder = tmp_path / "accidents"
    folder.mkdir()
    return folder


def start(toy: Toy, accidents: Path, *more: str, seconds: float = 0) -> subprocess.Popen[str]:
    """The command in two processes, a group of its own; a picture takes so many seconds."""
    about = {"RAY_SUITE": str(accidents), "RAY_SUITE_SECONDS": str(seconds)}
    return subprocess.Popen(
        [*TOY_CLI, *toy.arguments, "--num-processes", "2", "--json", *more],
        env={**os.environ, "TOY_SUITE": "ray_suite", **about},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def painters(accidents: Path) -> Counter[int]:
    """Process -> how many pictures it painted."""
    calls = accidents / "calls"
    lines = calls.read_text().splitlines() if calls.exists() else []
    return Counter(int(line.split()[0]) for line in lines)


def wait_for_two(accidents: Path, process: subprocess.Popen[str]) -> list[int]:
    """The two processes, once both have painted."""
    while len(found := painters(accidents)) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return list(found)


def test_the_version_of_one_process_though_a_worker_is_killed(
    toy: Toy, toy_made: Path, accidents: Path
) -> None:
    run = start(toy, accidents, seconds=0.3)
    victim, _ = wait_for_two(accidents, run)
    os.kill(victim, signal.SIGKILL)
    out, told = run.communicate(timeout=300)
    assert run.returncode == 0, told
    result = json.loads(out.splitlines()[-1])
    assert result["made"] == dict.fromkeys(STAGES, 6) and not result["failed"]
    assert "was lost: its process was killed" in told and "Traceback" not in told
    # Again is painted only what the victim had begun and not stored, a partition's three pictures.
    assert sum(painters(accidents).values()) <= 18 + 3
    alone = Toy(toy.subjects, toy_made)
    assert (toy.root / "LATEST").read_text() == (toy_made / "LATEST").read_text()
    for folder in ("stages", "shards"):
        assert toy.files(folder) == alone.files(folder) != {}
    index = f"versions/{result['version']}/index.parquet"
    assert (toy.root / index).read_bytes() == (toy_made / index).read_bytes()


def test_a_card_that_is_lost_and_one_that_every_worker_dies_over(toy: Toy, accidents: Path) -> None:
    """A lost card costs no partition; one over which three processes die is left out, alone."""
    (accidents / "lose").touch()
    (accidents / "poison").touch()
    out, told = start(toy, accidents).communicate(timeout=300)
    result = json.loads(out.splitlines()[-1])
    assert "was lost: CUDA error: unspecified launch failure" in told
    assert result["made"]["generate"] == 5 and len(result["failed"]) == 1
    assert "3 processes died over it" in result["failed"][0]
    (accidents / "poison").unlink()
    again = start(toy, accidents)
    out, told = again.communicate(timeout=300)
    assert again.returncode == 0 and json.loads(out.splitlines()[-1])["made"]["generate"] == 1


def test_ctrl_c_ends_every_process(toy: Toy, accidents: Path) -> None:
    run = start(toy, accidents, seconds=30)
    team = [run.pid]
    while len(team) < 3:  # the workers load, then paint for half a minute
        assert run.poll() is None, run.communicate()
        loads = accidents / "loads"
        lines = loads.read_text().splitlines() if loads.exists() else []
        team = [run.pid, *{int(line.split()[0]) for line in lines}]
        time.sleep(0.05)
    begun = time.monotonic()
    os.killpg(run.pid, signal.SIGINT)
    _, told = run.communicate(timeout=60)
    took = time.monotonic() - begun
    assert run.returncode == 130 and told.endswith(MESSAGE + "\n") and "Traceback" not in told
    gone, alive = psutil.wait_procs([psutil.Process(p) for p in team if psutil.pid_exists(p)], 2)
    assert not alive, f"{alive} outlived the command; gone are {gone}"
    assert took < 3, "one second is for a busy machine"
