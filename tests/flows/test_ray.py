"""Stages in workers of a real Ray cluster on loopback: the same bytes as a local build, whoever
dies on the way."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import toy_suite
from ray_cluster import RayCluster, executor, ray_cluster
from toy_root import TOY_CLI, Toy

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.building import BuildResult, execute, prepare
from focusdpo.flows.config import BuildRun
from focusdpo.flows.progress import Watch, quiet
from focusdpo.flows.settings import merge, resolve
from focusdpo.flows.stages import STAGES

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
