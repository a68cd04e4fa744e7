"""Style, scripts and icon, from the package itself."""

from __future__ import annotations

from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from focusdpo.studio.views import NavItem, absent

NAV: tuple[NavItem, ...] = ()
KINDS = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
FOREVER = {"cache-control": "public, max-age=31536000, immutable"}


def static(request: Request) -> Response:
    """A file of the package's folder `static`; addresses carry the files' hash."""
    name = request.path_params["name"]
    known = {one.name: one for one in (resources.files("focusdpo.studio") / "static").iterdir()}
    suffix = name.rpartition(".")[2]
    if name not in known or suffix not in KINDS:
        raise absent(f"no file '{name}'")
    return Response(known[name].read_bytes(), media_type=KINDS[suffix], headers=FOREVER)


def routes() -> list[BaseRoute]:
    return [Route("/static/{name}", static)]
