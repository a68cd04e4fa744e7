"""The server's own pages in a headless browser: a run, its artefacts, pictures and tables."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import toy_deployments
from browsing import needs_browser, page_of
from playwright.sync_api import Page
from prefect_server import Server, running_server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.timeout(1800),
    needs_browser,
]

NIGHT = """
import toy_deployments, toy_flows
from focusdpo.flows.config import RetrainRun
from focusdpo.flows.settings import resolve
toy_flows.retrain(resolve(RetrainRun, toy_deployments.PARAMETERS["retrain"]))
"""
PICTURES = (
    "[...document.images].filter(i => i.src.startsWith('data:image') && i.naturalWidth > 100)"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that has seen one night of retrain."""
    folder = tmp_path_factory.mktemp("ui") / "team"
    helpers = str(Path(toy_deployments.__file__).parent)
    extra = {
        "PYTHONPATH": helpers,
        "PREFECT_LOGGING_EXTRA_LOGGERS": "focusdpo",
        "FOCUSDPO_REPORTS_URL": "https://reports.example/team",
    }
    with running_server(folder, OMP_NUM_THREADS="1", **extra) as made:
        toy_deployments.bring(folder, **toy_deployments.HUES)
        subprocess.run(
            [sys.executable, "-c", NIGHT],
            env=made.environment,
            cwd=folder,
            check=True,
            timeout=1200,
        )
        made.wait_for("artefact", lambda: made.get("artifacts/filter", {}))
        yield made


@pytest.fixture
def page() -> Iterator[Page]:
    # Prefect's own page logs an error where a request is cut off by leaving for the next address.
    with page_of("about:blank", width=1400, height=1000, ours=False) as made:
        yield made


def look(page: Page, url: str, *, until: str, shot: Path) -> None:
    """Open an address, wait until an expression is true there, take a picture."""
    page.goto(url)
    try:
        page.wait_for_function(f"Boolean(document.body && ({until}))", timeout=240_000)
    finally:
        page.screenshot(path=shot)


def says(*words: str) -> str:
    return " && ".join(f"document.body.innerText.includes({word!r})" for word in words)


def address(server: Server, path: str) -> str:
    return f"{server.url.removesuffix('/api')}/{path}"


def artefact(server: Server, key: str) -> dict[str, Any]:
    return next(one for one in server.get("artifacts/filter", {}) if one["key"] == key)


def test_the_run_its_artefacts_and_pictures_are_seen(
    server: Server, page: Page, tmp_path: Path
) -> None:
    (night,) = server.runs("retrain")
    look(
        page,
        address(server, f"runs/flow-run/{night['id']}"),
        until=says(night["name"], "Completed", "retrain"),
        shot=tmp_path / "run.png",
    )
    look(
        page,
        address(server, "artifacts"),
        until=says("dataset-sheet", "evaluation-rows", "retrain-history", "report"),
        shot=tmp_path / "artefacts.png",
    )
    for key in ("dataset-sheet", "evaluation-sheet"):
        look(
            page,
            address(server, f"artifacts/artifact/{artefact(server, key)['id']}"),
            until=f"{PICTURES}.length > 0",
            shot=tmp_path / f"{key}.png",
        )
    look(
        page,
        address(server, f"artifacts/artifact/{artefact(server, 'evaluation-rows')['id']}"),
        until=says("identity", "adapter - base", "verdict"),
        shot=tmp_path / "rows.png",
    )
    look(
        page,
        address(server, f"artifacts/artifact/{artefact(server, 'retrain')['id']}"),
        until=says("promoted", "better: identity"),
        shot=tmp_path / "decision.png",
    )
    look(
        page,
        address(server, f"artifacts/artifact/{artefact(server, 'retrain-history')['id']}"),
        until=says("no adapter", "promoted") + " || " + says("better: identity", "promoted"),
        shot=tmp_path / "history.png",
    )
    link = artefact(server, "report")
    look(
        page,
        address(server, f"artifacts/artifact/{link['id']}"),
        until="document.querySelector('a[href$=\"report.html\"]')",
        shot=tmp_path / "report.png",
    )
