"""docker/compose.yaml as processes on loopback: PostgreSQL, SeaweedFS, the server, the set-up and
a worker, by the images' own start scripts. Kills, migrations, a backup, and where secrets go."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from topology import PASSWORD, Topology

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

DATASET = "s3://focusdpo/dataset"
SMALL = {
    "root": DATASET,
    "world": {"subjects": 3, "references": 1},
    "compose": {"pair_rate": 1.0, "triple_rate": 0.0, "variants": 1},
    "generate": {"candidates": 3},
    "pair": {"min_winner_identity": -1.0, "min_drop": 0.0},
}
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@pytest.fixture(scope="module")
def topology(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    made = Topology(tmp_path_factory.mktemp("topology"))
    try:
        made.up()
        yield made
    finally:
        made.down()


def start_build(topology: Topology) -> str:
    """The id of a flow run that was asked for as docs/deployment.md says."""
    ended = topology.run(
        "worker",
        *("prefect", "deployment", "run", "build-dataset/build-dataset"),
        *("--param", f"run={json.dumps(SMALL)}"),
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = re.search(r"UUID: ([0-9a-f-]{36})", ended.stdout)
    assert found, ended.stdout
    return found[1]


def state_of(topology: Topology, flow_run: str) -> str:
    """As PostgreSQL has it."""
    rows = topology.database.query(f"select state_type from flow_run where id = '{flow_run}'")
    return rows[0][0]


def wait_for_state(topology: Topology, flow_run: str, wanted: set[str]) -> str:
    deadline = time.monotonic() + 600
    while (state := state_of(topology, flow_run)) not in wanted | ENDED:
        assert time.monotonic() < deadline, state + topology.running["worker"].told()
        time.sleep(0.25)
    return state


def test_a_run_survives_the_loss_of_server_and_database(topology: Topology) -> None:
    flow_run = start_build(topology)
    assert wait_for_state(topology, flow_run, {"RUNNING"}) == "RUNNING"
    topology.running["server"].kill()
    time.sleep(5)
    assert state_of(topology, flow_run) == "RUNNING", "ended before the server was killed"
    topology.database.restart()
    topology.start("server")
    state = wait_for_state(topology, flow_run, set())
    assert state == "COMPLETED", topology.running["worker"].told()
    assert topology.api(f"flow_runs/{flow_run}")["state"]["type"] == "COMPLETED"
    inspected = topology.run("worker", "focusdpo", "inspect", "--root", DATASET)
    assert inspected.returncode == 0 and "pairs" in inspected.stdout, inspected.stderr
