"""Who may ask: hosts, token, origin of changes, sizes of bodies, and headers of every answer.

Plain ASGI, so that nothing is buffered but small forms.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import time
import urllib.parse
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

import h11
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.generate.hosts import Hosts, is_same_origin
from focusdpo.studio.config import StudioConfig
from focusdpo.studio.views import render

LARGEST_JSON = 64 * 1024


async def pieces(request: Request, largest: int, refusal: str) -> AsyncIterator[bytes]:
    """The body as it comes; 413 as soon as it is known to have more than `largest` bytes."""
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > largest:
        raise HTTPException(413, refusal)
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > largest:
            raise HTTPException(413, refusal)
        yield piece


async def body(request: Request, largest: int, what: str) -> bytes:
    """All bytes, at most `largest`."""
    refusal = f"{what}: larger than {largest} bytes"
    return b"".join([piece async for piece in pieces(request, largest, refusal)])


async def json_body(request: Request) -> dict[str, Any]:
    """A JSON object; UserError for anything else."""
    try:
        values = json.loads(await body(request, LARGEST_JSON, "what was typed"))
    except (ValueError, RecursionError) as error:
        raise UserError("the request is no JSON; load the page again") from error
    if not isinstance(values, dict):
        raise UserError("the request is no JSON object; load the page again")
    return values


def text(values: Mapping[str, Any], key: str) -> str:
    """A text, "" where it is absent."""
    value = values.get(key, "")
    if not isinstance(value, str):
        raise UserError(f"{key}: expected a text")
    return value


SAFE = {"GET", "HEAD"}
OPEN_PATHS = ("/login", "/static/")
CSRF_HEADER = "x-csrf-token"
CSRF_FIELD = "csrf"
LARGEST_FORM = 256 * 1024
"""Bytes of a form without files."""
HEADER_SECONDS = 10.0
"""How long a request's first lines may take."""
BODY_SECONDS = 30.0
"""How long a body may stand still."""
MOST_SESSIONS = 1000
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # not no-referrer: with it browsers hide the origin of forms, which is checked
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class Keys:
    """Secrets of one process: the token of its forms, and who has logged in."""

    def __init__(self, config: StudioConfig) -> None:
        self._token = config.token
        self.csrf = secrets.token_urlsafe(32)
        self.cookie = f"focusdpo_studio_{config.port}"
        """Cookies are not kept apart by port, so the name is."""
        self._sessions: dict[str, None] = {}
        self.guesses = Guesses()

    def needs_login(self) -> bool:
        return self._token is not None

    def log_in(self, token: str) -> str | None:
        """A new session for who knows the token."""
        if self._token is None or not same(token, self._token):
            return None
        session = secrets.token_urlsafe(32)
        self._sessions[session] = None
        if len(self._sessions) > MOST_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        return session

    def log_out(self, session: str) -> None:
        self._sessions.pop(session, None)

    def knows(self, session: str) -> bool:
        return any(same(session, known) for known in self._sessions)


class Guesses:
    """Wrong tokens of late, by address: whoever guesses is not heard for a while, and costs neither
    a worker nor the wait of others."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wrong: dict[str, list[float]] = {}

    def too_many(self, address: str) -> bool:
        """Whether the address has to wait before its next guess is looked at."""
        since = self._clock() - GUESS_SECONDS
        recent = [at for at in self._wrong.get(address, ()) if at > since]
        return len(recent) >= MOST_GUESSES

    def wrong(self, address: str) -> None:
        """One more; the addresses that guessed longest ago are forgotten."""
        now = self._clock()
        recent = [at for at in self._wrong.pop(address, ()) if at > now - GUESS_SECONDS]
        self._wrong[address] = [*recent, now][-MOST_GUESSES:]
        if len(self._wrong) > MOST_SESSIONS:
            del self._wrong[next(iter(self._wrong))]


def same(left: str, right: str) -> bool:
    """Comparison that takes equally long wherever they differ."""
    return hmac.compare_digest(left.encode(), right.encode())


class Guard:
    """Refuses what may not come through, and adds the headers to what does."""

    def __init__(self, app: ASGIApp, config: StudioConfig, keys: Keys) -> None:
        self._app = app
        self._keys = keys
        self._hosts = Hosts(config.host, config.hosts, any_address=config.token is not None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        send, receive = _with_headers(send), _patient(receive)
        refused = self._refusal(HTTPConnection(scope))
        if refused is None and scope["method"] not in SAFE:
            refused, receive = await self._change(scope, receive)
        await (refused or self._app)(scope, receive, send)

    def _refusal(self, asked: HTTPConnection) -> Response | None:
        try:
            ours = self._hosts.answer_to(asked.headers.get("host", ""))
        except ValueError:
            return PlainTextResponse("The request's Host is no name and no address.\n", 400)
        if not ours:
            return PlainTextResponse(
                "This name is not the studio's. Open it by the address that `focusdpo studio` "
                "printed, or start it with --allow-host NAME.\n",
                421,
            )
        path = asked.url.path
        if not self._keys.needs_login() or path.startswith(OPEN_PATHS):
            return None
        if self._keys.knows(asked.cookies.get(self._keys.cookie, "")):
            return None
        if "text/html" in asked.headers.get("accept", "") and asked.scope["method"] in SAFE:
            target = path + (f"?{asked.url.query}" if asked.url.query else "")
            return RedirectResponse(f"/login?{urllib.parse.urlencode({'to': target})}", 303)
        return PlainTextResponse("Log in first, at /login.\n", 401)

    async def _change(self, scope: Scope, receive: Receive) -> tuple[Response | None, Receive]:
        headers = Headers(scope=scope)
        if not _is_same_origin(headers):
            return PlainTextResponse("A change must come from the studio's own pages.\n", 403), (
                receive
            )
        if scope["path"] == "/login":  # what it sends is the secret itself
            return None, receive
        sent = headers.get(CSRF_HEADER)
        if sent is None and headers.get("content-type", "").startswith(
            "application/x-www-form-urlencoded"
        ):
            body = await _body(receive, LARGEST_FORM)
            if body is None:
                return PlainTextResponse("The form is too large.\n", 413), receive
            sent = _field(body)
            receive = _again(body)
        if sent is None or not same(sent, self._keys.csrf):
            return (
                PlainTextResponse(
                    "This page is from before the studio was started anew. Load it again and "
                    "repeat what you did.\n",
                    403,
                ),
                receive,
            )
        return None, receive


def _is_same_origin(headers: Headers) -> bool:
    if not is_same_origin(headers.get("origin"), headers.get("host")):
        return False
    return headers.get("sec-fetch-site", "same-origin") in {"same-origin", "none"}


def _field(body: bytes) -> str | None:
    fields = urllib.parse.parse_qs(body.decode("utf-8", "replace"))
    values: Iterable[str] = fields.get(CSRF_FIELD, ())
    return next(iter(values), None)


async def _body(receive: Receive, largest: int) -> bytes | None:
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b""
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > largest:
            return None
        more = message.get("more_body", False)
    return b"".join(parts)


def _again(body: bytes) -> Receive:
    """A body that was read, for the next reader."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return left.pop() if left else {"type": "http.disconnect"}

    return receive


class PatientProtocol(H11Protocol):
    """HTTP whose visitors have `HEADER_SECONDS` to say what they want: a request that was begun and
    never ended holds no connection."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_waiting()

    def _await_headers(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _patient(receive: Receive) -> Receive:
    """Who sends a body and stops in the middle is let go."""
    whole = False

    async def wrapped() -> Message:
        nonlocal whole
        if whole:  # from here on it waits for the visitor to leave
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), BODY_SECONDS)
        except TimeoutError:
            whole = True
            return {"type": "http.disconnect"}
        whole = not message.get("more_body", False)
        return message

    return wrapped


def _with_headers(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message["headers"])
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("cache-control", "no-store")
            message["headers"] = headers.raw
        await send(message)

    return wrapped


WRONG_SECONDS = 0.5
"""What a wrong token costs who guesses."""
LONGEST_TOKEN = 1024
MOST_GUESSES, GUESS_SECONDS = 10, 60.0
"""Wrong tokens of one address in so many seconds."""


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
    address = request.client.host if request.client else ""
    if keys.guesses.too_many(address):
        return PlainTextResponse(
            f"Too many wrong tokens. Wait {GUESS_SECONDS:.0f} seconds, then try again.\n",
            429,
            {"retry-after": f"{GUESS_SECONDS:.0f}"},
        )
    session = keys.log_in(token) if len(token) <= LONGEST_TOKEN else None
    if session is None:
        keys.guesses.wrong(address)  # before the wait: those sent meanwhile count it
        await asyncio.sleep(WRONG_SECONDS)
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
