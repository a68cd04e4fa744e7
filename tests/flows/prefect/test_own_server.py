"""The Prefect server that `--prefect` starts: for its own command alone; a database that is damaged
is told at once."""

from __future__ import annotations

import base64
import http.client
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest
from in_process import run
from toy_root import Toy

COMMAND = """
import json, os, sys
from focusdpo.flows.prefect.server import prepare
prepare(sys.argv[1])
from prefect import flow
from prefect.client.orchestration import get_client
flow(name="told", log_prints=False)(lambda: None)()
with get_client(sync_client=True) as client:
    told = [run.state_name for run in client.read_flow_runs()]
print(json.dumps([os.environ["PREFECT_API_URL"], os.environ["PREFECT_API_AUTH_STRING"], told]))
sys.stdout.flush()
sys.stdin.read()
"""


@dataclass
class Own:
    """A server that a command started."""

    address: str
    login: str
    states: list[str]

    def asked(self, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer to who wants to know of all runs."""
        connection = http.client.HTTPConnection(self.address, timeout=60)
        connection.putrequest("POST", "/api/flow_runs/filter", skip_host="Host" in headers)
        for name, value in {**headers, "Content-Type": "application/json"}.items():
            connection.putheader(name, value)
        connection.putheader("Content-Length", "2")
        connection.endheaders(b"{}")
        answer = connection.getresponse()
        told = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, told, answer.read()

    @property
    def authorization(self) -> str:
        return f"Basic {base64.b64encode(self.login.encode()).decode()}"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Own]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(tmp_path_factory.mktemp("own"))],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        url, login, states = json.loads(process.stdout.readline())
        yield Own(urlsplit(url).netloc, login, states)
        process.kill()


def test_its_command_is_let_in_and_nobody_else(own: Own) -> None:
    assert own.states == ["Completed"] and own.address.startswith("127.0.0.1:")
    status, headers, body = own.asked(Authorization=own.authorization)
    assert status == 200 and b'"told"' not in body and b"Completed" in body
    assert "access-control-allow-origin" not in headers
    wrong = base64.b64encode(b"focusdpo:wrong").decode()
    for login in ({}, {"Authorization": f"Basic {wrong}"}):
        status, _, body = own.asked(**login)
        assert status == 401 and b"Completed" not in body
    for foreign in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
        status, headers, body = own.asked(Authorization=own.authorization, **foreign)
        assert status == 403 and b"Completed" not in body
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("damage", ["no database", "cut", "a page"])
def test_a_damaged_database_ends_the_command_at_once(
    damage: str, toy: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    home = toy.root.parent / "home"
    home.mkdir()
    database = home / "prefect.db"
    with sqlite3.connect(database) as made:
        made.execute("create table flow_run (id integer primary key, name text)")
        made.executemany("insert into flow_run (name) values (?)", [("x" * 99,)] * 999)
    made.close()
    data = bytearray(database.read_bytes())
    if damage == "no database":
        data[:64] = b"not a database at all" + bytes(43)
    elif damage == "cut":
        del data[len(data) // 2 :]
    else:
        data[3 * 4096 : 4 * 4096] = bytes(4096)
    database.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(home))
        patch.delenv("PREFECT_API_URL", raising=False)
        started = time.monotonic()
        code, _, err = run([*toy.arguments[:-1], "--prefect"], capsys)
    lines = [line for line in err.splitlines() if not line.endswith(" ...")]
    assert code == 2 and len(lines) == 1, err
    assert str(database) in lines[0] and "move it away" in lines[0]
    assert time.monotonic() - started < 60
    assert database.read_bytes() == data, "it is the user's"
