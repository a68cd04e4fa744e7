"""Rejects: counts by reason, examples with their pictures, and how far each fell short."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from focusdpo.data_schemas.pairs import Reject
from focusdpo.pipeline.pairing.gates import PairConfig
from focusdpo.reports.dataset_section import REASONS
from focusdpo.studio.version_reading import Dataset, PartitionRecords
from focusdpo.studio.views import NavItem, page_of, render, studio_of, text_of

NAV = (NavItem("Rejects", "/rejects"),)
PAGE = 12
FELL = re.compile(r"(-?\d+(?:\.\d+)?) ([<>]) (-?\d+(?:\.\d+)?)")
GATES: Mapping[str, tuple[str, ...]] = {
    "weak_winner": ("min_winner_identity", "min_winner_margin"),
    "no_identity_drop": ("min_drop", "min_drop_each"),
    "meaning_changed": ("clip_t_tolerance",),
    "background_changed": ("background_tolerance",),
    "small_margin": ("rank_margin", "rank_tolerance"),
    "no_right_candidate": ("min_winner_identity", "min_winner_margin"),
    "surplus": tuple(name for name in PairConfig.model_fields if name.startswith("max_")),
}
"""The settings of section `pair` that a reason rests on."""


@dataclass(frozen=True)
class Ruler:
    """A threshold, and where the candidate fell: places in per cent of the drawn range."""

    value: float
    limit: float
    needs: str
    """at least or at most."""

    @property
    def reach(self) -> tuple[float, float]:
        low, high = sorted((self.value, self.limit))
        pad = max(0.35 * (high - low), 0.02 * abs(high), 1e-6)
        return low - pad, high + pad

    def place(self, value: float) -> float:
        low, high = self.reach
        return round(100 * (value - low) / (high - low), 2)


@dataclass(frozen=True)
class Example:
    """A reject with its pictures."""

    reject: Reject
    partition: str
    prompt: str
    class_names: tuple[str, ...]
    image: str
    """Key of the candidate's picture; empty where its artefact is gone."""
    masks: tuple[str, ...]
    parent: str
    """Key of the picture that a disrupted candidate was made from."""
    ruler: Ruler | None


def explorer(request: Request) -> Response:
    """Counts, thresholds, examples."""
    dataset = studio_of(request).needed_dataset()
    reason, subject = text_of(request, "reason"), text_of(request, "subject")
    table = dataset.partitions
    places = table.with_subject(subject)
    counts = table.reject_counts(places)
    total = counts.get(reason, 0) if reason else sum(counts.values())
    page = page_of(request, total, PAGE)
    examples = [
        example
        for at, first, last in table.reject_page(reason, places, page.start, PAGE)
        for example in _examples(dataset, table.names[at], reason, first, last)
    ]
    return render(
        request,
        "rejects.html.j2",
        dataset=dataset,
        reason=reason,
        subject=subject,
        counts=counts,
        page=page,
        examples=examples,
        gates=_gates(dataset, reason),
        reasons=REASONS,
    )


def _examples(
    dataset: Dataset, partition: str, reason: str, first: int, last: int
) -> list[Example]:
    records = dataset.records(partition)
    rejects = [reject for reject in records.rejects if reason in ("", reject.reason)]
    return [_example(records, reject) for reject in rejects[first:last]]


def _example(records: PartitionRecords, reject: Reject) -> Example:
    scene = next((scene for scene in records.scenes if scene.id == reject.scene_id), None)
    sampled = {candidate.id: candidate.image for candidate in records.sampled}
    image, parent = sampled.get(reject.candidate_id, ""), ""
    masks: tuple[str, ...] = ()
    for repaint in () if image else records.disrupted:
        if repaint.id == reject.candidate_id:
            image, parent = repaint.image, sampled.get(repaint.parent_id, "")
    if image and not parent:
        instances = [
            instance
            for instance in records.instances
            if instance.candidate_id == reject.candidate_id
        ]
        masks = tuple(instance.mask or "" for instance in instances)
    return Example(
        reject=reject,
        partition=records.name,
        prompt="" if scene is None else scene.prompt,
        class_names=() if scene is None else scene.class_names,
        image=image,
        masks=masks,
        parent=parent,
        ruler=ruler_of(reject.detail),
    )


def ruler_of(detail: str) -> Ruler | None:
    """The number that fell short and its threshold, as the gate told them."""
    match = FELL.search(detail)
    if match is None:
        return None
    needs = "at least" if match[2] == "<" else "at most"
    return Ruler(float(match[1]), float(match[3]), needs)


def _gates(dataset: Dataset, reason: str) -> list[tuple[str, Any, str]]:
    """The settings behind a reason (all without one): name, value, meaning."""
    try:
        config = PairConfig.model_validate(dataset.manifest["config"].get("pair", {}))
    except (ValidationError, KeyError):
        return []  # made by another version, whose settings had other names
    names = GATES.get(reason, ()) if reason else tuple(PairConfig.model_fields)
    return [
        (name, getattr(config, name), PairConfig.model_fields[name].description or "")
        for name in names
    ]


def routes() -> list[BaseRoute]:
    return [Route("/rejects", explorer)]
