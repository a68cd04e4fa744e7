"""A page in Debian's Chromium through Playwright, and what axe says of it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Playwright, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


_STARTED: list[tuple[Playwright, Browser]] = []


def chromium() -> Browser:
    """The browser that the tests of a file share; `close` ends it."""
    if not _STARTED:
        playwright = sync_playwright().start()
        root = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--disable-gpu", *root]
        )
        _STARTED.append((playwright, browser))
    return _STARTED[0][1]


def close() -> None:
    """End the browser, and with it the event loop that Playwright runs in this thread."""
    while _STARTED:
        playwright, browser = _STARTED.pop()
        browser.close()
        playwright.stop()


@contextmanager
def page_of(
    where: Path | str,
    *,
    width: int = 1280,
    height: int = 900,
    dark: bool = False,
    ours: bool = True,
    **more: Any,
) -> Iterator[Page]:
    """The page, loaded. What it throws or logs as an error fails the test, where it is ours; a file
    may log nothing at all and ask for nothing but itself."""
    of_a_file = isinstance(where, Path)
    wrong: list[str] = []
    page = chromium().new_page(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce",
        **more,
    )
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "console",
        lambda said: wrong.append(said.text) if of_a_file or said.type == "error" else None,
    )
    if of_a_file:
        page.on(
            "request",
            lambda asked: (
                None if asked.url.startswith(("file:", "data:")) else wrong.append(asked.url)
            ),
        )
    try:
        page.goto(where.as_uri() if isinstance(where, Path) else where)
        yield page
    finally:
        page.close()
    if ours:
        assert wrong == [], wrong


class Shown(HTMLParser):
    """A page's start tags with their attributes, its text outside script and style, and the cells
    of its table rows."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._raw = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        self._raw = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._raw = "" if tag == self._raw else self._raw

    def handle_data(self, data: str) -> None:
        if not self._raw:
            self.text += data
            if self.rows and self.rows[-1]:
                self.rows[-1][-1] += f" {data}"

    def asks_for_nothing(self) -> None:
        """Nothing from outside, no handler and no style of an element's own; every link leads to a
        place of the page, and every picture has words."""
        for tag, attributes in self.tags:
            for name in ("src", "href", "srcset", "poster", "action", "data", "xlink:href"):
                assert re.match(r"^(data:|#|$)", attributes.get(name, "")), (tag, attributes)
            assert not [name for name in attributes if name.startswith("on") or name == "style"]
        ids = [attributes["id"] for _, attributes in self.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        links = {a["href"] for t, a in self.tags if t == "a" and "download" not in a}
        assert {link[1:] for link in links} <= set(ids)
        assert all(a["alt"].strip() for t, a in self.tags if t == "img")


def serious(page: Page) -> list[str]:
    """axe's findings of impact serious or critical, each with the elements."""
    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {node['target']} {node.get('failureSummary', '')[:200]}"
        for one in found
        if one["impact"] in {"serious", "critical"}
        for node in one["nodes"]
    ]
