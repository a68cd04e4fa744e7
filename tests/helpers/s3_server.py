"""An S3 server on loopback: moto's, behind a door that makes it as strict as the real one, and that
fails when it is told to.

moto looks at a condition and then writes; here requests that write go one after another, so that of
two writers only one is first. Uploads in parts heed no condition.

    python s3_server.py [BUCKET]        serves until its input ends; prints its address
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

BUCKET = "roots"
"""Made by the fixture `s3`."""
KEY_ID, SECRET, TOKEN = "LOOPBACKKEY", "never-shown-secret", "never-shown-token"
WRITES = {"PUT", "POST", "DELETE"}


class Cut(ConnectionError):
    """The connection is to end in the middle of the answer."""


@dataclass
class Faults:
    """What goes wrong from now on."""

    refuse: int = 0
    """So many requests are answered with `status`."""
    status: str = "503 Slow Down"
    code: str = "SlowDown"
    cut: int = 0
    """So many requests lose their connection: before anything was done ..."""
    late: bool = False
    """... or, with this, after all was done and before the answer."""
    short: int = 0
    """So many answers to GET end half-way."""
    only: str = ""
    """Only requests of this method."""
    slow: float = 0.0
    """Seconds that each request waits."""


@dataclass
class Door:
    """A WSGI application around another."""

    inner: Callable[..., Iterable[bytes]]
    faults: Faults = field(default_factory=Faults)
    seen: Counter[str] = field(default_factory=Counter)
    """Requests by method."""
    ranges: int = 0
    """GETs of a range."""
    sent: int = 0
    """Bytes of answers to GET."""
    clock: threading.Lock = field(default_factory=threading.Lock)
    writing: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        fate = self._fate(method, environ)
        if self.faults.slow:
            time.sleep(self.faults.slow)
        if fate == "refuse":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            text = f"<?xml version='1.0'?><Error><Code>{self.faults.code}</Code></Error>".encode()
            start(
                self.faults.status,
                [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))],
            )
            return [] if method == "HEAD" else [text]
        if fate == "cut":
            raise Cut
        with self.writing if method in WRITES else contextlib.nullcontext():
            status, headers, body = self._ask(environ)
        if fate == "late":
            raise Cut
        start(status, headers)
        if method == "GET":
            self.sent += len(body)
        if fate == "short":
            return _half(body)
        return [body]

    def _fate(self, method: str, environ: dict[str, Any]) -> str:
        with self.clock:
            self.seen[method] += 1
            self.ranges += "HTTP_RANGE" in environ
            faults = self.faults
            if faults.only and faults.only != method:
                return "fine"
            if faults.refuse:
                faults.refuse -= 1
                return "refuse"
            if faults.cut:
                faults.cut -= 1
                return "late" if faults.late else "cut"
            if faults.short and method == "GET":
                faults.short -= 1
                return "short"
            return "fine"

    def _ask(self, environ: dict[str, Any]) -> tuple[str, list[Any], bytes]:
        told: list[Any] = []

        def start(status: str, headers: list[Any], _: Any = None) -> None:
            told[:] = [status, headers]

        body = b"".join(self.inner(environ, start))
        return told[0], told[1], body


def _half(body: bytes) -> Iterator[bytes]:
    yield body[: len(body) // 2]
    raise Cut


class _Quiet(WSGIRequestHandler):
    """Keeps connections, says nothing, and ends one where a `Cut` asks for it."""

    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: Any) -> None:
        pass

    def connection_dropped(self, error: BaseException, environ: Any = None) -> None:
        self.close_connection = True


@dataclass
class S3Server:
    """A running server."""

    url: str
    door: Door
    server: BaseWSGIServer

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to know."""
        return environment(self.url)

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Clients of this process come here; nothing fails, nothing is counted yet."""
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        self.fail()
        self.door.seen.clear()

    def fail(self, **faults: Any) -> None:
        self.door.faults = Faults(**faults)

    def make_bucket(self, name: str) -> str:
        """An empty one. Servers of one process share what they keep."""
        import moto.s3.models

        backend = moto.s3.models.s3_backends["123456789012"]["aws"]
        backend.buckets.pop(name, None)
        moto.s3.models.s3_backends.bucket_accounts.pop(name, None)
        backend.create_bucket(name, "us-east-1")
        return f"s3://{name}"

    def objects(self, bucket: str) -> dict[str, bytes]:
        """Everything in a bucket, past the protocol."""
        import moto.s3.models

        held = moto.s3.models.s3_backends["123456789012"]["aws"].buckets[bucket]
        with self.door.writing:
            return {key: held.keys[key].value for key in sorted(held.keys)}

    def put(self, bucket: str, key: str, data: bytes) -> None:
        import moto.s3.models

        moto.s3.models.s3_backends["123456789012"]["aws"].put_object(bucket, key, data)


def environment(url: str) -> dict[str, str]:
    """What a client of a server needs to know; it does not wait long between tries."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_SESSION_TOKEN": TOKEN,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "FOCUSDPO_STORAGE_FIRST_WAIT": "0.01",
        "FOCUSDPO_STORAGE_PART_MIB": "5",
    }


@contextlib.contextmanager
def s3_process(bucket: str) -> Iterator[dict[str, str]]:
    """A server with a bucket in a process, and so with a clock, of its own; its environment."""
    process = subprocess.Popen(
        [sys.executable, __file__, bucket],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield environment(process.stdout.readline().strip())
    finally:
        process.communicate()


@contextlib.contextmanager
def s3_server() -> Iterator[S3Server]:
    """A server in a thread of this process."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    door = Door(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, door, threaded=True, request_handler=_Quiet)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield S3Server(f"http://127.0.0.1:{server.server_port}", door, server)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


if __name__ == "__main__":
    with s3_server() as running:
        if len(sys.argv) > 1:
            running.make_bucket(sys.argv[1])
        sys.stdout.write(running.url + "\n")
        sys.stdout.flush()
        sys.stdin.read()
