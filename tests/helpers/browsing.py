"""A page in Debian's Chromium through Playwright, and what axe says of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from browser import CHROMIUM
from playwright.sync_api import Page, sync_playwright


@contextmanager
def page_of(
    where: Path | str, *, width: int = 1280, height: int = 900, dark: bool = False, **more: Any
) -> Iterator[Page]:
    """The page, loaded. What it logs as an error or throws fails the test."""
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
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
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
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
