"""The application: `create_app(StudioConfig)`.

A module of pages has `NAV`, its entries of the navigation, and `routes()`; it is one line in
`MODULES`. Endpoints are plain functions, which Starlette calls in a thread.
"""

from __future__ import annotations

import importlib

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import BaseRoute

from focusdpo.data_schemas.errors import UserError
from focusdpo.studio import views
from focusdpo.studio.acting import Acting
from focusdpo.studio.guard import Guard, Keys
from focusdpo.studio.settings import StudioConfig
from focusdpo.studio.state import Studio

MODULES = (
    "pages_home",
    "pages_subjects",
    "pages_scenes",
    "pages_pairs",
    "pages_rejects",
    "pages_focus",
    "pages_runs",
    "pages_evaluations",
    "review",
    "uploads",
    "jobs",
    "image_routes",
    "static_files",
    "login",
)
"""In the order of the navigation."""


def create_app(config: StudioConfig) -> Starlette:
    """The studio of a root. UserError when strangers could look in, or the root is no root."""
    config.check()
    keys = Keys(config)
    modules = [importlib.import_module(f"focusdpo.studio.{name}") for name in MODULES]
    routes: list[BaseRoute] = [route for one in modules for route in one.routes()]
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(Guard, config=config, keys=keys),
            Middleware(GZipMiddleware, minimum_size=2048, compresslevel=4),
        ],
        exception_handlers={UserError: views.on_user_error, HTTPException: views.on_http_error},
    )
    app.state.keys = keys
    app.state.studio = Studio(config)
    app.state.acting = Acting(config)
    app.state.templates = views.environment(tuple(item for one in modules for item in one.NAV))
    return app
