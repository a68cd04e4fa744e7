"""The web server of `focusdpo studio`."""

from __future__ import annotations

import errno
import logging
import socket
import threading
import webbrowser

import uvicorn

from focusdpo.data_schemas.errors import UserError
from focusdpo.studio.app import create_app
from focusdpo.studio.settings import StudioConfig

log = logging.getLogger(__name__)


def serve(config: StudioConfig, *, open_browser: bool = False) -> None:
    """Serve until stopped. UserError when the address cannot be had."""
    config.check()
    listener = _listen(config)
    config = config.model_copy(update={"port": listener.getsockname()[1]})
    with listener:
        app = create_app(config)
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,  # addresses may hold a token
                server_header=False,
                timeout_graceful_shutdown=5,
            )
        )
        address = _address(config)
        _say(f"studio of {config.root}: {address} (stop with Ctrl-C)")
        threading.Thread(target=app.state.studio.warm, daemon=True).start()
        if open_browser:
            threading.Timer(0.5, webbrowser.open, [address]).start()
        server.run(sockets=[listener])


def _listen(config: StudioConfig) -> socket.socket:
    host = config.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # By its protocol's name asyncio knows that it may send small answers at once (TCP_NODELAY).
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, config.port))
        listener.listen(128)  # who comes before the server is ready waits
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"--port {config.port}: another program listens there; choose another, or 0 for "
                "any free one"
            ) from error
        raise UserError(
            f"--host {config.host} --port {config.port}: cannot be had ({error.strerror or error})"
        ) from error
    return listener


def _address(config: StudioConfig) -> str:
    host = config.host.strip("[]")
    if host in {"0.0.0.0", "::", ""}:
        host = socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{config.port}/"


def _say(text: str) -> None:
    """To stdout, at once."""
    import typer

    typer.echo(text)
