"""How fast the studio is on a large root: `python -m benchmarks --studio 100000`.

The studio runs as a user starts it, in a process of its own; pages are asked for over HTTP, each
with the pictures that a browser would load for it, six at a time.
"""

from __future__ import annotations

import http.client
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.large_root import EACH, make_root, version_name
from benchmarks.measuring import BenchFigure
from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.console import working
from focusdpo.store.artefacts import Store
from focusdpo.store.manifests import latest_id

FIRST_SECONDS, TURN_MS = 2.0, 300.0
AT_ONCE = 6
"""Requests that a browser sends at once to one host."""
TURNS = 40
ADDRESS = re.compile(r"http://(\S+)/ ")
PICTURE = re.compile(r'<img [^>]*src="(/(?:thumbnails|pair-pictures|pictures)/[^"]+)"')
LINK = re.compile(r'href="(/(?:pairs|scenes)/[^"#?]+)')


def studio_figures(out: Path, pairs: int) -> list[BenchFigure]:
    """Make a root of so many pairs in `out`, unless it is there already, and look at it. UserError
    when `out` holds something else."""
    root, subjects = out / "dataset", max(10, pairs // 100)
    if not out.exists() or not any(out.iterdir()):
        with working(f"making a root of {pairs} pairs"):
            make_root(Store.open(root), pairs, subjects)
    elif latest_id(Store.open(root, create=False)) != version_name(pairs, subjects):
        raise UserError(f"{out}: holds something else; give --studio a new --out")
    figures = [
        BenchFigure("pairs of the root", pairs, ""),
        BenchFigure("partitions of the root", -(-pairs // EACH), ""),
    ]
    with _served(root) as visit:
        figures.append(BenchFigure("studio: command to address", visit.start_seconds, "s"))
        # Asked for as soon as the address is told: what the server still does then counts.
        for name, address in (("home", "/"), ("grid", "/pairs")):
            with _served(root) as cold:
                took, size = cold.view(address)
            figures.append(BenchFigure(f"first view, {name}: page and pictures", took, "s",
                                       FIRST_SECONDS))  # fmt: skip
            figures.append(BenchFigure(f"first view, {name}: bytes", size / 1e3, "kB"))
        figures += _turns(visit, pairs)
        figures.append(BenchFigure("studio: memory", visit.memory / 1e6, "MB"))
    return figures


class _Visitor:
    """A browser's part: a page, then its pictures that are not kept yet. Plain connections that
    stay open, as a browser's do: a richer client would cost as much as the server."""

    def __init__(self, host: str, process: subprocess.Popen[str]) -> None:
        self._host, self._process, self.start_seconds = host, process, 0.0
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._own = threading.local()
        self._kept: set[str] = set()

    def _get(self, address: str) -> bytes:
        for last in (False, True):
            try:
                return self._once(address)
            except (ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected):
                if last:  # an idle connection may be closed by the server; a new one may not
                    raise
        raise AssertionError("not reached")

    def _once(self, address: str) -> bytes:
        if not hasattr(self._own, "connection"):
            self._own.connection = http.client.HTTPConnection(self._host, timeout=60)
        connection: http.client.HTTPConnection = self._own.connection
        try:
            connection.request("GET", address, headers={"accept": "text/html,image/*"})
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException):
            del self._own.connection
            raise
        if answer.status != 200:
            raise RuntimeError(f"{address}: {answer.status} {body[:300]!r}")
        return body

    def page(self, address: str) -> str:
        return self._get(address).decode()

    def view(self, address: str) -> tuple[float, int]:
        """Seconds until page and pictures are there, and their bytes."""
        start = time.perf_counter()
        text = self.page(address)
        wanted = {source.replace("&amp;", "&") for source in PICTURE.findall(text)} - self._kept
        sizes = list(self._pool.map(lambda source: len(self._get(source)), sorted(wanted)))
        self._kept |= wanted
        return time.perf_counter() - start, len(text) + sum(sizes)

    @property
    def memory(self) -> int:
        """Bytes of the studio's process that are in memory."""
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def close(self) -> None:
        self._pool.shutdown()


@contextmanager
def _served(root: Path) -> Iterator[_Visitor]:
    command = [sys.executable, "-m", "focusdpo.flows.cli", "studio"]
    started = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--root", str(root), "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        match = ADDRESS.search(process.stdout.readline())
        if match is None:
            raise RuntimeError("the studio told no address")
        visitor = _Visitor(match[1], process)
        visitor.start_seconds = time.perf_counter() - started
        try:
            yield visitor
        finally:
            visitor.close()
    finally:
        process.terminate()
        process.wait(timeout=30)


def _turns(visit: _Visitor, pairs: int) -> Iterator[BenchFigure]:
    """Page turns of every kind, after each kind's first."""
    rng = np.random.default_rng(3)
    last = max(1, pairs // 24)
    numbers = [int(number) for number in rng.integers(1, last + 1, TURNS)]
    subjects = [
        f"subject-{int(number):05d}" for number in rng.integers(0, max(10, pairs // 100), TURNS)
    ]
    sorts = ("margin", "-margin", "win", "-lose", "-clip")
    kinds = {
        "grid, next page": [f"/pairs?page={n}" for n in numbers],
        "grid, sorted": [f"/pairs?sort={sorts[n % 5]}&page={n}" for n in numbers],
        "grid, by subject": [f"/pairs?subject={subject}" for subject in subjects],
        "grid, by words of the prompt": [f"/pairs?text=on+snow&page={n % 50 + 1}" for n in numbers],
        "grid, by score": [f"/pairs?low=0.{n % 9}&high=1.5&page=2" for n in numbers],
        "gallery of subjects": [f"/subjects?page={n % 20 + 1}" for n in numbers],
        "one subject": [f"/subjects/{subject}" for subject in subjects],
        "sets of subjects": [f"/scenes?page={n}" for n in numbers],
        "scenes of a set": LINK.findall(visit.page("/scenes"))[:TURNS],
        "rejects": [f"/rejects?page={n}" for n in range(1, 21)],
        "home": ["/"] * 5,
    }
    for name, addresses in kinds.items():
        yield from _turn(visit, name, addresses)
    grid = [visit.page(f"/pairs?page={n}") for n in numbers[:TURNS]]
    yield from _turn(visit, "one pair", [LINK.findall(page)[0] for page in grid])


def _turn(visit: _Visitor, name: str, addresses: list[str]) -> Iterator[BenchFigure]:
    visit.view(addresses[0])
    took = sorted(1000 * visit.view(address)[0] for address in addresses[1:])
    yield BenchFigure(f"turn, {name}: median", took[len(took) // 2], "ms", TURN_MS)
    yield BenchFigure(f"turn, {name}: 95 %", took[int(0.95 * (len(took) - 1))], "ms", TURN_MS)
