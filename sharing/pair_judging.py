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
    placed: PlacedPair, shown: PairPictures, prefix: Mapping[str, str]
) -> tuple[Sampled, Sampled | Disrupted]:
    """Winner and loser. The loser shares the winner's places where a region was repainted, and
    where masks are told, which count for both."""
    scene_id = placed.scene.id
    win, lose = (
        Sampled(
            id=stable_id("candidate", "import", placed.id, side),
            scene_id=scene_id,
            index=index,
            seed=0,
            image=image_key(prefix["generate"], f"{placed.id}-{side}"),
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
        subject_ids=placed.subjects,
        seed=0,
        image=image_key(prefix["disrupt"], f"{placed.id}-lose"),
        prior=image_key(prefix["disrupt"], f"{placed.id}-prior"),
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
        self._scored = {score.candidate_id: score for score in scored}

    def judge(
        self,
        placed: PlacedPair,
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
            why = self._missing(candidate, placed)
            if why is not None:
                return _reject(placed, candidate.id, source, why)
        if self._gates and (why := self._gate(self._gates, win.id, lose.id, source, placed)):
            return _reject(placed, lose.id, source, why)
        keys = [str(self._instances[win.id, name].mask) for name in placed.subjects]
        if isinstance(lose, Sampled):
            for place, name in enumerate(placed.subjects):
                other = self._instances[lose.id, name].mask
                union = mask(keys[place]) | mask(str(other))
                images[member(f"{placed.id}-{place}")] = mask_image(union)
                keys[place] = image_key(prefix, f"{placed.id}-{place}")
        return self._pair(placed, win, lose, source, tuple(keys))

    def _missing(self, candidate: Sampled | Disrupted, placed: PlacedPair) -> Why | None:
        """A subject that is not there once. Of a loser that is its fault, and no reason to drop the
        pair, but where its mask is needed."""
        if isinstance(candidate, Disrupted):
            return None
        looked = [self._instances[candidate.id, name] for name in placed.subjects]
        if candidate.index:
            looked = [
                replace(instance, found="one") if instance.mask else instance for instance in looked
            ]
        return incomplete(looked)

    def _gate(
        self, config: PairConfig, win_id: str, lose_id: str, source: PairSource, placed: PlacedPair
    ) -> Why | None:
        win, lose = self._scored[win_id], self._scored[lose_id]
        if source == "rank":
            return judge_ranked(win, lose, config)
        return judge_disrupted(win, lose, range(len(placed.subjects)), config)

    def _pair(
        self,
        placed: PlacedPair,
        win: Sampled,
        lose: Sampled | Disrupted,
        source: PairSource,
        masks: tuple[str, ...],
    ) -> Pair:
        best, worst = self._scored[win.id], self._scored[lose.id]
        means = [float(np.mean(side.identity)) for side in (best, worst)]
        return Pair(
            id=placed.id,
            scene_id=placed.scene.id,
            partition=placed.scene.partition,
            source=source,
            mode=placed.row.record.mode,
            prompt=placed.scene.prompt,
            subject_ids=placed.subjects,
            class_names=placed.scene.class_names,
            captions=placed.scene.class_names,
            win_id=win.id,
            lose_id=lose.id,
            win_image=win.image,
            lose_image=lose.image,
            masks=masks,
            prior=lose.prior if isinstance(lose, Disrupted) and source == "disrupt" else None,
            references=placed.references,
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


def _reject(placed: PlacedPair, candidate: str, source: PairSource, why: Why) -> Reject:
    reason, detail = why
    return Reject(
        scene_id=placed.scene.id,
        candidate_id=candidate,
        source=source,
        reason=reason,
        detail=f"{placed.row.where}: {detail}",
    )
