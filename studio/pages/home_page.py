"""The first page: what the root holds, and what to do next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from focusdpo.data_schemas.errors import counted
from focusdpo.flows.build.worth import Worth, weaknesses
from focusdpo.reports.dataset_section import MODES, REASONS
from focusdpo.studio.job_forms import in_fields
from focusdpo.studio.run_reading import Found
from focusdpo.studio.shared import Studio
from focusdpo.studio.version_reading import Dataset
from focusdpo.studio.views import NavItem, render, studio_of

NAV = (NavItem("Home", "/"),)
REVIEWS = "reviews"


@dataclass(frozen=True)
class Step:
    """A step of the way from subjects to a shared adapter."""

    title: str
    what: str
    done: bool
    state: str
    """How far it has come, in words."""
    link: str
    act: str
    """What the link does."""


def home(request: Request) -> Response:
    """Counts, yields, and what to do next."""
    studio = studio_of(request)
    dataset = studio.dataset()
    runs = studio.runs()
    steps = steps_of(studio, dataset, runs)
    return render(
        request,
        "home.html.j2",
        dataset=dataset,
        steps=steps,
        next=next((at for at, step in enumerate(steps) if not step.done), None),
        yields={} if dataset is None else yields(dataset),
        rejects={} if dataset is None else _rejects(dataset),
        weak=[] if dataset is None else [in_fields("build", reason) for reason in _weak(dataset)],
        reasons=REASONS,
        modes=MODES,
        found=runs,
    )


def _rejects(dataset: Dataset) -> dict[str, int]:
    counts = dataset.manifest.get("rejects") or {}
    return dict(sorted(counts.items(), key=lambda count: (-count[1], count[0])))


def _weak(dataset: Dataset) -> list[str]:
    """Why a training will learn little from it. Counted from columns: there may be many pairs."""
    pairs = dataset.pairs
    sizes, counts = np.unique(pairs.num_subjects, return_counts=True)
    worth = Worth(
        pairs=len(pairs),
        train_pairs=pairs.split.counts.get("train", 0),
        by_subject={name: dataset.pairs_by_subject.get(name, 0) for name in dataset.subjects},
        by_num_subjects=dict(zip(sizes.tolist(), counts.tolist(), strict=True)),
        rejects={},
    )
    return list(weaknesses(worth))


def yields(dataset: Dataset) -> dict[str, Any]:
    """Records per stage, and the share of what was judged that became pairs."""
    stages = dataset.manifest.get("stages") or {}
    pairs = len(dataset.pairs)
    return {
        "stages": {name: stage["records"] for name, stage in stages.items()},
        "seconds": sum(stage["seconds"] for stage in stages.values()),
        "judged": pairs + sum((dataset.manifest.get("rejects") or {}).values()),
        "pairs": pairs,
        # the table of partitions is not read for a number that the manifest has
        "sets": dataset.manifest.get("partitions") or len(dataset.partitions),
        "bytes": sum(shard["bytes"] for shard in dataset.manifest.get("shards") or ()),
    }


def steps_of(studio: Studio, dataset: Dataset | None, runs: Found) -> list[Step]:
    """What has been done, and what comes next."""
    registry = studio.registry()
    registered = {} if registry is None else registry.entries
    built = {} if dataset is None else dataset.subjects
    subjects = len(registered) if registry is not None else len(built)
    waiting = (
        {name: entry.digest for name, entry in registered.items()}
        != {name: subject["digest"] for name, subject in built.items()}
        if registry is not None
        else dataset is None
    )
    reviewed = _num_reviews(studio)
    unbuilt = studio.waiting()
    trained = sum(run.finished for run in runs.training)
    shared = len(runs.exports)
    return [
        Step(
            "Add subjects", "Pictures of each subject; its mask is found, and yours to mend.",
            subjects > 0, f"{subjects} registered" if subjects else "none yet",
            "/add-subject", "Add a subject",
        ),
        Step(
            "Build", "Scenes, candidates, scores, and the pairs that pass.",
            dataset is not None and not waiting and not unbuilt,
            "nothing built yet" if dataset is None else
            "subjects changed since the last build" if waiting else
            f"{counted(unbuilt, 'decision')} not in the dataset yet: build again" if unbuilt
            else counted(len(dataset.pairs), "pair"),
            "/jobs", "Build the dataset",
        ),
        Step(
            "Review", "Accept, reject or swap pairs; the next build honours it.",
            reviewed > 0, counted(reviewed, "decision") if reviewed else "no decision yet",
            "/review", "Review pairs",
        ),
        Step(
            "Train", "A FocusDPO adapter from the pairs.",
            trained > 0, f"{trained} finished" if trained else "no run yet",
            "/jobs", "Train an adapter",
        ),
        Step(
            "Evaluate", "Base against adapter on identities that no training saw.",
            bool(runs.evaluations),
            f"{len(runs.evaluations)} done" if runs.evaluations else "none yet",
            "/jobs", "Evaluate",
        ),
        Step(
            "Export", "The adapter or the dataset, with its card, to share.",
            shared > 0, f"{shared} exported" if shared else "none yet", "/jobs", "Export",
        ),
    ]  # fmt: skip


def _num_reviews(studio: Studio) -> int:
    store = studio.store()
    return 0 if store is None else len(store.files.listing(REVIEWS))


def routes() -> list[BaseRoute]:
    return [Route("/", home)]
