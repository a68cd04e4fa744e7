"""The studio: application, static files, and the web server of `focusdpo studio`.

A module of pages has `routes()` and may have `NAV`, entries of the navigation; it is one line in
`MODULES`. Endpoints are plain functions, which Starlette calls in a thread.
"""

from __future__ import annotations

import errno
import importlib
import socket
import threading
import webbrowser

import typer
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import BaseRoute

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.terminal import LOADS
from focusdpo.studio import views
from focusdpo.studio.config import StudioConfig
from focusdpo.studio.guard import Guard, Keys, PatientProtocol
from focusdpo.studio.shared import Studio

MODULES = (
    "pages.home_page",
    "pages.subjects_page",
    "pages.scenes_page",
    "pages.pairs_page",
    "pages.rejects_page",
    "pages.focus_page",
    "pages.runs_page",
    "pages.evaluations_page",
    "pages.paint_page",
    "pages.review_page",
    "pages.several_page",
    "pages.upload_page",
    "pages.jobs_page",
    "pages.file_routes",
    "guard",
)
"""In the order of the navigation."""


def create_app(config: StudioConfig) -> Starlette:
    """The studio of a root. UserError when strangers could look in, or the root is no root."""
    config.check()
    keys = Keys(config)
    modules = [importlib.import_module(f"focusdpo.studio.{name}") for name in MODULES]
    routes: list[BaseRoute] = [route for module in modules for route in module.routes()]
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(Guard, config=config, keys=keys),
            Middleware(GZipMiddleware, minimum_size=2048, compresslevel=4),
        ],
        exception_handlers={
            UserError: views.on_user_error,
            HTTPException: views.on_http_error,
            OSError: views.on_os_error,
        },
    )
    app.state.keys = keys
    app.state.studio = Studio(config)
    app.state.templates = views.environment(
        tuple(item for module in modules for item in getattr(module, "NAV", ()))
    )
    return app


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
                http=PatientProtocol,
            )
        )
        address = _address(config)
        typer.echo(f"studio of {config.root}: {address} (stop with Ctrl-C)")
        threading.Thread(
            target=app.state.studio.warm, name=f"{LOADS} the studio's models", daemon=True
        ).start()
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
