"""Real services as processes on loopback: start, wait until one answers, kill, stop. Each process
leads a group of its own, so that what it started goes with it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

STOP_SECONDS = 60


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on, all different, below the range from which
    outgoing connections and whoever asks for port 0 are given theirs; drawn, so that two processes
    of tests hardly get the same before they listen."""
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randrange(15_000, 32_000)
        with socket.socket() as holder, contextlib.suppress(OSError):
            holder.bind(("127.0.0.1", port))
            found += [port] if port not in found else []
    return found


class Service:
    """One process, its log, and its whole group."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        user: int | None = None,
    ) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                list(command),
                env=None if environment is None else dict(environment),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=user,
                group=user,
                extra_groups=None if user is None else [],
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def told(self, last: int = 6000) -> str:
        """The end of its log."""
        return self.log.read_text("utf-8", errors="replace")[-last:]

    def wait_until(self, ready: Callable[[], bool], seconds: float = 300) -> None:
        """Until `ready`; AssertionError with the log when the process ends or time runs out."""
        deadline = time.monotonic() + seconds
        while not ready():
            assert self.process.poll() is None, f"{self.name} ended:\n{self.told()}"
            assert time.monotonic() < deadline, f"{self.name} is not ready:\n{self.told()}"
            time.sleep(0.25)

    def kill(self) -> None:
        """SIGKILL to the process and all that it started."""
        self._signal(signal.SIGKILL)
        self.process.wait()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """`how` to the process alone, as a container is stopped; what is left then is killed."""
        if self.process.poll() is None:
            self.process.send_signal(how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
        self._signal(signal.SIGKILL)
        return self.process.wait()

    def _signal(self, which: signal.Signals) -> None:
        try:
            os.killpg(self.process.pid, which)
        except ProcessLookupError:
            return


def answers(url: str, timeout: float = 5) -> bool:
    """Whether a GET is answered with success."""
    try:
        with urllib.request.urlopen(url, timeout=timeout):
            return True
    except (urllib.error.URLError, OSError):
        return False


def stop_all(services: Sequence[Service | Any]) -> None:
    """The newest first; every one is stopped, even if another cannot be."""
    errors: list[Exception] = []
    for service in reversed(services):
        try:
            service.stop()
        except Exception as error:  # noqa: BLE001 - raised below, with the others
            errors.append(error)
    if errors:
        raise ExceptionGroup("services that could not be stopped", errors)
