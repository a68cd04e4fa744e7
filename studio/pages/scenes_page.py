"""Scenes and candidates of a set of subjects: what was painted, found and measured."""

from __future__ import annotations

import io
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

from PIL import Image
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from focusdpo.data_schemas.candidates import Disrupted, Instance, Sampled, Scored, Screened
from focusdpo.data_schemas.pairs import Reject
from focusdpo.data_schemas.scenes import Scene
from focusdpo.pipeline.audit import SWAPPED
from focusdpo.reports.dataset_section import MODES, REASONS
from focusdpo.store.artefacts import Store
from focusdpo.studio.version_reading import Dataset, PartitionRecords
from focusdpo.studio.views import NavItem, absent, page_of, render, studio_of, text_of

NAV = (NavItem("Scenes", "/scenes"),)
PAGE = 50


@dataclass(frozen=True)
class Candidate:
    """One picture of a scene, with all that is known of it."""

    id: str
    image: str
    kind: str
    seed: int
    instances: tuple[Instance, ...]
    """Of a disrupted one, those of its parent."""
    scored: Scored | None
    screened: Screened | None
    """None where the build had no filter of unsafe pictures."""
    prior: str = ""
    repainted: tuple[str, ...] = ()
    mode: str = ""
    pairs: tuple[tuple[str, str], ...] = ()
    """(winner or loser, pair id)."""
    rejects: tuple[Reject, ...] = ()
    children: tuple[Candidate, ...] = ()
    """Its disruptions."""

    @property
    def masks(self) -> list[str]:
        """Keys of masks in the order of subjects; empty where one is missing."""
        return [instance.mask or "" for instance in self.instances]


@dataclass(frozen=True)
class SceneView:
    """A scene with its candidates."""

    scene: Scene
    candidates: tuple[Candidate, ...]
    rejects: tuple[Reject, ...]


def partitions(request: Request) -> Response:
    """All sets of subjects with their yields."""
    dataset = studio_of(request).needed_dataset()
    subject = text_of(request, "subject")
    table = dataset.partitions
    places = table.with_subject(subject)
    page = page_of(request, len(places), PAGE)
    shown = places[page.start : page.stop]
    return render(
        request,
        "partitions.html.j2",
        dataset=dataset,
        subject=subject,
        page=page,
        rows=[
            (
                table.names[at],
                table.subject_ids[at],
                int(table.pairs[at]),
                sum(int(counts[at]) for counts in table.rejects.values()),
            )
            for at in shown
        ],
    )


def partition(request: Request) -> Response:
    """The scenes of a set: candidates with boxes, masks, S and scores."""
    dataset = studio_of(request).needed_dataset()
    name = request.path_params["partition"]
    if dataset.partitions.find(name) is None and not dataset.keys_of(name):
        raise absent(f"version {dataset.id} has no set of subjects '{name}'")
    records = dataset.records(name)
    shown = pair_ids(dataset, records)
    return render(
        request,
        "partition.html.j2",
        dataset=dataset,
        name=name,
        records=records,
        scenes=[scene_view(records, scene, shown) for scene in records.scenes],
        modes=MODES,
        reasons=REASONS,
        size=image_size(dataset.store, records),
    )


def scene_view(records: PartitionRecords, scene: Scene, shown: Set[str]) -> SceneView:
    """A scene's candidates, each with its disruptions below it."""
    rejects = [reject for reject in records.rejects if reject.scene_id == scene.id]
    made = _Maker(records, scene, rejects, shown)
    sampled = [candidate for candidate in records.sampled if candidate.scene_id == scene.id]
    known = {candidate.id for candidate in sampled} | {
        candidate.id for candidate in records.disrupted if candidate.scene_id == scene.id
    }
    return SceneView(
        scene=scene,
        candidates=tuple(made.sampled(candidate) for candidate in sampled),
        rejects=tuple(reject for reject in rejects if reject.candidate_id not in known),
    )


@dataclass(frozen=True)
class _Maker:
    records: PartitionRecords
    scene: Scene
    rejects: Sequence[Reject]
    shown: Set[str]
    """Ids of the pairs that the version has."""

    def sampled(self, candidate: Sampled) -> Candidate:
        by_subject = {
            instance.subject_id: instance
            for instance in self.records.instances
            if instance.candidate_id == candidate.id
        }
        places = [by_subject[name] for name in self.scene.subject_ids if name in by_subject]
        children = [
            self._candidate(
                made,
                "disrupted",
                places,
                prior=made.prior,
                repainted=made.subject_ids,
                mode=made.mode,
            )
            for made in self.records.disrupted
            if made.parent_id == candidate.id
        ]
        return self._candidate(candidate, "sampled", places, children=tuple(children))

    def _candidate(
        self, candidate: Sampled | Disrupted, kind: str, places: Sequence[Instance], **more: Any
    ) -> Candidate:
        return Candidate(
            id=candidate.id,
            image=candidate.image,
            kind=kind,
            seed=candidate.seed,
            instances=tuple(places),
            scored=self.records.scored.get(candidate.id),
            screened=self.records.screened.get(candidate.id),
            pairs=self._pairs(candidate.id),
            rejects=tuple(reject for reject in self.rejects if reject.candidate_id == candidate.id),
            **more,
        )

    def _pairs(self, id: str) -> tuple[tuple[str, str], ...]:
        """As it was built; what reviews left out of the version has no page."""
        return tuple(
            ("winner" if pair.win_id == id else "loser", name)
            for pair in self.records.pairs
            if id in (pair.win_id, pair.lose_id)
            for name in (pair.id, f"{pair.id}{SWAPPED}")
            if name in self.shown
        )


def pair_ids(dataset: Dataset, records: PartitionRecords) -> frozenset[str]:
    """Ids of the partition's pairs that the version has, exchanged or not."""
    names = (name for pair in records.pairs for name in (pair.id, f"{pair.id}{SWAPPED}"))
    return frozenset(name for name in names if dataset.pairs.find(name) is not None)


def image_size(store: Store, records: PartitionRecords) -> tuple[int, int]:
    """Width and height of the candidates, which are all of one generator; 1 x 1 without any."""
    for candidate in records.sampled:
        with Image.open(
            io.BytesIO(store.image_bytes(candidate.image)), formats=("PNG",)
        ) as picture:
            return picture.size
    return 1, 1


def routes() -> list[BaseRoute]:
    return [Route("/scenes", partitions), Route("/scenes/{partition}", partition)]
