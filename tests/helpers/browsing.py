"""A page in Debian's Chromium through Playwright, and what axe says of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@contextmanager
def page_of(
    where: Path | str, *, width: int = 1280, height: int = 900, dark: bool = False, **more: Any
) -> Iterator[Page]:
    """The page, loaded. What it throws or logs as an error fails the test; a file may log nothing
    at all and ask for nothing but itself."""
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    of_a_file = isinstance(where, Path)
    wrong: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        page = browser.new_page(
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
        page.goto(where.as_uri() if isinstance(where, Path) else where)
        yield page
        browser.close()
    assert wrong == []


def serious(page: Page) -> list[str]:
    """axe's findings of impact serious or critical, each with the elements."""
    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {node['target']} {node.get('failureSummary', '')[:200]}"
        for one in found
        if one["impact"] in {"serious", "critical"}
        for node in one["nodes"]
    ]
