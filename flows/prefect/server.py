"""Which Prefect server records a run: the one that the environment names; or, where `--prefect`
asks for one and none is named, one that this process starts and that ends with it.

Its address is set as PREFECT_API_URL, so that to Prefect it is a server like any other. It reads a
pipe whose other end only this process holds: at its end of file, also after a kill -9, it stops
itself, after a while in which it stores what it was told. It has a session of its own, so that
Ctrl-C ends the command and not the server beneath it. When it is killed, another takes its place.

Prefect is imported after `prepare` has set its environment, by the flows alone: `--help`, plans,
plain calls and runs in which nothing is missing never pay for it.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.console import working
from focusdpo.flows.prefect.gpu_slot import VARIABLE
from focusdpo.flows.prefect.reachable import named_address, require_home, require_server

log = logging.getLogger(__name__)

QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_SERVER_LEVEL": "ERROR",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
    "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
    "PREFECT_CLI_COLORS": "false",
}
"""Nothing is sent out, nothing chatters, and a slow or busy machine is waited for."""
START_SECONDS = 300.0
"""How long the server may take to answer."""
STORE_SECONDS = 4.0
"""How long it goes on after its command, to store what it was told."""
STOP_SECONDS = 20.0
"""How long it has for an orderly end after that."""
DEATHS = 3
"""Servers of a command that are replaced when they are killed."""


def has_prefect() -> bool:
    """Whether the environment names a server of Prefect, or a profile that does."""
    return any(os.environ.get(name) for name in ("PREFECT_API_URL", "PREFECT_PROFILE"))


def hush() -> None:
    """Let Prefect send nothing out and chatter little, unless the user said otherwise."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def prepare(work_folder: str) -> None:
    """Set Prefect's environment. Where the user has not, its database lies in `.prefect` of the
    work folder (or of `~/.focusdpo` for a remote one), and a server is started, which no other run
    shares: so it has no limit for the GPU.

    UserError where that folder cannot be made, when the server does not start, and for a named one
    that cannot be used.
    """
    hush()
    require_home()
    if has_prefect():
        url = named_address()
        if url is not None and not any(url == own.url for own in _STARTED):
            with working("asking the Prefect server"):
                require_server(url)
        return
    remote = "://" in work_folder and not work_folder.startswith("file://")
    base = Path.home() / ".focusdpo" if remote else Path(work_folder.removeprefix("file://"))
    home = Path(os.environ.get("PREFECT_HOME") or base / ".prefect").resolve()
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{home}: cannot be made ({error.strerror}); Prefect keeps its database there. "
            "Choose a folder that can be written, set PREFECT_HOME, or use --no-prefect"
        ) from error
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    os.environ["PREFECT_HOME"] = str(home)
    os.environ.setdefault(VARIABLE, "")
    server = _Server(port, home / "server.log")
    server.start()
    _STARTED.append(server)
    with working("waiting for Prefect's server (a new database takes some ten seconds)"):
        server.wait_until_up()
    os.environ["PREFECT_API_URL"] = server.url


class _Server(threading.Thread):
    """Keeps a server process alive for as long as this process lives."""

    def __init__(self, port: int, log_file: Path) -> None:
        super().__init__(name="prefect-server", daemon=True)
        self.url = f"http://127.0.0.1:{port}/api"
        self._port, self._log_file = port, log_file
        self._given_up = False

    def run(self) -> None:
        for _ in range(1 + DEATHS):
            with self._log_file.open("ab") as output:
                process = subprocess.Popen(
                    [sys.executable, "-m", "focusdpo.flows.prefect.server", str(self._port)],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            code = process.wait()
            if code >= 0:  # it ended by itself, which no other would do better
                break
            log.warning("Prefect's server was killed (signal %d)", -code)
        self._given_up = True
        log.error("Prefect's server stays away; %s tells why", self._log_file)

    def wait_until_up(self) -> None:
        """UserError when it does not answer in time."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and not self._given_up:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                pass  # not up yet
            time.sleep(0.1)
        raise UserError(
            f"Prefect's server did not start ({self._log_file} tells why); use --no-prefect, or "
            "name a server in PREFECT_API_URL"
        )


_STARTED: list[_Server] = []
"""Those of this process: one that was killed is being replaced, so nobody asks after them."""


def serve(port: int) -> None:
    """The server's process: until it is told to stop, or its standard input ends."""
    import uvicorn

    threading.Thread(target=_wait_for_the_end, daemon=True).start()
    uvicorn.run(
        "prefect.server.api.server:create_app",
        factory=True,
        host="127.0.0.1",
        port=port,
        log_level="error",
        lifespan="on",
    )


def _wait_for_the_end() -> None:
    while os.read(0, 4096):
        pass
    time.sleep(STORE_SECONDS)  # tasks are recorded from events, which wait in queues
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_SECONDS)  # open connections would keep it waiting
    os._exit(1)


if __name__ == "__main__":
    os.environ["PREFECT_UI_ENABLED"] = "0"
    serve(int(sys.argv[1]))
