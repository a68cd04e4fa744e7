"""A Prefect server on loopback with a database of its own, as the docs start one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from processes import free_ports

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PREFECT, FOCUSDPO = str(BIN / "prefect"), str(BIN / "focusdpo")


@dataclass
class Server:
    """A Prefect server, what was started beside it, and the environment that finds them."""

    environment: dict[str, str]
    folder: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.environment["PREFECT_API_URL"]

    def call(
        self, program: str, *arguments: str, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """A command to its end."""
        ended = subprocess.run(
            [program, *arguments],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=1200,
            check=False,
        )
        if check and ended.returncode:
            raise AssertionError(f"{arguments}: {ended.stdout}{ended.stderr}")
        return ended

    def prefect(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.call(PREFECT, *arguments, check=check)

    def focusdpo(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.call(FOCUSDPO, *arguments, check=check)

    def run(self, name: str, **run: object) -> str:
        """Run a deployment to its end; what was printed."""
        ended = self.prefect(
            "deployment", "run", name, "--param", f"run={json.dumps(run)}", "--watch", check=False
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr + self.log("worker")
        return ended.stdout

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """A process of Prefect's that stays."""
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [PREFECT, *arguments],
                env=self.environment,
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return self.processes[name]

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()[-6000:]

    def post(self, path: str, body: object) -> Any:
        """What the API answers."""
        request = urllib.request.Request(
            f"{self.url}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def get(self, path: str, body: dict[str, object]) -> list[dict[str, Any]]:
        found = self.post(path, body)
        assert isinstance(found, list)
        return found

    def wait_for(self, what: str, look: Any, seconds: float = 600) -> Any:
        """The first true answer of `look`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := look():
                return found
            time.sleep(0.5)
        raise AssertionError(f"no {what} in {seconds:g} s\n{self.log('server')}")

    def runs(self, flow: str) -> list[dict[str, Any]]:
        """Runs of a flow, newest first."""
        return self.get(
            "flow_runs/filter",
            {"flows": {"name": {"any_": [flow]}}, "sort": "EXPECTED_START_TIME_DESC"},
        )


@contextmanager
def running_server(folder: Path, **more: str) -> Iterator[Server]:
    """Started, and ended with all that was started beside it. `more`: environment."""
    (port,) = free_ports(1)
    (folder / "home").mkdir(parents=True)
    environment = {
        **os.environ,
        "PWD": str(folder),  # as a shell that went there would have it
        "PREFECT_HOME": str(folder / "home"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
        **more,
    }
    made = Server(environment, folder)
    try:
        made.start("server", "server", "start", "--port", str(port))
        _wait_until_healthy(made)
        yield made
    finally:
        for process in reversed(made.processes.values()):
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_healthy(server: Server) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert server.processes["server"].poll() is None, server.log("server")
        try:
            urllib.request.urlopen(f"{server.url}/health", timeout=5)
        except (urllib.error.URLError, OSError):
            time.sleep(1)
        else:
            return
    raise AssertionError("the server did not answer\n" + server.log("server"))
