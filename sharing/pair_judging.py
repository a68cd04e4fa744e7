"""Imported pairs as the stages see them: candidates, told instances, and the pair or why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from focusdpo.data_schemas.candidates import Disrupted, Instance, Sampled, Scored
from focusdpo.data_schemas.pairs import Pair, PairSource, Reject
from focusdpo.data_schemas.scenes import Scene, stable_id
from focusdpo.data_schemas.subjects import Reference
from focusdpo.pipeline.pair import PairConfig, Why, incomplete, judge_disrupted, judge_ranked
from focusdpo.pipeline.parts import Mask
from focusdpo.pipeline.stage import image_key, mask_image, member
from focusdpo.sharing.pair_pictures import PairPictures
from focusdpo.sharing.pair_tables import TableRow


@dataclass(frozen=True)
class PlacedPair:
    """A row whose subjects are known."""

    row: TableRow
    id: str
    subjects: tuple[str, ...]
    references: tuple[Reference, ...]
    scene: Scene


def are_told(
    candidate: Sampled, by_scene: Mapping[str, PlacedPair], pictures: Mapping[str, PairPictures]
) -> bool:
    masks = pictures[by_scene[candidate.scene_id].id].masks
    return candidate.index == 0 and all(mask is not None for mask in masks)


def candidates_of(
    one: PlacedPair, shown: PairPictures, prefix: Mapping[str, str]
) -> tuple[Sampled, Sampled | Disrupted]:
    """Winner and loser. The loser shares the winner's places where a region was repainted, and
    where masks are told, which count for both."""
    scene_id = one.scene.id
    win, lose = (
        Sampled(
            id=stable_id("candidate", "import", one.id, side),
            scene_id=scene_id,
            index=index,
            seed=0,
            image=image_key(prefix["generate"], f"{one.id}-{side}"),
        )
        for index, side in enumerate(("win", "lose"))
    )
    if shown.prior is None and any(mask is None for mask in shown.masks):
        return win, lose
    return win, Disrupted(
        id=lose.id,
        scene_id=scene_id,
        parent_id=win.id,
        mode="all",
        subject_ids=one.subjects,
        seed=0,
        image=image_key(prefix["disrupt"], f"{one.id}-lose"),
        prior=image_key(prefix["disrupt"], f"{one.id}-prior"),
    )


def told_instance(candidate: Sampled, scene: Scene, place: int, mask: Mask, key: str) -> Instance:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return Instance(
        candidate_id=candidate.id,
        scene_id=scene.id,
        subject_id=scene.subject_ids[place],
        class_name=scene.class_names[place],
        found="one",
        box=(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1),
        mask=key,
        confidence=1.0,
        extra=0,
    )


class Judged:
    """What the stages say of a partition's candidates."""

    def __init__(
        self,
        gates: PairConfig | None,
        instances: Sequence[Instance],
        scored: Sequence[Scored],
    ) -> None:
        """`gates`: those of pairs of our own; None lets the table's word count."""
        self._gates = gates
        self._instances = {
            (instance.candidate_id, instance.subject_id): instance for instance in instances
        }
        self._scored = {one.candidate_id: one for one in scored}

    def judge(
        self,
        one: PlacedPair,
        candidates: tuple[Sampled, Sampled | Disrupted],
        shown: PairPictures,
        mask: Callable[[str], Mask],
        prefix: str,
        images: dict[str, Any],
    ) -> Pair | Reject:
        """The pair, or why it is none. Masks of two paintings are unions, put into `images`."""
        win, lose = candidates
        source: PairSource = "rank" if shown.prior is None else "disrupt"
        for candidate in candidates:
            why = self._missing(candidate, one)
            if why is not None:
                return _reject(one, candidate.id, source, why)
        if self._gates and (why := self._gate(self._gates, win.id, lose.id, source, one)):
            return _reject(one, lose.id, source, why)
        keys = [str(self._instances[win.id, name].mask) for name in one.subjects]
        if isinstance(lose, Sampled):
            for place, name in enumerate(one.subjects):
                other = self._instances[lose.id, name].mask
                union = mask(keys[place]) | mask(str(other))
                images[member(f"{one.id}-{place}")] = mask_image(union)
                keys[place] = image_key(prefix, f"{one.id}-{place}")
        return self._pair(one, win, lose, source, tuple(keys))

    def _missing(self, candidate: Sampled | Disrupted, one: PlacedPair) -> Why | None:
        """A subject that is not there once. Of a loser that is its fault, and no reason to drop the
        pair, but where its mask is needed."""
        if isinstance(candidate, Disrupted):
            return None
        looked = [self._instances[candidate.id, name] for name in one.subjects]
        if candidate.index:
            looked = [replace(own, found="one") if own.mask else own for own in looked]
        return incomplete(looked)

    def _gate(
        self, config: PairConfig, win_id: str, lose_id: str, source: PairSource, one: PlacedPair
    ) -> Why | None:
        win, lose = self._scored[win_id], self._scored[lose_id]
        if source == "rank":
            return judge_ranked(win, lose, config)
        return judge_disrupted(win, lose, range(len(one.subjects)), config)

    def _pair(
        self,
        one: PlacedPair,
        win: Sampled,
        lose: Sampled | Disrupted,
        source: PairSource,
        masks: tuple[str, ...],
    ) -> Pair:
        best, worst = self._scored[win.id], self._scored[lose.id]
        means = [float(np.mean(side.identity)) for side in (best, worst)]
        return Pair(
            id=one.id,
            scene_id=one.scene.id,
            partition=one.scene.partition,
            source=source,
            mode=one.row.record.mode,
            prompt=one.scene.prompt,
            subject_ids=one.subjects,
            class_names=one.scene.class_names,
            captions=one.scene.class_names,
            win_id=win.id,
            lose_id=lose.id,
            win_image=win.image,
            lose_image=lose.image,
            masks=masks,
            prior=lose.prior if isinstance(lose, Disrupted) and source == "disrupt" else None,
            references=one.references,
            win_identity=best.identity,
            lose_identity=worst.identity,
            win_leakage_margin=best.leakage_margin,
            lose_leakage_margin=worst.leakage_margin,
            win_clip_t=best.clip_t,
            lose_clip_t=worst.clip_t,
            margin=means[0] - means[1],
            reason=f"imported; identity {means[0]:.3f} against {means[1]:.3f}, CLIP-T apart by "
            f"{abs(best.clip_t - worst.clip_t):.3f}",
        )


def _reject(one: PlacedPair, candidate: str, source: PairSource, why: Why) -> Reject:
    reason, detail = why
    return Reject(
        scene_id=one.scene.id,
        candidate_id=candidate,
        source=source,
        reason=reason,
        detail=f"{one.row.where}: {detail}",
    )
