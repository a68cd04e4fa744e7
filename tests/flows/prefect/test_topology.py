"""docker/compose.yaml as processes on loopback: PostgreSQL, SeaweedFS, the server, the set-up and
a worker, by the images' own start scripts. Kills, migrations, a backup, and where secrets go."""

from __future__ import annotations

import base64
import json
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

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
OUTPUTS_RACE = Path(__file__).parents[2] / "helpers/outputs_race.py"
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


def wait_for_end(topology: Topology, flow_run: str) -> str:
    deadline = time.monotonic() + 900
    while (state := state_of(topology, flow_run)) not in ENDED:
        assert time.monotonic() < deadline, state + topology.running["worker"].told()
        time.sleep(0.25)
    return state


def test_a_run_survives_the_loss_of_server_and_database(topology: Topology) -> None:
    flow_run = start_build(topology)
    deadline = time.monotonic() + 600
    while not topology.objects("dataset/stages/"):
        told = topology.running["worker"].told()
        assert state_of(topology, flow_run) not in ENDED and time.monotonic() < deadline, told
        time.sleep(0.25)
    topology.running["server"].kill()
    time.sleep(5)
    assert state_of(topology, flow_run) == "RUNNING", "ended before the server was killed"
    topology.database.restart()
    topology.start("server")
    state = wait_for_end(topology, flow_run)
    assert state == "COMPLETED", topology.running["worker"].told()
    assert topology.api(f"flow_runs/{flow_run}")["state"]["type"] == "COMPLETED"
    inspected = topology.run("worker", "focusdpo", "inspect", DATASET, "--verify")
    assert inspected.returncode == 0 and "pairs" in inspected.stdout, inspected.stderr


def test_the_api_is_closed_without_the_secret(topology: Topology) -> None:
    def status(path: str) -> int:
        try:
            with urllib.request.urlopen(f"{topology.address}/api/{path}", timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    assert (status("health"), status("ready")) == (200, 200)
    assert (status("admin/version"), status("admin/settings")) == (401, 401)
    assert topology.api("admin/version")
    # What a browser asks for: pages come from the folder that may be written, the API is its host.
    with urllib.request.urlopen(f"{topology.address}/ui-settings", timeout=30) as answer:
        told = json.load(answer)
    assert (told["api_url"], told["auth"]) == ("/api", "BASIC")
    with urllib.request.urlopen(topology.address, timeout=30) as answer:
        assert b"<html" in answer.read()


def test_setup_may_be_repeated_and_its_bucket_keeps_versions(topology: Topology) -> None:
    before = topology.database.query("select id from deployment order by id")
    ended = topology.run("setup", "setup", "--on-publish", "retrain")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert topology.database.query("select id from deployment order by id") == before
    assert "is there" in ended.stdout and "made" in ended.stdout  # the bucket, the automation
    # Relative paths of the deployments are those of the volume that workers share.
    pulls = topology.database.query("select distinct pull_steps::text from deployment")
    assert len(pulls) == 1 and json.dumps(str(topology.data)) in pulls[0][0]
    assert bucket_versioning(topology) == "Enabled"


def bucket_versioning(topology: Topology) -> str:
    code = (
        "from botocore.session import Session; store = Session().create_client('s3');"
        "print(store.get_bucket_versioning(Bucket='focusdpo').get('Status'))"
    )
    ended = topology.run("worker", "python", "-c", code)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


RACE = """
import threading
from focusdpo.store.addresses import files_of

files = files_of("s3://focusdpo/race")

def writers_that_won(tag, size):
    won, barrier = [], threading.Barrier(12)
    def write(number):
        data = bytes([number]) * size
        barrier.wait()
        if (new := files.swap("key", data, tag)) is not None:
            won.append((new, data))
    threads = [threading.Thread(target=write, args=(number,)) for number in range(12)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    return won

tag = None
for size in (10, 11, 12, 2**25, 13):  # 2**25 bytes would travel in parts
    (tag, data), = writers_that_won(tag, size)
    assert files.tagged("key") == (data, tag), size
"""


def test_of_many_writers_at_once_the_store_lets_one_win(topology: Topology) -> None:
    """What leases and the dataset's index stand on, on a bucket that keeps versions."""
    ended = topology.run("worker", "python", "-c", RACE)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    ended = topology.run("worker", "focusdpo", "doctor", "--root", DATASET)
    assert ended.returncode == 0 and "it takes new files" in ended.stdout, ended.stdout


def test_outputs_of_a_run_have_one_writer(topology: Topology, tmp_path: Path) -> None:
    """Of six who begin at once on one `out` the others are told so, and what is there is whole."""
    ended = topology.run(
        "worker", sys.executable, str(OUTPUTS_RACE), "s3://focusdpo/runs/one", str(tmp_path)
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rounds = json.loads(ended.stdout.splitlines()[-1])
    assert len(rounds) == 4 and all(there in told for told, there in rounds), rounds


def test_a_backup_of_the_database_is_whole(topology: Topology, tmp_path: Path) -> None:
    """As docs/deployment.md says: pg_dump while the server runs, pg_restore into a new database."""
    dump = tmp_path / "prefect.dump"
    database = topology.database
    database.program("pg_dump", "--format=custom", f"--file={dump}", "prefect")
    database.program("createdb", "restored")
    database.program("pg_restore", "--exit-on-error", "--no-owner", "--dbname=restored", str(dump))
    for table in ("deployment", "flow_run", "work_pool", "artifact", "alembic_version"):
        rows = f"select count(*), max(t::text) from {table} t"
        assert database.query(rows, "restored") == database.query(rows)


def test_migrations_go_down_and_up_again(topology: Topology) -> None:
    """A step back and `migrate` forward on real rows, then a server that finds nothing to do."""
    topology.running["server"].stop()
    database = topology.database
    rows = "select id, state_type from flow_run order by id"
    newest = database.query("select version_num from alembic_version")
    before = database.query(rows)
    ended = topology.run("server", "migrate", "back")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert database.query("select version_num from alembic_version") != newest
    assert topology.run("server", "migrate").returncode == 0
    assert database.query("select version_num from alembic_version") == newest
    assert topology.run("server", "migrate").returncode == 0
    topology.start("server")
    assert before and database.query(rows) == before


def test_no_secret_is_in_a_log_a_command_line_or_the_database(topology: Topology) -> None:
    """Last, when everything has happened; all logs are of level DEBUG."""
    keys = [line.partition(" = ")[2] for line in topology.secret("s3_credentials").splitlines()[1:]]
    secrets = [PASSWORD, quote(PASSWORD, safe=""), topology.secret("api_auth").partition(":")[2]]
    basic = base64.b64encode(topology.secret("api_auth").encode()).decode()
    secrets += [keys[1], basic, repr(PASSWORD)[1:-1]]
    written = {path: path.read_text("utf-8", "replace") for path in topology.logs.iterdir()}
    assert {path.stem for path in written} >= {"database", "store", "server", "worker"}
    places = {str(path): text for path, text in written.items()}
    places["command lines"] = command_lines()
    places["flow runs' logs"] = str(topology.database.query("select message from log"))
    places["deployments"] = str(topology.database.query("select d::text from deployment d"))
    places["flow runs"] = str(topology.database.query("select r::text from flow_run r"))
    for where, text in places.items():
        assert text, where
        for secret in secrets:
            assert secret not in text, f"{where} has {secret[:3]}..."


def command_lines() -> str:
    """Of every process that may be seen."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append(path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"))
    return "\n".join(found)
