"""Training runs: curves and diagnostics, live."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from focusdpo.data_schemas.errors import UserError
from focusdpo.studio.run_reading import (
    OVERLAID,
    RunFolder,
    is_of,
    overlaid,
    standing,
    training_part,
)
from focusdpo.studio.views import NavItem, absent, render, studio_of

NAV = (NavItem("Training", "/runs"),)
EVENTS = "tensorboard"
"""The folder of a run with its curves for TensorBoard."""


def runs(request: Request) -> Response:
    """All runs, the newest first."""
    studio = studio_of(request)
    return render(
        request,
        "runs.html.j2",
        runs=[(run, standing(run)) for run in studio.runs().training],
        waiting=studio.waiting(),
        most=len(OVERLAID),
        tensorboard=[_tensorboard(folder) for folder in _parents(studio.runs().training)],
    )


def run(request: Request) -> Response:
    """One run: facts, curves, by noise level, focus maps."""
    folder = _folder(request)
    return render(
        request,
        "run.html.j2",
        folder=folder,
        now=standing(folder),
        part=training_part(folder),
        evaluations=_evaluations(request, folder),
        can_paint=(folder.path / "adapter").is_dir(),
        tensorboard=_tensorboard(folder.path / EVENTS) if _has_events(folder) else "",
    )


def compare(request: Request) -> Response:
    """Curves of several runs, one over the other."""
    known = {run.id: run for run in studio_of(request).runs().training}
    ids = list(dict.fromkeys(request.query_params.getlist("run")))
    if not 2 <= len(ids) <= len(OVERLAID):
        raise UserError(f"choose 2 to {len(OVERLAID)} training runs to compare, got {len(ids)}")
    chosen = [known[id] for id in ids if id in known]
    if len(chosen) < len(ids):
        raise absent("a training run that was chosen is no longer there")
    return render(
        request,
        "runs_compared.html.j2",
        runs=[(run, standing(run)) for run in chosen],
        charts=overlaid([(run.name, training_part(run)) for run in chosen]),
    )


def charts(request: Request) -> Response:
    """The part of the page that grows."""
    folder = _folder(request)
    return render(request, "run_charts.html.j2", part=training_part(folder))


def state(request: Request) -> Response:
    """How far it is."""
    return JSONResponse(asdict(standing(_folder(request))))


def _folder(request: Request) -> RunFolder:
    run = studio_of(request).runs().run(request.path_params["run"])
    if run is None:
        raise absent(f"no training run '{request.path_params['run']}' in the folders of --runs")
    return run


def _has_events(run: RunFolder) -> bool:
    return (run.path / EVENTS).is_dir()


def _parents(runs: Sequence[RunFolder]) -> list[Path]:
    """Folders below which TensorBoard finds the curves of all runs that wrote any."""
    return list(dict.fromkeys(run.path.parent for run in runs if _has_events(run)))


def _tensorboard(folder: Path) -> str:
    return shlex.join(("tensorboard", "--logdir", str(folder)))


def _evaluations(request: Request, folder: RunFolder) -> list[RunFolder]:
    """Those of this run's adapter."""
    adapter = (folder.path / "adapter").resolve()
    evaluations = studio_of(request).runs().evaluations
    return [evaluation for evaluation in evaluations if is_of(evaluation, adapter)]


def routes() -> list[BaseRoute]:
    return [
        Route("/runs", runs),
        Route("/runs/compare", compare),
        Route("/runs/{run}", run),
        Route("/runs/{run}/charts", charts),
        Route("/runs/{run}/state", state),
    ]
