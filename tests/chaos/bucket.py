"""What may happen to a build whose root is in an object store.

Requests are refused, connections cut before and after the store has done it, answers end half-way,
the store is away or silent, and the builder is killed.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from s3_server import KEY_ID, SECRET, TOKEN, S3Server, s3_server

from focusdpo.store.addresses import LEASES

from .damage import content_of
from .jobs import Build, State, digest_of_data, is_of_dataset
from .processes import PATIENCE, Running
from .server import Network
from .trials import Log, Outcome, Reference, differences, finish, note_twice, partly

BUCKET, PREFIX = "chaos", "deep/root"
SECRETS = (SECRET, TOKEN, KEY_ID)
LOOK_SECONDS = 0.01
KINDS = (
    "requests refused",
    "cut before it is done",
    "cut after it is done",
    "answers end half-way",
    "store away",
    "store silent",
    "builder killed",
)
READ_SECONDS = 2.0
"""After which a request to a silent store is given up and repeated."""


class BucketBuild(Build):
    """build-dataset on s3://, through a network that can be cut."""

    name = "build-dataset on s3"

    def __init__(self, work: Path, server: S3Server) -> None:
        super().__init__(work)
        self.server = server
        self.network = Network(server.server.server_port)
        self.launcher.environment |= {
            **server.environment,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.network.port}",
            "FOCUSDPO_STORAGE_READ_TIMEOUT": str(READ_SECONDS),
        }
        self._first: dict[str, bytes] = {}

    @property
    def address(self) -> str:
        return f"s3://{BUCKET}/{PREFIX}"

    def lay(self, scenario: str) -> None:
        self.calm()
        self.server.make_bucket(BUCKET)
        for name, data in (self._first if scenario == "grown" else {}).items():
            self.server.put(BUCKET, f"{PREFIX}/{name}", data)

    def grow(self) -> None:
        self.lay("new")
        running = self.launcher.start(self.arguments("new"), self.work, {})
        assert running.wait() == 0, running.said()
        self._first = self.objects()

    def calm(self) -> None:
        """Nothing goes wrong from now on."""
        self.server.fail()
        self.network.mend()

    def objects(self) -> dict[str, bytes]:
        """All files of the root, past the protocol."""
        held = self.server.objects(BUCKET)
        return {key.removeprefix(f"{PREFIX}/"): data for key, data in held.items()}

    def state(self) -> State:
        return {
            name: digest_of_data(name.rpartition("/")[2], data)
            for name, data in self.objects().items()
            if is_of_dataset(name)
        }

    def finished_units(self) -> frozenset[str]:
        return frozenset(
            Path(name).stem
            for name in self.objects()
            if name.startswith("stages/") and name.endswith(".tar")
        )

    def newest(self) -> object:
        """What training would get of the newest version; an error's words when nothing."""
        with tempfile.TemporaryDirectory() as copy:
            for name, data in self.objects().items():
                path = Path(copy) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            return content_of(Path(copy))

    def secrets(self) -> list[str]:
        """Where a credential can be read."""
        outputs = [one for one in (self.work / "output").rglob("*") if one.is_file()]
        everywhere = {str(one): one.read_bytes() for one in outputs} | self.objects()
        return [
            name
            for name, data in everywhere.items()
            if any(secret.encode() in data for secret in SECRETS)
        ]


@contextlib.contextmanager
def a_bucket(work: Path) -> Iterator[BucketBuild]:
    """A server with a bucket, and the build on it, for the length of a block."""
    with s3_server() as server:
        server.make_bucket(BUCKET)
        job = BucketBuild(work, server)
        try:
            yield job
        finally:
            job.launcher.close()
            job.network.close()


@dataclass(frozen=True)
class Fault:
    """When so many objects are new: so many requests, or so many seconds, go wrong."""

    kind: str
    objects: int
    requests: int
    seconds: float

    def __str__(self) -> str:
        length = "" if self.kind == "builder killed" else f", {self.requests} requests"
        if self.kind.startswith("store"):
            length = f", {self.seconds:.1f} s"
        return f"{self.kind} at object {self.objects}{length}"

    def do(self, job: BucketBuild, running: Running) -> None:
        """Returns when it is over, or goes on by itself."""
        fail = job.server.fail
        if self.kind == "requests refused":
            fail(refuse=self.requests)
        elif self.kind == "cut before it is done":
            fail(cut=self.requests)
        elif self.kind == "cut after it is done":
            fail(cut=self.requests, late=True)
        elif self.kind == "answers end half-way":
            fail(short=self.requests)
        elif self.kind == "builder killed":
            running.kill()
        else:
            strike = job.network.cut if self.kind == "store away" else job.network.fall_silent
            strike()
            running.ended(self.seconds)
            job.network.mend()


def draw_fault(random_: random.Random, number: int, objects: int) -> Fault:
    """Kinds come in turn, so that a few trials have them all."""
    return Fault(
        KINDS[number % len(KINDS)],
        random_.randint(0, objects - 1),
        random_.choice((1, 3, 9, 30)),
        random_.uniform(0.3, 6),
    )


def disturbed(
    job: BucketBuild, scenario: str, wanted: Reference, number: int, fault: Fault
) -> Outcome:
    """A build that is disturbed once; then, unless it has ended well, the same command again."""
    outcome = Outcome(job.name, number, scenario, "bucket")
    started = time.monotonic()
    job.lay(scenario)
    base, log = job.state(), Log(job.work / "log")
    finished = job.finished_units()
    running = job.launcher.start(job.arguments(scenario), job.work, log.environment(job.out))
    if _reached(job, running, len(base) + fault.objects):
        fault.do(job, running)
        outcome.faults, outcome.kinds = [str(fault)], [fault.kind]
    else:
        outcome.missed += 1
    code = running.wait()
    note_twice(outcome, log, 0, finished)
    job.calm()
    outcome.moments.append(sorted(job.objects()))
    outcome.half_visible += partly(job, base, wanted.state)
    if "LATEST" in base and isinstance(said := job.newest(), str):
        outcome.half_visible.append(f"the newest version meanwhile: {said}")
    if code != 0:
        killed = fault.kind == "builder killed" and bool(outcome.kinds)
        if not killed and ("again" not in running.said() or "Traceback" in running.said()):
            outcome.lost.append(f"exit {code} without advice: {running.said()[-800:]}")
        finish(job, scenario, outcome, log)
    outcome.lost += differences(job.state(), wanted.state)[:5]
    if isinstance(said := job.newest(), str):
        outcome.lost.append(f"the newest version: {said}")
    outcome.lost += [f"left: {name}" for name in job.objects() if name.startswith(LEASES)]
    outcome.lost += [f"a secret in {name}" for name in job.secrets()]
    outcome.done_again = len(log.computed()) - len(set(log.computed()))
    outcome.seconds = round(time.monotonic() - started, 2)
    return outcome


def _reached(job: BucketBuild, running: Running, count: int) -> bool:
    """Wait for so many decided objects; False when the command ended before."""
    end = time.monotonic() + PATIENCE
    while running.ended(LOOK_SECONDS) is None and time.monotonic() < end:
        if sum(map(is_of_dataset, job.objects())) >= count:
            return True
    return False
