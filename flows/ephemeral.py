"""The server that Prefect starts for a command without one: it ends when the command's process
does, also when that is killed.

Prefect ends its own from `atexit`, which a kill -9 skips; the server then lives on. This one reads
a pipe whose other end only the command's process holds: at its end of file it stops itself.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading

log = logging.getLogger(__name__)

STOP_SECONDS = 5.0
"""How long it has for an orderly end."""


def tether() -> None:
    """Let the server that Prefect may start in this process be one that ends with it.

    Prefect keeps one per process in a table of its class and takes what lies there. Nothing is
    started here, and nothing changes where PREFECT_API_URL names a server.
    """
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import get_current_settings

    class Tethered(SubprocessASGIServer):
        """Started with a pipe as its standard input."""

        def _run_uvicorn_command(self) -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                [sys.executable, "-m", "focusdpo.flows.ephemeral", str(self.port)],
                stdin=subprocess.PIPE,
                env={
                    **os.environ,
                    "PREFECT_UI_ENABLED": "0",
                    "PREFECT__SERVER_EPHEMERAL": "1",
                    "PREFECT__SERVER_FINAL": "1",
                    **get_current_settings().to_environment_variables(exclude_unset=True),
                },
            )

        def stop(self) -> None:
            process = self.server_process
            super().stop()
            if process is not None and process.stdin is not None:
                process.stdin.close()

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
    os.kill(os.getpid(), signal.SIGTERM)
    # Open connections would keep it waiting.
    threading.Event().wait(STOP_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
