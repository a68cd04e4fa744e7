"""Pages from templates. Everything shown is escaped by jinja2."""

from __future__ import annotations

import dataclasses
import hashlib
from importlib import resources
from typing import Any

import jinja2
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from focusdpo.studio import formats
from focusdpo.studio.state import Studio, absent

__all__ = ["NavItem", "absent", "environment", "failure", "render", "studio_of", "wants_json"]


NO_PAGE = "There is no such page."


@dataclasses.dataclass(frozen=True)
class NavItem:
    """An entry of the navigation."""

    title: str
    path: str


def environment(navigation: tuple[NavItem, ...]) -> jinja2.Environment:
    """The studio's templates; a name that a page was not given is an error."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("focusdpo.studio"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= formats.FILTERS
    made.globals["navigation"] = navigation
    made.globals["assets"] = _asset_tag()
    return made


def studio_of(request: Request) -> Studio:
    """The application's state."""
    studio: Studio = request.app.state.studio
    return studio


def render(request: Request, template: str, status: int = 200, **values: Any) -> Response:
    """A page. Templates always know `studio`, `path`, `csrf` and `logged_in` besides `values`."""
    state = request.app.state
    text = state.templates.get_template(template).render(
        studio=state.studio,
        path=request.url.path,
        csrf=state.keys.csrf,
        logged_in=state.keys.needs_login(),
        **values,
    )
    return HTMLResponse(text, status)


def wants_json(request: Request) -> bool:
    """Whether a script asks, not a person."""
    return "text/html" not in request.headers.get("accept", "text/html")


def failure(request: Request, status: int, message: str) -> Response:
    """A page, or JSON for scripts, that says what is wrong."""
    if wants_json(request):
        return JSONResponse({"error": message}, status)
    titles = {404: "Not found", 400: "That did not work", 413: "Too large", 409: "Too late"}
    return render(request, "error.html.j2", status, title=titles.get(status, "Error"), said=message)


async def on_user_error(request: Request, error: Exception) -> Response:
    return failure(request, 400, str(error))


async def on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    no_page = error.status_code == 404 and error.detail == "Not Found"
    return failure(request, error.status_code, NO_PAGE if no_page else error.detail)


def _asset_tag() -> str:
    """Changes with the static files, so that browsers may keep them."""
    found = hashlib.blake2b(digest_size=6)
    folder = resources.files("focusdpo.studio") / "static"
    for one in sorted(folder.iterdir(), key=lambda one: one.name):
        found.update(one.read_bytes())
    return found.hexdigest()
