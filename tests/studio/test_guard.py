"""Who may ask the studio: hosts, token, origin of changes, sessions."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import uvicorn
from starlette.testclient import TestClient

from focusdpo.data_schemas.errors import UserError
from focusdpo.studio import guard
from focusdpo.studio.app import create_app
from focusdpo.studio.config import StudioConfig
from focusdpo.studio.guard import GUESS_SECONDS, MOST_GUESSES, Guesses

TOKEN = "a-token-of-some-length"
PAGE = {"accept": "text/html"}


def client(tmp_path: Path, base: str = "http://127.0.0.1:8765", **given: object) -> TestClient:
    config = StudioConfig(root=str(tmp_path / "root"), **given)
    return TestClient(create_app(config), base_url=base, follow_redirects=False)


def csrf_of(asked: TestClient) -> str:
    token: str = asked.app.state.keys.csrf  # type: ignore[attr-defined]
    return token


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "my-server", ""])
def test_beyond_loopback_a_token_is_needed(tmp_path: Path, host: str) -> None:
    with pytest.raises(UserError, match="token is needed"):
        create_app(StudioConfig(root=str(tmp_path), host=host))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.0.0.53"])
def test_on_loopback_none_is_needed(tmp_path: Path, host: str) -> None:
    assert client(tmp_path, host=host).get("/", headers=PAGE).status_code == 200


def test_a_short_token_is_refused_and_none_is_printed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 16"):
        create_app(StudioConfig(root=str(tmp_path), token="abc"))
    assert TOKEN not in repr(StudioConfig(root="r", token=TOKEN))


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", ""]
)
def test_a_name_turned_to_this_address_is_refused(tmp_path: Path, host: str) -> None:
    asked = client(tmp_path)
    assert asked.get("/", headers={**PAGE, "host": host}).status_code == 421


@pytest.mark.parametrize("host", ["[", "[::1", "[x]", "::1]"])
def test_a_host_that_is_none_is_a_bad_request(tmp_path: Path, host: str) -> None:
    assert client(tmp_path).get("/", headers={**PAGE, "host": host}).status_code == 400
    asked = client(tmp_path)
    sent = {"origin": f"http://{host}", "x-csrf-token": csrf_of(asked)}
    assert asked.post("/logout", headers=sent).status_code == 403


def test_who_guesses_tokens_is_not_heard_and_nobody_waits_for_him(tmp_path: Path) -> None:
    asked = client(tmp_path, token=TOKEN)
    start = time.monotonic()
    with ThreadPoolExecutor(60) as pool:
        told = list(
            pool.map(lambda at: asked.post("/login", data={"token": f"no-{at}"}).status_code,
                     range(60))
        )  # fmt: skip
    assert told.count(401) <= MOST_GUESSES and told.count(429) >= 60 - MOST_GUESSES
    refused = asked.post("/login", data={"token": TOKEN})
    assert refused.status_code == 429 and refused.headers["retry-after"] == "60"
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n",
        b"",
        b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n"
        b"Content-Type: application/x-www-form-urlencoded\r\n\r\nto",
    ],
    ids=["half a head", "nothing", "half a body"],
)  # fmt: skip
def test_who_stops_in_the_middle_of_a_request_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(guard, "HEADER_SECONDS", 1.0)
    monkeypatch.setattr(guard, "BODY_SECONDS", 1.0)
    app = create_app(StudioConfig(root=str(tmp_path / "root"), token=TOKEN))
    server = uvicorn.Server(uvicorn.Config(app, http=guard.PatientProtocol, log_level="warning"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            with socket.create_connection(listener.getsockname(), timeout=30) as visitor:
                visitor.sendall(sent)
                start = time.monotonic()
                while visitor.recv(4096):
                    pass
            assert 0.5 < time.monotonic() - start < 25
            ask = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            port = listener.getsockname()[1]
            assert ask.open(f"http://127.0.0.1:{port}/login", timeout=30).status == 200
        finally:
            server.should_exit = True
            thread.join()


def test_guesses_are_forgiven_and_counted_by_address() -> None:
    now = [0.0]
    guesses = Guesses(lambda: now[0])
    for _ in range(MOST_GUESSES):
        assert not guesses.too_many("a")
        guesses.wrong("a")
    assert guesses.too_many("a") and not guesses.too_many("b")
    now[0] = GUESS_SECONDS + 1
    assert not guesses.too_many("a")


def test_a_name_that_was_allowed_is_answered(tmp_path: Path) -> None:
    asked = client(tmp_path, hosts=("studio.lan",))
    assert asked.get("/", headers={**PAGE, "host": "studio.lan:8765"}).status_code == 200
    assert asked.get("/", headers={**PAGE, "host": "other.lan"}).status_code == 421


def test_a_literal_address_is_answered_only_with_a_token(tmp_path: Path) -> None:
    there = {**PAGE, "host": "192.168.1.5:8765"}
    assert client(tmp_path).get("/", headers=there).status_code == 421
    open_wide = client(tmp_path, host="0.0.0.0", token=TOKEN)
    assert open_wide.get("/", headers=there).status_code == 303


def test_without_the_token_nothing_is_seen(tmp_path: Path) -> None:
    asked = client(tmp_path, token=TOKEN)
    for path in ("/", "/pairs", "/subjects", "/runs", "/pictures/a/b/c"):
        answer = asked.get(path, headers=PAGE)
        assert answer.status_code == 303
        assert answer.headers["location"].startswith("/login?to=")
        assert asked.get(path, headers={"accept": "application/json"}).status_code == 401
    assert asked.post("/logout", headers={"x-csrf-token": csrf_of(asked)}).status_code == 401


def test_the_token_opens_and_logging_out_closes(tmp_path: Path) -> None:
    asked = client(tmp_path, token=TOKEN)
    wrong = asked.post("/login", data={"token": "no-such-token-here"})
    assert wrong.status_code == 401 and "not the token" in wrong.text
    assert "set-cookie" not in wrong.headers
    answer = asked.post("/login?to=/subjects", data={"token": TOKEN})
    assert (answer.status_code, answer.headers["location"]) == (303, "/subjects")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and TOKEN not in cookie
    assert asked.get("/", headers=PAGE).status_code == 200
    assert asked.post("/logout", data={"csrf": csrf_of(asked)}).status_code == 303
    # the cookie is of no use any more, even to who kept it
    asked.cookies.set(*answer.headers["set-cookie"].partition(";")[0].split("=", 1))
    assert asked.get("/", headers=PAGE).status_code == 303


def test_the_printed_address_opens_at_once(tmp_path: Path) -> None:
    asked = client(tmp_path, token=TOKEN)
    assert asked.get(f"/login?token={TOKEN}").headers["location"] == "/"
    assert asked.get("/", headers=PAGE).status_code == 200


@pytest.mark.parametrize(
    "to", ["//evil.example", "https://evil.example", "/\\evil.example", "/\t/evil.example", "x"]
)
def test_logging_in_leads_to_no_other_site(tmp_path: Path, to: str) -> None:
    asked = client(tmp_path, token=TOKEN)
    answer = asked.post("/login", params={"to": to}, data={"token": TOKEN})
    assert answer.headers["location"] == "/"


def test_a_change_needs_the_page_s_token(tmp_path: Path) -> None:
    asked = client(tmp_path)
    assert asked.post("/logout").status_code == 403
    assert asked.post("/logout", data={"csrf": "guessed"}).status_code == 403
    assert asked.post("/logout", headers={"x-csrf-token": "guessed"}).status_code == 403
    right = csrf_of(asked)
    assert asked.post("/logout", data={"csrf": right}).status_code == 303
    assert asked.post("/logout", headers={"x-csrf-token": right}).status_code == 303


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_a_change_from_elsewhere_is_refused(tmp_path: Path, headers: dict[str, str]) -> None:
    asked = client(tmp_path)
    headers = {"x-csrf-token": csrf_of(asked), **headers}
    assert asked.post("/logout", headers=headers).status_code == 403


def test_a_form_without_files_may_not_be_huge(tmp_path: Path) -> None:
    asked = client(tmp_path)
    data = {"csrf": csrf_of(asked), "text": "x" * 300_000}
    assert asked.post("/logout", data=data).status_code == 413


def test_every_answer_has_the_headers(tmp_path: Path) -> None:
    asked = client(tmp_path)
    for path in ("/", "/none", "/static/studio.css"):
        headers = asked.get(path, headers=PAGE).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "access-control-allow-origin" not in headers
