"""Leases: one holder at a time, takeover of the dead alone, whatever clocks say; on a local disk,
in memory and on S3."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from contextlib import nullcontext
from pathlib import Path

import pytest
from s3_server import BUCKET, S3Server, s3_process

from focusdpo.data_schemas.environment import host, is_dead, me
from focusdpo.store import leases
from focusdpo.store.addresses import files_of
from focusdpo.store.leases import Holder, Lease, LeaseConfig, Leases, lease
from focusdpo.store.local import Files, LocalFiles

NAME = "generate/0123456789abcdef"
PATH = f".leases/{NAME}.json"
WHAT = "generate of partition p"
SHORT = LeaseConfig(seconds=0.6)


@pytest.fixture(params=["local", "memory", "s3"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    if request.param == "local":
        return LocalFiles(tmp_path / "root")
    if request.param == "memory":
        return files_of(f"memory://{uuid.uuid4().hex}/root")
    request.getfixturevalue("s3")
    return files_of(f"s3://{BUCKET}/{uuid.uuid4().hex}")


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def put_holder(files: Files, owner: str, seconds: float = 60.0) -> str:
    """A lease of somebody else."""
    holder = Holder(owner, WHAT, "2026-01-01T00:00:00+00:00", seconds)
    tag = files.swap(PATH, leases._bytes(holder), None)
    assert tag is not None
    return tag


def foreign() -> str:
    """A process of another machine, of which nobody here can tell whether it lives."""
    return f"elsewhere~77~1~{uuid.uuid4().hex}"


def dead() -> str:
    """A process of this machine that is gone."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return f"{host()}~{ended.pid}~1~{uuid.uuid4().hex}"


def test_one_has_it_and_others_are_told_who(files: Files) -> None:
    mine = Leases(files).ask(NAME, WHAT)
    assert isinstance(mine, Lease)
    told = Leases(files).ask(NAME, "whatever")
    assert isinstance(told, Holder)
    assert told.what == WHAT and told.owner.startswith(me())
    assert str(told).startswith(f"{host()} (process {os.getpid()}) since 20")
    mine.release()
    assert not files.exists(PATH)
    other = Leases(files).ask(NAME, WHAT)
    assert isinstance(other, Lease)
    other.release()


def test_of_many_who_ask_at_once_one_gets_it(files: Files) -> None:
    barrier = threading.Barrier(6)
    answers: list[Lease | Holder] = []

    def ask() -> None:
        barrier.wait()
        answers.append(Leases(files).ask(NAME, WHAT))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [one for one in answers if isinstance(one, Lease)]
    assert len(winners) == 1 and len(answers) == 6
    winners[0].release()


def test_a_holder_that_lives_is_never_taken_over(files: Files) -> None:
    """It renews: nobody sees it unchanged for long."""
    mine = Leases(files, LeaseConfig(seconds=2.0, renewals=20)).ask(NAME, WHAT)
    assert isinstance(mine, Lease)
    asker = Leases(files)
    until = time.monotonic() + 2.5
    while time.monotonic() < until:
        assert isinstance(asker.ask(NAME, WHAT), Holder)
        time.sleep(0.1)
    assert not mine.lost
    mine.release()


def test_a_dead_process_of_this_machine_is_succeeded_at_once(files: Files) -> None:
    put_holder(files, dead(), seconds=3600)
    started = time.monotonic()
    answer = Leases(files).ask(NAME, WHAT)
    assert isinstance(answer, Lease) and time.monotonic() - started < 5
    answer.release()


def test_another_machines_lease_is_taken_over_when_it_has_run_out(files: Files) -> None:
    """Watched for its whole duration by one clock, without a change."""
    clock = Clock()
    put_holder(files, foreign(), seconds=50)
    asker = Leases(files, clock=clock)
    for clock.now in (0.0, 30.0, 49.0):
        assert isinstance(asker.ask(NAME, WHAT), Holder)
    clock.now = 51.0
    answer = asker.ask(NAME, WHAT)
    assert isinstance(answer, Lease)
    answer.release()


def test_a_renewal_begins_the_watch_anew(files: Files) -> None:
    clock = Clock()
    owner = foreign()
    tag = put_holder(files, owner, seconds=50)
    asker = Leases(files, clock=clock)
    assert isinstance(asker.ask(NAME, WHAT), Holder)
    clock.now = 49.0
    renewed = Holder(owner, WHAT, "then", 50, beat=1)
    assert files.swap(PATH, leases._bytes(renewed), tag)
    for clock.now in (60.0, 100.0):
        assert isinstance(asker.ask(NAME, WHAT), Holder)
    clock.now = 111.0
    answer = asker.ask(NAME, WHAT)
    assert isinstance(answer, Lease)
    answer.release()


def test_an_old_lease_is_taken_over_by_the_mediums_own_clock(files: Files) -> None:
    """Nobody needs to watch what the medium says is older than its duration."""
    put_holder(files, foreign(), seconds=0.2)
    assert isinstance(Leases(files).ask(NAME, WHAT), Holder)
    time.sleep(0.3 + leases.SLACK + 1)
    answer = Leases(files, clock=lambda: 0.0).ask(NAME, WHAT)
    assert isinstance(answer, Lease)
    answer.release()


@pytest.mark.parametrize("where", ["local", "s3"])
@pytest.mark.parametrize("shift", [3600, -3600])
@pytest.mark.slow
def test_the_clocks_of_two_machines_do_not_matter(
    where: str, shift: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine an hour ahead or behind neither takes over a living lease nor waits an hour for a
    dead one's. The store has a clock of its own."""
    with s3_process("clocks") if where == "s3" else nullcontext({}) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        files = files_of("s3://clocks/root" if where == "s3" else tmp_path)
        mine = Leases(files).ask(NAME, WHAT)
        assert isinstance(mine, Lease)
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + shift)
        assert isinstance(Leases(files).ask(NAME, WHAT), Holder)
        mine.release()
        put_holder(files, foreign(), seconds=0.1)
        time.sleep(leases.SLACK + 1.2)
        answer = Leases(files, clock=lambda: 0.0).ask(NAME, WHAT)
        assert isinstance(answer, Lease)
        answer.release()


def test_who_was_taken_over_notices_and_leaves_the_others_lease_alone(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    mine = Leases(files, LeaseConfig(seconds=0.4, renewals=2)).ask(NAME, WHAT)
    assert isinstance(mine, Lease)
    found = files.tagged(PATH)
    assert found is not None
    other = Holder(foreign(), WHAT, "now", 60)
    while files.swap(PATH, leases._bytes(other), found[1]) is None:
        found = files.tagged(PATH)
        assert found is not None
    until = time.monotonic() + 10
    while "another may have taken over" not in caplog.text and time.monotonic() < until:
        time.sleep(0.02)
    assert mine.lost and "another may have taken over" in caplog.text
    mine.release()
    kept = files.tagged(PATH)
    assert kept is not None and kept[0] == leases._bytes(other)


def test_a_lease_that_says_nothing_runs_out(files: Files) -> None:
    files.write(PATH, b"\xffnot json")
    clock = Clock()
    asker = Leases(files, clock=clock)
    asker.ask(NAME, WHAT)
    clock.now = 1.0
    answer = asker.ask(NAME, WHAT)
    assert isinstance(answer, Lease)
    answer.release()


# Working under a lease


def test_the_work_is_mine_unless_it_is_done(files: Files) -> None:
    with lease(files, NAME, WHAT, lambda: False) as grant:
        assert grant.mine
        with lease(files, NAME, WHAT, lambda: False, wait=False) as second:
            assert not second.mine and second.holder is not None
    with lease(files, NAME, WHAT, lambda: True) as grant:
        assert not grant.mine and grant.holder is None
    assert files.listing(".leases") == {}


def test_who_waits_is_told_and_takes_the_result(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    done = threading.Event()
    entered = threading.Event()

    def work() -> None:
        with lease(files, NAME, WHAT, done.is_set) as grant:
            assert grant.mine
            entered.set()
            time.sleep(0.8)
            done.set()

    worker = threading.Thread(target=work)
    worker.start()
    entered.wait()
    with lease(files, NAME, WHAT, done.is_set) as grant:
        assert not grant.mine and done.is_set()
    worker.join()
    lines = [one.getMessage() for one in caplog.records if "waiting" in one.getMessage()]
    assert len(lines) == 1
    assert f"{WHAT} is being computed by {host()} (process {os.getpid()}) since" in lines[0]


def test_who_waits_for_one_that_fails_does_the_work(files: Files) -> None:
    entered = threading.Event()

    def work() -> None:
        with pytest.raises(RuntimeError), lease(files, NAME, WHAT, lambda: False):
            entered.set()
            time.sleep(0.3)
            raise RuntimeError("the model broke")

    worker = threading.Thread(target=work)
    worker.start()
    entered.wait()
    with lease(files, NAME, WHAT, lambda: False) as grant:
        assert grant.mine
    worker.join()


def test_a_store_that_fails_for_a_while_loses_no_lease(s3: S3Server) -> None:
    files = files_of(f"s3://{BUCKET}/{uuid.uuid4().hex}")
    mine = Leases(files, LeaseConfig(seconds=6, renewals=12)).ask(NAME, WHAT)
    assert isinstance(mine, Lease)
    for faults in ({"refuse": 3}, {"cut": 2}, {"cut": 2, "late": True}):
        s3.fail(**faults)
        time.sleep(0.8)
    s3.fail()
    assert not mine.lost
    mine.release()
    assert not files.exists(PATH)


HOLD = """
import sys, time
from focusdpo.store.leases import Leases, LeaseConfig
from focusdpo.store.addresses import files_of
Leases(files_of(sys.argv[1]), LeaseConfig(seconds=3600)).ask(sys.argv[2], "work")
print("held", flush=True)
time.sleep(60)
"""


def test_the_leases_of_the_killed_are_cleaned_and_no_others(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), NAME], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    put = json.loads(files.read(PATH))
    assert is_dead(put["owner"]) is False and leases.clean(files) == 0
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    files.write(".leases/score/far.json", leases._bytes(Holder(foreign(), "far", "then", 60)))
    assert leases.clean(files) == 1
    assert list(files.listing(".leases")) == ["score/far.json"]


def test_a_zombie_is_dead() -> None:
    """Killed, and its parent has not asked for it yet."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    stat = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
    name = f"{host()}~{child.pid}~{stat[19]}"
    assert is_dead(name) is False
    child.send_signal(signal.SIGKILL)
    until = time.monotonic() + 10
    while not is_dead(name) and time.monotonic() < until:
        time.sleep(0.01)
    assert is_dead(name) is True
    child.wait()
