"""Which Prefect server records a run: the one that the environment names; or, where `--prefect`
asks for one and none is named, one that this process starts and that ends with it.

Its address is set as PREFECT_API_URL, so that to Prefect it is a server like any other. It listens
on loopback, lets in who knows a login that this process draws (other users of the machine do not),
and answers neither to another name (DNS rebinding) nor to any page of a browser: it has none of its
own, so whatever says an Origin is foreign. It reads a
pipe whose other end only this process holds: at its end of file, also after a kill -9, it stops
itself, after a while in which it stores what it was told. It has a session of its own, so that
Ctrl-C ends the command and not the server beneath it. When it is killed, another takes its place.

Prefect is imported after `prepare` has set its environment, by the flows alone: `--help`, plans,
plain calls and runs in which nothing is missing never pay for it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

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
LOGIN, SERVER_LOGIN = "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING"
"""What a client says, and what a server wants to hear."""
HOST = "127.0.0.1"
DATABASES = ("PREFECT_API_DATABASE_CONNECTION_URL", "PREFECT_SERVER_DATABASE_CONNECTION_URL")
"""Name another database than the file in Prefect's home."""
LOOK_SECONDS = 5.0
"""How long a database is looked through before a server is started on it."""


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

    UserError where that folder cannot be made or its database is damaged, when the server does not
    start, and for a named one that cannot be used.
    """
    hush()
    require_home()
    if has_prefect():
        url = named_address()
        if url is not None and not any(url == server.url for server in _STARTED):
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
    if not any(os.environ.get(name) for name in DATABASES):
        require_whole(home / "prefect.db")
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = int(free.getsockname()[1])
    os.environ["PREFECT_HOME"] = str(home)
    os.environ.setdefault(VARIABLE, "")
    os.environ[LOGIN] = f"focusdpo:{secrets.token_urlsafe(24)}"
    server = _Server(port, home / "server.log", os.environ[LOGIN])
    server.start()
    _STARTED.append(server)
    with working("waiting for Prefect's server (a new database takes some ten seconds)"):
        server.wait_until_up()
    os.environ["PREFECT_API_URL"] = server.url


def require_whole(database: Path) -> None:
    """UserError for Prefect's database if it is none or damaged: its server would try for minutes,
    or fail in the middle of a run. A large one is looked at for `LOOK_SECONDS` alone."""
    if not database.exists():
        return
    end = time.monotonic() + LOOK_SECONDS
    try:
        with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as look:
            look.set_progress_handler(lambda: time.monotonic() > end, 10_000)
            tables = {name for (name,) in look.execute("SELECT name FROM sqlite_master")}
            if tables and "alembic_version" not in tables:
                state = "another program's"
            else:
                state = str(look.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.OperationalError as error:
        if "interrupted" in str(error) or "locked" in str(error):
            return  # our time was up, or another command's server is writing
        state = str(error)
    except sqlite3.DatabaseError as error:
        state = str(error)
    if state != "ok":
        raise UserError(
            f"{database}: Prefect's database is damaged ({state.strip().splitlines()[0]}). It "
            "holds the history of runs alone: move it away and run the same command again, or use "
            "--no-prefect"
        )


class _Server(threading.Thread):
    """Keeps a server process alive for as long as this process lives."""

    def __init__(self, port: int, log_file: Path, login: str) -> None:
        super().__init__(name="prefect-server", daemon=True)
        self.url = f"http://{HOST}:{port}/api"
        self._port, self._log_file, self._login = port, log_file, login
        self._given_up = False
        self._was_up = False

    def run(self) -> None:
        for _ in range(1 + DEATHS):
            with self._log_file.open("ab") as output:
                process = subprocess.Popen(
                    [sys.executable, "-m", "focusdpo.flows.prefect.server", str(self._port)],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    env={**os.environ, SERVER_LOGIN: self._login},
                )
            code = process.wait()
            if code >= 0:  # it ended by itself, which no other would do better
                break
            log.warning("Prefect's server was killed (signal %d)", -code)
        self._given_up = True
        if self._was_up:  # else who waits for it tells
            log.error("Prefect's server stays away; %s tells why", self._log_file)

    def wait_until_up(self) -> None:
        """UserError when it does not answer in time."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and not self._given_up:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                    if answer.status == 200:
                        self._was_up = True
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
    from prefect.server.api.server import create_app

    threading.Thread(target=_wait_for_the_end, daemon=True).start()
    uvicorn.run(
        OwnClients(create_app(), f"{HOST}:{port}"),
        host=HOST,
        port=port,
        log_level="error",
        lifespan="on",
    )


class OwnClients:
    """An ASGI application for programs that ask it by its own address. Browsers say an Origin with
    whatever a page sends, and there is no page of ours here."""

    def __init__(self, app: Any, address: str) -> None:
        self._app, self._address = app, address

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket"):
            given = dict(scope["headers"])
            if given.get(b"host") != self._address.encode() or b"origin" in given:
                await _refuse(scope["type"], send)
                return
        await self._app(scope, receive, send)


async def _refuse(kind: str, send: Any) -> None:
    if kind == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    await send({"type": "http.response.start", "status": 403, "headers": []})
    await send({"type": "http.response.body", "body": b"This server is for its own command.\n"})


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
