"""Stages in workers of a real Ray cluster on loopback: the same bytes as a local build, whoever
dies on the way."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from plain_build import execute, prepare
from ray_cluster import RayCluster, executor, helpers_on_path, ray_cluster
from toy_root import TOY_CLI, Toy

from benchmarks import ray_speed as ray_bench
from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.runs import Watch, quiet
from focusdpo.flows.build.outcome import BuildResult
from focusdpo.flows.build.stages import STAGES
from focusdpo.flows.config import BuildRun
from focusdpo.flows.settings import merge, resolve

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """A head, and two nodes with room for a worker each."""
    with ray_cluster() as nodes:
        nodes.add()
        nodes.add()
        yield nodes


@pytest.fixture
def accidents(tmp_path: Path) -> Path:
    """See ray_suite."""
    folder = tmp_path / "accidents"
    folder.mkdir()
    return folder


def build(toy: Toy, watch: Watch = quiet, **given: object) -> BuildResult:
    return execute(prepare(resolve(BuildRun, merge(toy.tree(), given))), watch=watch)


def decided(toy: Toy, version: str) -> dict[str, bytes]:
    """All bytes of a root that a build decides."""
    index = toy.files(f"versions/{version}")
    index = {name: data for name, data in index.items() if name.endswith("index.parquet")}
    assert index
    return toy.files("stages") | toy.files("shards") | index


def local_bytes(toy: Toy, folder: Path) -> dict[str, bytes]:
    """What the same build makes in this process."""
    local = Toy(toy.subjects, folder)
    return decided(local, build(local).version)


def painted(accidents: Path) -> Counter[str]:
    """Seed -> how often it was painted."""
    return Counter(line.split()[1] for line in (accidents / "calls").read_text().splitlines())


def test_a_cluster_makes_the_bytes_of_a_local_build_and_keeps_its_models(
    cluster: RayCluster, toy: Toy, accidents: Path, tmp_path: Path
) -> None:
    told: list[tuple[str, int, int]] = []
    result = build(
        toy,
        lambda phase, done, total, _: told.append((phase, done, total)),
        executor=executor(cluster.address, accidents),
    )
    assert result.whole and result.made == dict.fromkeys(STAGES, 6)
    assert result.model_seconds > 0
    assert told == [(stage, done, 6) for stage in STAGES for done in range(1, 7)]
    assert decided(toy, result.version) == local_bytes(toy, tmp_path / "local")
    # Each worker loaded each model once, for all partitions and both stages that ask for it.
    loads = Counter((accidents / "loads").read_text().splitlines())
    assert set(loads.values()) == {1} and len({line.split()[0] for line in loads}) == 2
    assert not ray.is_initialized()
    again = build(toy, executor=executor(cluster.address, accidents))
    assert again.made == {} and not again.new


def test_a_node_dies_and_the_run_finishes(
    cluster: RayCluster, toy: Toy, accidents: Path, tmp_path: Path
) -> None:
    doomed = cluster.add(resources={"doomed": 1})
    # A third worker; each is held behind its first picture until all have painted one.
    (accidents / "hold").touch()
    wanted = {"default": {"workers": 3}}
    command = arguments(toy, executor(cluster.address, accidents, resources=wanted))
    log = tmp_path / "log"
    with log.open("w") as sink:
        run = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, text=True)
        try:
            wait_for(lambda: painters(accidents) == 3, 400)
            assert run.poll() is None
            cluster.kill(doomed)
            (accidents / "hold").unlink()
            assert run.wait(timeout=500) == 0, log.read_text()
        finally:
            run.kill()
    text = log.read_text()
    result = json.loads(text.splitlines()[-1])
    assert result["made"] == dict.fromkeys(STAGES, 6) and not result["failed"], text
    assert "a worker was lost" in text
    assert decided(toy, result["version"]) == local_bytes(toy, tmp_path / "local")
    # Again was painted only what the lost worker had begun and not stored: a partition's pictures.
    again = {seed: count for seed, count in painted(accidents).items() if count > 1}
    assert len(again) <= 3 and set(again.values()) <= {2}


def test_a_worker_dies_and_its_partition_is_computed_elsewhere(
    cluster: RayCluster,
    toy: Toy,
    accidents: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (accidents / "die").touch()
    result = build(toy, executor=executor(cluster.address, accidents))
    assert not (accidents / "die").exists()
    assert result.whole and result.made == dict.fromkeys(STAGES, 6)
    assert decided(toy, result.version) == local_bytes(toy, tmp_path / "local")
    assert len([one for one in painted(accidents).values() if one > 1]) <= 3
    assert "a worker was lost" in caplog.text


def test_a_partition_that_kills_its_workers_is_given_up_and_bad_input_is_told(
    cluster: RayCluster, toy: Toy, accidents: Path, tmp_path: Path
) -> None:
    (accidents / "refuse").touch()
    told = build(toy, executor=executor(cluster.address, accidents))
    (alone,) = told.failed
    assert re.fullmatch(
        r"generate of partition \w+: UserError: the square was brought without its licence", alone
    )
    assert told.made == dict.fromkeys(STAGES, 5) | {"compose": 6}
    (accidents / "refuse").rename(accidents / "poison")
    lost = build(toy, executor=executor(cluster.address, accidents, losses=2))
    (alone,) = lost.failed
    assert re.match(r"generate of partition \w+: 2 workers died over it; the last: ", alone)
    (accidents / "poison").unlink()
    mended = build(toy, executor=executor(cluster.address, accidents))
    assert mended.made == dict.fromkeys(list(STAGES)[1:], 1)
    local = Toy(toy.subjects, tmp_path / "local")
    build(local)
    assert toy.files("stages") == local.files("stages")


def test_what_stops_a_local_build_stops_this_one(
    cluster: RayCluster, toy: Toy, accidents: Path
) -> None:
    (accidents / "refuse").touch()
    with pytest.raises(UserError, match="brought without its licence") as caught:
        build(toy, strict=True, executor=executor(cluster.address, accidents))
    assert type(caught.value) is UserError
    with pytest.raises(UserError, match="cannot work: .*no_such_suite"):
        build(toy, executor=executor(cluster.address, accidents, imports=["no_such_suite"]))
    wanting = {"default": {"num_gpus": 1, "num_cpus": 0}}
    with pytest.raises(UserError, match=r"no worker for .*'num_gpus': 1.*3 nodes, CPU 2"):
        given = executor(cluster.address, accidents, resources=wanting, start_seconds=3)
        build(toy, executor=given)
    assert not ray.is_initialized()


def test_a_dead_cluster_is_told(toy: Toy, accidents: Path) -> None:
    with ray_cluster() as mortal:
        mortal.add()
        (accidents / "hold").touch()
        given = executor(mortal.address, accidents, silent_seconds=5)
        command = arguments(toy, given)
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            wait_for(lambda: painters(accidents) == 1, 400)
            assert run.poll() is None
            mortal.kill_head()
            out, errors = run.communicate(timeout=120)
        finally:
            run.kill()
    assert run.returncode == 2, errors
    assert "has not answered for" in json.loads(out.splitlines()[-1])["error"]


def arguments(toy: Toy, section: dict[str, Any]) -> list[str]:
    """The command that builds on a cluster."""
    return [*TOY_CLI, "-v", *toy.arguments, "--json", "--set", f"executor={json.dumps(section)}"]


def painters(accidents: Path) -> int:
    """How many processes have painted."""
    calls = accidents / "calls"
    if not calls.exists():
        return 0
    return len({line.split()[0] for line in calls.read_text().splitlines()})


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.alone
def test_two_workers_beside_one(toy: Toy, accidents: Path) -> None:
    env = {"RAY_SUITE": str(accidents), "RAY_SUITE_CPU_SECONDS": "0.1"}
    given = executor("local", accidents, env=env)
    run = resolve(BuildRun, toy.tree(executor=given, generate={"candidates": 2}))
    with helpers_on_path():
        speed = ray_bench.measure(run, rounds=2)
    assert speed.partitions == 4 and set(speed.seconds) == {1, 2}
    # How much faster depends on what else the machine does: the figure is in docs/cluster.md.
    assert speed.speedup > 1
