"""The server that Prefect starts for a command without one: it ends when the command's process
does, also when that is killed; and when it is killed itself, another takes its place.

Prefect ends its own from `atexit`, which a kill -9 skips; the server then lives on. This one reads
a pipe whose other end only the command's process holds: at its end of file it stops itself, after
it has stored what it was told. (Ended by a signal at once, as Prefect does, it forgets the last
tasks of a run and complains about that.)
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time

log = logging.getLogger(__name__)

STORE_SECONDS = 10.0
"""How long it may take to store what it was told."""
STOP_SECONDS = 5.0
"""How long it has for an orderly end after that."""
DEATHS = 3
"""Servers of a command that are replaced when they are killed."""
QUIET_SECONDS = 0.6
"""Nothing waits for so long: all is stored."""


def tether() -> None:
    """Let the server that Prefect may start in this process be one that ends with it.

    Prefect keeps one per process in a table of its class and takes what lies there. Nothing is
    started here, and nothing changes where PREFECT_API_URL names a server.
    """
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import get_current_settings

    class Tethered(SubprocessASGIServer):
        """Started with a pipe as its standard input."""

        _deaths = 0
        _ending = False

        def _run_uvicorn_command(self) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [sys.executable, "-m", "focusdpo.flows.prefect.ephemeral", str(self.port)],
                stdin=subprocess.PIPE,
                env={
                    **os.environ,
                    "PREFECT_UI_ENABLED": "0",
                    "PREFECT__SERVER_EPHEMERAL": "1",
                    "PREFECT__SERVER_FINAL": "1",
                    **get_current_settings().to_environment_variables(exclude_unset=True),
                },
            )
            watch = threading.Thread(target=self._replace, args=(process,), daemon=True)
            watch.start()
            return process

        def _replace(self, process: subprocess.Popen[bytes]) -> None:
            """Another server on the same port and database when this one dies by a signal (kill -9,
            no memory left): clients ask again, and the run goes on."""
            code = process.wait()
            if code >= 0 or self._ending:
                return
            self._deaths += 1
            if self._deaths > DEATHS:
                log.error("Prefect's server was killed %d times; it stays away", self._deaths)
                return
            log.warning("Prefect's server was killed (signal %d); started again", -code)
            self.server_process = self._run_uvicorn_command()

        def stop(self) -> None:
            self._ending = True
            process = self.server_process
            if process is not None and process.stdin is not None:
                process.stdin.close()
                try:
                    process.wait(STORE_SECONDS + STOP_SECONDS + 5)
                except subprocess.TimeoutExpired:
                    log.warning("Prefect's server %d does not end by itself", process.pid)
            super().stop()

    # It registers itself under its port, None: the one that everything in this process asks for.
    Tethered()


def serve(port: int) -> None:
    """The server's process: until it is told to stop, or its standard input ends."""
    import uvicorn

    threading.Thread(target=_wait_for_the_end, name="tether", daemon=True).start()
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
    try:
        _wait_until_stored()
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        # Open connections would keep it waiting.
        time.sleep(STOP_SECONDS)
        os._exit(1)


def _wait_until_stored() -> None:
    """Until no event waits in the server's queues: tasks are recorded from events."""
    from prefect.server.utilities.messaging.memory import Topic

    end, quiet_since = time.monotonic() + STORE_SECONDS, time.monotonic()
    while time.monotonic() < min(end, quiet_since + QUIET_SECONDS):
        time.sleep(0.1)
        subscriptions = [one for topic in Topic._topics.values() for one in topic._subscriptions]
        if any(one._queue.qsize() + one._retry.qsize() for one in subscriptions):
            quiet_since = time.monotonic()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
