"""The token: asked once, then a cookie stands for it."""

from __future__ import annotations

import time

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from focusdpo.studio.guard import Keys
from focusdpo.studio.views import NavItem, render

NAV: tuple[NavItem, ...] = ()
WRONG_SECONDS = 0.5
"""What a wrong token costs who guesses."""
LONGEST_TOKEN = 1024


async def page(request: Request) -> Response:
    """The form; with ?token=... as printed at the start, straight in."""
    keys: Keys = request.app.state.keys
    if not keys.needs_login():
        return RedirectResponse("/", 303)
    if "token" in request.query_params:
        return await _enter(request, request.query_params["token"])
    return _form(request, wrong=False)


async def enter(request: Request) -> Response:
    """The form as it was sent."""
    form = await request.form(max_files=0, max_fields=10, max_part_size=8192)
    return await _enter(request, str(form.get("token", "")))


async def leave(request: Request) -> Response:
    """Log out."""
    keys: Keys = request.app.state.keys
    keys.log_out(request.cookies.get(keys.cookie, ""))
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(keys.cookie)
    return answer


async def _enter(request: Request, token: str) -> Response:
    keys: Keys = request.app.state.keys
    session = keys.log_in(token) if len(token) <= LONGEST_TOKEN else None
    if session is None:
        await run_in_threadpool(time.sleep, WRONG_SECONDS)
        return _form(request, wrong=True)
    answer = RedirectResponse(_target(request), 303)
    answer.set_cookie(
        keys.cookie, session, httponly=True, samesite="strict", secure=request.url.scheme == "https"
    )
    return answer


def _form(request: Request, *, wrong: bool) -> Response:
    return render(request, "login.html.j2", 401 if wrong else 200, to=_target(request), wrong=wrong)


def _target(request: Request) -> str:
    """Where to go on: a path of the studio and never another site."""
    target = request.query_params.get("to", "/")
    # browsers read a backslash as a slash and drop tabs and line ends
    is_path = target.startswith("/") and not target.startswith("//")
    return target if is_path and "\\" not in target and target.isprintable() else "/"


def routes() -> list[BaseRoute]:
    return [
        Route("/login", page),
        Route("/login", enter, methods=["POST"]),
        Route("/logout", leave, methods=["POST"]),
    ]
