"""The first page: what the root holds, and what to do next."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from focusdpo.studio.views import NavItem, render

NAV = (NavItem("Home", "/"),)


def home(request: Request) -> Response:
    return render(request, "home.html.j2")


def routes() -> list[BaseRoute]:
    return [Route("/", home)]
