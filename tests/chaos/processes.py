"""Starts commands, each in a process group of its own, and ends them the hard way."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parents[2]
HELPERS = ROOT / "tests" / "helpers"
COMMAND = Path(__file__).with_name("command.py")
PATIENCE = 1800.0
"""Seconds after which a command that should end is taken to hang."""


class Hangs(AssertionError):
    """A command that should have ended has not."""


class Process(Protocol):
    """A command that runs."""

    pid: int

    def ended(self, seconds: float) -> int | None:
        """Its exit code (minus the signal's number if one ended it), or None when it still runs
        after so many seconds."""
        ...


@dataclass
class Running:
    """A command, and where it writes."""

    process: Process
    stdout: Path
    stderr: Path
    started: float = field(default_factory=time.monotonic)

    @property
    def pid(self) -> int:
        return self.process.pid

    def ended(self, seconds: float = 0.0) -> int | None:
        """See `Process`."""
        return self.process.ended(seconds)

    def wait(self, seconds: float = PATIENCE) -> int:
        """Its exit code. Hangs when it does not end; then the group is killed."""
        code = self.ended(seconds)
        if code is None:
            self.kill()
            self.ended(60)
            raise Hangs(f"still running after {seconds:.0f} s:\n{self.said()[-2000:]}")
        return code

    def kill(self, *, group: bool = True) -> None:
        """SIGKILL to all its processes, or to the first alone."""
        with contextlib.suppress(ProcessLookupError):
            if group:
                os.killpg(self.pid, signal.SIGKILL)
            else:
                os.kill(self.pid, signal.SIGKILL)

    def said(self) -> str:
        """All that it wrote: for people first."""
        return self.stderr.read_text("utf-8") + self.stdout.read_text("utf-8")


class Spawned:
    """A command in an interpreter of its own."""

    def __init__(
        self, arguments: Sequence[str], environment: Mapping[str, str], folder: Path, out: Path
    ) -> None:
        with (out / "stdout").open("wb") as stdout, (out / "stderr").open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, str(COMMAND), *arguments],
                env={**os.environ, **environment},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def ended(self, seconds: float) -> int | None:
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None


class ForkServer:
    """One interpreter with all imports done; each command is a fork of it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(COMMAND), "--serve"],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._buffer = b""
        if self.hear(PATIENCE) != "ready":
            raise RuntimeError("the fork server did not start; see its message above")

    def start(
        self, arguments: Sequence[str], environment: Mapping[str, str], folder: Path, out: Path
    ) -> Forked:
        """A command; one at a time."""
        given = {
            "arguments": list(arguments),
            "environment": dict(environment),
            "folder": str(folder),
            "stdout": str(out / "stdout"),
            "stderr": str(out / "stderr"),
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(given).encode() + b"\n")
        self._process.stdin.flush()
        return Forked(self, int(self.hear(60)))

    def hear(self, seconds: float) -> Any:
        """The next line, or None when there is none after so many seconds."""
        assert self._process.stdout is not None
        end = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            ready, _, _ = select.select(
                [self._process.stdout], [], [], max(0.0, end - time.monotonic())
            )
            if not ready:
                return None
            data = os.read(self._process.stdout.fileno(), 65536)
            if not data:
                raise RuntimeError("the fork server ended; see its message above")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def close(self) -> None:
        """Ends it when its command has."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


class Forked:
    """A command in a fork of the server."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self._server, self.pid = server, pid
        self._code: int | None = None

    def ended(self, seconds: float) -> int | None:
        if self._code is None:
            status = self._server.hear(seconds)
            if status is not None:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code


class Launcher:
    """Starts the commands of a job on one suite, from a fork server or afresh."""

    def __init__(self, suite: str, out: Path) -> None:
        self.environment = {
            "TOY_SUITE": suite,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        self._out, self._count = out, 0
        self._server: ForkServer | None = None

    def start(
        self,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        *,
        fresh: bool = False,
    ) -> Running:
        """A command in `folder`. `fresh`: in an interpreter of its own."""
        self._count += 1
        out = self._out / f"{self._count:05d}"
        out.mkdir(parents=True)
        both = {**self.environment, **environment}
        process: Process
        if fresh:
            process = Spawned(arguments, both, folder, out)
        else:
            if self._server is None:
                self._server = ForkServer(self.environment)
            process = self._server.start(arguments, both, folder, out)
        return Running(process, out / "stdout", out / "stderr")

    def close(self) -> None:
        """Ends the fork server."""
        if self._server is not None:
            self._server.close()
            self._server = None
