"""What may happen to Prefect while a build goes on: its server dies, the way to it is cut or falls
silent, and a process that the command has started dies."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from processes import free_ports

from focusdpo.flows.prefect.server import QUIET

from .jobs import Build, files_below
from .processes import PATIENCE, Running
from .reading import Reader
from .trials import Log, Outcome, Reference, differences, finish, note_twice, partly

START_SECONDS = 600.0
KINDS = ("server killed", "network cut", "network silent", "command killed", "child killed")


@dataclass
class Server:
    """A Prefect server with a database of its own, which may be killed and started again."""

    home: Path
    port: int = field(default_factory=lambda: free_ports(1)[0])
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        self.home.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, **QUIET, "PREFECT_HOME": str(self.home)}
        environment.pop("PREFECT_API_URL", None)
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "prefect", "server", "start"),
                    *("--host", "127.0.0.1", "--port", str(self.port)),
                ],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        end = time.monotonic() + START_SECONDS
        while not self._answers():
            if time.monotonic() > end or self._process.poll() is not None:
                raise RuntimeError((self.home / "log").read_text("utf-8")[-3000:])
            time.sleep(0.5)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.port}/api/health", timeout=5
            ) as it:
                return bool(it.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """SIGKILL to all its processes."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class Network:
    """The way to a port: a proxy that can be cut (connections end, none is taken) or fall silent
    (connections stay and nothing comes through)."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._ends: set[socket.socket] = set()
        self._open = threading.Event()
        self._open.set()
        self.is_cut = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self.is_cut = True
        for one in list(self._ends):
            _close(one)

    def fall_silent(self) -> None:
        self._open.clear()

    def mend(self) -> None:
        self.is_cut = False
        self._open.set()

    def close(self) -> None:
        self.mend()
        self.cut()
        _close(self._listener)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self.is_cut:
                _close(near)
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._target), timeout=10)
            except OSError:  # the server is down, and so says a refused connection
                _close(near)
                continue
            far.settimeout(None)
            self._ends |= {near, far}
            for a, b in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(a, b), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                self._open.wait()
                sink.sendall(data)
        except OSError:
            pass  # cut: told by the closed connection
        finally:
            for one in (source, sink):
                self._ends.discard(one)
                _close(one)


def _close(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()


@dataclass(frozen=True)
class Trouble:
    """With Prefect, when so many files are new, for some seconds."""

    kind: str
    files: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.kind} at file {self.files} for {self.seconds:.1f} s"


def draw_trouble(random_: random.Random, number: int, files: int) -> Trouble:
    """Kinds come in turn, so that a few trials have them all."""
    kind = KINDS[number % len(KINDS)]
    # Children are killed at the start, too, before any file is there.
    first = 0 if kind == "child killed" else 1
    return Trouble(kind, random_.randint(first, files), random_.uniform(1, 8))


def troubled(
    job: Build, scenario: str, wanted: Reference, server: Server, number: int, trouble: Trouble
) -> Outcome:
    """A build as a Prefect flow, in an interpreter of its own. When only a child is killed, the
    command starts its own server; else it uses `server`, through a network that can be cut."""
    outcome = Outcome(job.name, number, scenario, "prefect")
    started = time.monotonic()
    job.lay(scenario)
    base, log = job.state(), Log(job.work / "log")
    own = trouble.kind == "child killed"
    network = None if own else Network(server.port)
    where = {} if network is None else {"PREFECT_API_URL": f"http://127.0.0.1:{network.port}/api"}
    arguments = [one.replace("--no-prefect", "--prefect") for one in job.arguments(scenario)]
    with Reader(job.out) as reader:
        environment = {**log.environment(job.out), **where}
        running = job.launcher.start(arguments, job.work, environment, fresh=True)
        if _wait(job, running, trouble.files, own):
            _make(trouble, running, server, network)
            outcome.faults, outcome.kinds = [str(trouble)], [trouble.kind]
            outcome.moments.append(sorted(name for name, _ in files_below(job.out)))
        else:
            outcome.missed += 1
        code = running.wait()
        note_twice(outcome, log, 0, frozenset())
        outcome.advice.append(f"exit {code}")
        running.kill()  # what a killed command has left behind
        outcome.half_visible += partly(job, base, wanted.state)
        if code != 0:
            finish(job, scenario, outcome, log, arguments=arguments, fresh=True, **where)
    if network is not None:
        network.close()
    outcome.looks, outcome.half_visible = reader.looks, outcome.half_visible + reader.wrong[:5]
    outcome.lost += differences(job.state(), wanted.state)[:5]
    outcome.seconds = round(time.monotonic() - started, 2)
    return outcome


def _wait(job: Build, running: Running, files: int, child: bool) -> bool:
    """Until so many files are new (and it has a child, where one is wanted); False when it ended
    before."""
    before = sum(1 for name, _ in files_below(job.out) if job.is_decided(name))
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and running.ended(0.02) is None:
        now = sum(1 for name, _ in files_below(job.out) if job.is_decided(name))
        if now - before >= files and (not child or _children(running)):
            return True
    return False


def _children(running: Running) -> list[psutil.Process]:
    try:
        return psutil.Process(running.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _make(trouble: Trouble, running: Running, server: Server, network: Network | None) -> None:
    if trouble.kind == "command killed":
        running.kill()
    elif trouble.kind == "child killed":
        for one in _children(running)[:1]:
            one.kill()
    elif trouble.kind == "server killed":
        server.kill()
        running.ended(trouble.seconds)
        server.start()
    elif network is not None:
        network.cut() if trouble.kind == "network cut" else network.fall_silent()
        running.ended(trouble.seconds)
        network.mend()
