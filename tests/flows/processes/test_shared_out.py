"""A build or an evaluation shared out over processes of this machine: the bytes and rows of one
process, whoever dies on the way; Ctrl-C ends all of them."""

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


def start(arguments: list[str], accidents: Path, seconds: float = 0) -> subprocess.Popen[str]:
    """A command, a group of its own; a picture takes so many seconds."""
    about = {"RAY_SUITE": str(accidents), "RAY_SUITE_SECONDS": str(seconds)}
    return subprocess.Popen(
        [*TOY_CLI, *arguments, "--json"],
        env={**os.environ, "TOY_SUITE": "ray_suite", **about},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def shared(toy: Toy) -> list[str]:
    return [*toy.arguments, "--num-processes", "2"]


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
    run = start(shared(toy), accidents, seconds=0.3)
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
    out, told = start(shared(toy), accidents).communicate(timeout=300)
    result = json.loads(out.splitlines()[-1])
    assert "was lost: CUDA error: unspecified launch failure" in told
    assert result["made"]["generate"] == 5 and len(result["failed"]) == 1
    assert "3 processes died over it" in result["failed"][0]
    (accidents / "poison").unlink()
    again = start(shared(toy), accidents)
    out, told = again.communicate(timeout=300)
    assert again.returncode == 0 and json.loads(out.splitlines()[-1])["made"]["generate"] == 1


def test_ctrl_c_ends_every_process(toy: Toy, accidents: Path) -> None:
    run = start(shared(toy), accidents, seconds=30)
    pids = [run.pid]
    while len(pids) < 3:  # the workers load, then paint for half a minute
        assert run.poll() is None, run.communicate()
        loads = accidents / "loads"
        lines = loads.read_text().splitlines() if loads.exists() else []
        pids = [run.pid, *{int(line.split()[0]) for line in lines}]
        time.sleep(0.05)
    begun = time.monotonic()
    os.killpg(run.pid, signal.SIGINT)
    _, told = run.communicate(timeout=60)
    took = time.monotonic() - begun
    assert run.returncode == 130 and told.endswith(MESSAGE + "\n") and "Traceback" not in told
    gone, alive = psutil.wait_procs([psutil.Process(p) for p in pids if psutil.pid_exists(p)], 2)
    assert not alive, f"{alive} outlived the command; gone are {gone}"
    assert took < 3, "one second is for a busy machine"


def test_an_evaluation_of_the_rows_of_one_process_though_a_painter_is_killed(
    toy: Toy, accidents: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name in ("adapter.json", "pytorch_lora_weights.safetensors"):
        (adapter / name).write_bytes(b"{}")
    sets = ["held_out.singles=2", "held_out.pairs=6", "held_out.same_class_pairs=0"]
    sets += ["held_out.triples=0", "evaluate.batch=2", "evaluate.resamples=100"]
    given = [word for one in sets for word in ("--set", one)]
    command = ["evaluate", "--adapter", str(adapter), "--no-prefect", *given]
    _, told = (one := start([*command, "--out", str(tmp_path / "one")], accidents)).communicate()
    assert one.returncode == 0, told
    (accidents / "calls").unlink()
    two = start(
        [*command, "--out", str(tmp_path / "two"), "--num-processes", "2"], accidents, seconds=0.3
    )
    victim, _ = wait_for_two(accidents, two)
    os.kill(victim, signal.SIGKILL)
    _, told = two.communicate(timeout=300)
    assert two.returncode == 0 and "was lost: its process was killed" in told
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*")]
    same = [path for path in files if path.stem not in ("run", "config", "report")]  # have times
    assert sum(path.suffix == ".png" and path.parts[0] == "images" for path in same) == 16
    for path in same:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()
