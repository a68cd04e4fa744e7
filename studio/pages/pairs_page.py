"""Pairs: the grid, and one pair at length."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from focusdpo.data_schemas.pairs import Pair
from focusdpo.data_schemas.shards import IndexRow
from focusdpo.reports.dataset_section import MODES
from focusdpo.studio.columns import SCORES, SORTS, PairColumns, Wanted
from focusdpo.studio.shared import Studio
from focusdpo.studio.version_reading import Dataset
from focusdpo.studio.views import (
    NavItem,
    absent,
    float_of,
    number_of,
    page_of,
    query_of,
    render,
    studio_of,
    text_of,
)

NAV = (NavItem("Pairs", "/pairs"),)
PAGE = 24
MOST_LEFT_OUT = 24
MOST_CHOICES = 500
"""A longer list of subjects is offered as a field with suggestions cut to so many."""


def wanted_of(request: Request) -> Wanted:
    """What the query asks for. UserError for what no field can be."""
    return Wanted(
        subject=text_of(request, "subject"),
        class_name=text_of(request, "class"),
        source=text_of(request, "source"),
        mode=text_of(request, "mode"),
        split=text_of(request, "split"),
        num_subjects=number_of(request, "subjects"),
        text=text_of(request, "text"),
        score=text_of(request, "score") or "margin",
        low=float_of(request, "low"),
        high=float_of(request, "high"),
        sort=text_of(request, "sort") or "id",
    )


def query_for(wanted: Wanted) -> str:
    """The query that asks for it."""
    values: dict[str, object] = asdict(wanted)
    values["class"] = values.pop("class_name")
    values["subjects"] = values.pop("num_subjects")
    if wanted.sort == "id":
        del values["sort"]
    if wanted.low is None and wanted.high is None:
        del values["score"]
    return query_of(values)


def grid(request: Request) -> Response:
    """Thumbnails of the pairs that are wanted, a page at a time."""
    dataset = studio_of(request).needed_dataset()
    wanted = wanted_of(request)
    places = dataset.pairs.select(wanted)
    page = page_of(request, len(places), PAGE)
    return render(
        request,
        "pairs.html.j2",
        dataset=dataset,
        wanted=wanted,
        query=query_for(wanted),
        page=page,
        rows=dataset.pairs.rows(places[page.start : page.stop]),
        ahead=dataset.pairs.rows(places[page.stop : page.stop + PAGE]),
        choices=choices(dataset.pairs),
        sorts=SORTS,
        scores=SCORES,
        modes=MODES,
    )


def choices(pairs: PairColumns) -> Mapping[str, Mapping[Any, int]]:
    """What each field may be, with how many pairs have it."""
    numbers, counts = np.unique(pairs.num_subjects, return_counts=True)
    subjects = pairs.subjects.counts
    return {
        "subject": dict(list(subjects.items())[:MOST_CHOICES]),
        "class": pairs.classes.counts,
        "source": pairs.source.counts,
        "mode": pairs.mode.counts,
        "split": pairs.split.counts,
        "subjects": {int(n): int(c) for n, c in zip(numbers, counts, strict=True)},
    }


def pair(request: Request) -> Response:
    """One pair: flip, maps, scores, where it came from; the next and previous of the choice."""
    dataset = studio_of(request).needed_dataset()
    pair_id = request.path_params["pair"]
    at = dataset.pairs.find(pair_id)
    if at is None:
        raise absent(f"version {dataset.id} has no pair '{pair_id}'")
    wanted = wanted_of(request)
    row = dataset.pairs.row(at)
    return render(
        request,
        "pair.html.j2",
        dataset=dataset,
        row=row,
        # the shard's copy of the record, where the artefact that made it is gone
        record=dataset.pair(row) or dataset.sample(pair_id).pair,
        artefacts=dataset.artefacts(row.partition),
        repainted=_repainted(dataset, row),
        query=query_for(wanted),
        modes=MODES,
        better=row.mode.split() if row.source == "failure" else None,
        **_neighbours(dataset.pairs, wanted, at),
    )


def alike(request: Request) -> Response:
    """Winners of two scenes that are nearly one, and what was kept out of validation."""
    studio = studio_of(request)
    dataset = studio.needed_dataset()
    places = dataset.winners_alike
    page = page_of(request, len(places), PAGE)
    shown = places[page.start : page.stop]
    rows = dataset.pairs.rows([at for both in shown for at in both])
    return render(
        request,
        "alike.html.j2",
        dataset=dataset,
        page=page,
        pairs=list(zip(rows[::2], rows[1::2], strict=True)),
        left_out=_left_out(studio, dataset),
        not_looked=len(dataset.pairs) - len(dataset.winner_hashes),
        kept=dataset.duplicates.keep_in_validation,
    )


def _left_out(studio: Studio, dataset: Dataset) -> list[tuple[Pair, IndexRow | None]]:
    """Pairs that were kept out of validation, each with a pair of training that shows nearly the
    same winner."""
    training = dataset.pairs.split.are("train")
    known = [(at, winner_hash) for at, winner_hash in dataset.winner_hashes.items() if training[at]]
    pairs = []
    for pair in dataset.left_out()[:MOST_LEFT_OUT]:
        pair_hash = studio.picture_hash(pair.win_image)
        near = (
            at
            for at, winner_hash in known
            if pair_hash is not None
            and (winner_hash ^ pair_hash).bit_count() <= dataset.duplicates.bits
        )
        at = next(near, None)
        pairs.append((pair, None if at is None else dataset.pairs.row(at)))
    return pairs


def _repainted(dataset: Dataset, row: IndexRow) -> tuple[str, ...]:
    """Subjects that were painted anew without their reference."""
    record = dataset.pair(row)
    if record is None:
        return ()
    sides = {record.win_id, record.lose_id}
    repaints = [
        repaint for repaint in dataset.records(row.partition).disrupted if repaint.id in sides
    ]
    return repaints[0].subject_ids if repaints else ()


def _neighbours(pairs: PairColumns, wanted: Wanted, at: int) -> dict[str, Any]:
    """Ids before and after in the chosen order; none where the pair is not in the choice."""
    places = pairs.select(wanted)
    if wanted.sort == "id":
        stand = bisect.bisect_left(places, at)  # type: ignore[type-var]
        at_place = stand if stand < len(places) and places[stand] == at else -1
    else:
        hits = np.flatnonzero(places == at)
        at_place = int(hits[0]) if len(hits) else -1
    ids = pairs.table["pair_id"]

    def name(stand: int) -> str | None:
        return str(ids[int(places[stand])]) if 0 <= stand < len(places) else None

    if at_place < 0:
        return {"stand": None, "total": len(places), "before": None, "after": None}
    before, after = name(at_place - 1), name(at_place + 1)
    return {"stand": at_place + 1, "total": len(places), "before": before, "after": after}


def routes() -> list[BaseRoute]:
    return [Route("/pairs", grid), Route("/pairs/{pair}", pair), Route("/alike", alike)]
