"""What a judge's looks at pictures come to: matched subjects, and who has failed.

Letters: R subjects, n instances, D embedding width; S is references by instances, as everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from focusdpo.data_schemas.evaluations import EvalScene, ForeignScores
from focusdpo.data_schemas.scenes import Scene
from focusdpo.evaluation.dreambench_metrics import BENCH_METRICS
from focusdpo.evaluation.measure.config import MeasureConfig
from focusdpo.evaluation.measure.foreign_plan import PROTOCOL
from focusdpo.evaluation.measure.sight import Looked, Sight
from focusdpo.evaluation.metrics import METRICS, Metric, judged_scene, nan_mean, thumb
from focusdpo.evaluation.protocols import EvaluateConfig
from focusdpo.pipeline.matching import (
    NOBODY,
    Matrix,
    assign,
    at_places,
    failed,
    similarity_matrix,
)
from focusdpo.pipeline.parts import Image, Mask, ReferenceImage, Vectors

SCR = "scr/whole-picture"
"""SCR as published (arXiv 2603.26078): DINOv2 cosine of the whole picture and a reference."""
LEVELS = (0.4, 0.5, 0.6)
_NEVER = -1e6
_AT_PLACE = 10.0
"""Outweighs looks and words."""
Box = tuple[int, int, int, int]

FOREIGN_METRICS: dict[str, Metric] = {
    **{
        name: METRICS[name]
        for name in (
            "failed", "identity", "leakage_margin", "confusion", "missing", "duplicate",
        )
    },
    "extra": Metric(
        "Strangers", "lower", "share",
        "Pictures with more instances than subjects were asked for.",
    ),
    "delta_own": Metric(
        "Delta, own place", "higher", "cosine",
        "Similarity of a subject's references to its own place, less that of the references among "
        "themselves: below zero the subject drifts.",
    ),
    "delta_other": Metric(
        "Delta, other places", "lower", "cosine",
        "Similarity of a subject's references to the others' places, less that to the others' "
        "references: above zero looks leak.",
    ),
    "clip_t": BENCH_METRICS["clip_t"],
    **{name: METRICS[name] for name in ("scr_40", "scr_50", "scr_60", "copy_paste")},
}  # fmt: skip
"""Every metric of the protocol, in the order of its table."""
SCR_METRICS: dict[str, Metric] = {
    f"whole_scr_{round(100 * level)}": Metric(
        f"SCR@{level:g}, whole picture", "lower", "share",
        f"Subjects whose references have a cosine below {level:g} to the whole picture, as SCR was "
        "published; scenes of several subjects lower it by themselves.",
    )
    for level in LEVELS
}  # fmt: skip
"""Of the protocol `SCR`."""


@dataclass(frozen=True, slots=True)
class Known:
    """A subject as the judge knows it."""

    vectors: Vectors
    """(pictures, D) of the subject in each."""
    whole: Vectors | None
    """(pictures, D) of the whole pictures."""
    thumbs: tuple[ReferenceImage, ...]

    def without(self, picture: int) -> Known:
        """The same, less one of its pictures."""
        kept = [at for at in range(len(self.vectors)) if at != picture]
        return Known(
            self.vectors[kept],
            None if self.whole is None else self.whole[kept],
            tuple(self.thumbs[at] for at in kept),
        )


def know(pictures: Sequence[ReferenceImage], sight: Sight) -> Known:
    """A subject from its references, of any sizes."""
    images, masks = [one.image for one in pictures], [one.mask for one in pictures]
    return Known(
        vectors=sight.embed(images, masks),
        whole=sight.whole(images) if sight.published_scr else None,
        thumbs=tuple(thumb(image, mask) for image, mask in zip(images, masks, strict=True)),
    )


@dataclass(frozen=True, slots=True)
class ToJudge:
    """A picture with what was asked of it."""

    scene: Scene
    picture: Image
    known: Sequence[Known]
    """Per subject."""
    boxes: Sequence[Box]
    """Where each subject was asked to stand, in the picture's pixels; () where nobody was."""
    source: str
    line: int
    seed: int | None


def judge_pictures(
    items: Sequence[ToJudge], sight: Sight, config: EvaluateConfig, own: MeasureConfig
) -> list[tuple[EvalScene, ForeignScores]]:
    """Both records of each picture; model, index and image are left to the caller."""
    if not items:
        return []
    pictures = [item.picture for item in items]
    looks = sight.look(pictures, [item.scene.class_names for item in items])
    fits = sight.fits(pictures, [item.scene.prompt for item in items])
    whole = sight.whole(pictures) if sight.published_scr else None
    return [
        _records(item, looked, fit, None if whole is None else whole[at], config, own)
        for at, (item, looked, fit) in enumerate(zip(items, looks, fits, strict=True))
    ]


def _records(
    item: ToJudge,
    looked: Looked,
    fit: float,
    whole: Vectors | None,
    config: EvaluateConfig,
    own: MeasureConfig,
) -> tuple[EvalScene, ForeignScores]:
    similarity = similarity_matrix([known.vectors for known in item.known], looked.vectors)
    given = match(similarity, looked, item.boxes, config.class_weight, own.in_place)
    judged = judged_scene(
        item.scene,
        item.picture,
        similarity,
        given,
        looked.seen,
        [known.thumbs for known in item.known],
        claim=config.claim,
        least=config.least_identity,
        protocol=PROTOCOL,
        model="",
        index=0,
        image="",
        held_out=False,
        class_recognition=np.nan,
        hue_error=np.nan,
        pattern_error=np.nan,
        clip_t=fit,
    )
    lost = failed(similarity, given, claim=config.claim, least=config.least_identity)
    places = at_places(similarity, given, absent=0.0)
    own_gap, other_gap = _delta(places, item.known)
    cosines = _whole_cosines(whole, item.known)
    below = {f"whole_scr_{round(100 * level)}": _share_below(cosines, level) for level in LEVELS}
    return judged, ForeignScores(
        model="",
        scene_id=item.scene.id,
        index=0,
        source=item.source,
        line=item.line,
        seed=item.seed,
        failed_each=tuple(bool(one) for one in lost),
        extra=float(len(looked.seen) > len(given)),
        places=tuple(tuple(float(value) for value in row) for row in places),
        delta_own=own_gap,
        delta_other=other_gap,
        whole=cosines,
        **below,
    )


def match(
    similarity: Matrix,
    looked: Looked,
    boxes: Sequence[Box],
    class_weight: float,
    in_place: float,
) -> list[int]:
    """The instance of each subject: by its place where places are told, by its word where the
    judge reads words, and by looks."""
    evidence = similarity + class_weight * looked.words
    barred = looked.barred if class_weight else np.zeros(similarity.shape, np.bool_)
    if boxes:
        inside = np.array(
            [[_inside(one.mask, box) for one in looked.seen] for box in boxes]
        ).reshape(similarity.shape)
        evidence = evidence + _AT_PLACE * inside
        barred = barred | (inside < in_place)
    given = assign(np.where(barred, _NEVER, evidence))
    return [k if k != NOBODY and not barred[row, k] else NOBODY for row, k in enumerate(given)]


def _inside(mask: Mask, box: Box) -> float:
    """Share of a mask within a box."""
    x0, y0, x1, y1 = (max(0, one) for one in box)
    return float(mask[y0:y1, x0:x1].sum()) / max(1, int(mask.sum()))


def _delta(places: Matrix, known: Sequence[Known]) -> tuple[float, float]:
    """Means of the Delta matrix on its diagonal and off it; missing subjects are left out."""
    there = np.diag(places) != 0
    among = np.array([[_in_common(a, b) for b in known] for a in known])
    gaps = places - among
    count = len(known)
    off = ~np.eye(count, dtype=np.bool_) & there[None]
    return nan_mean(np.diag(gaps)[there]), nan_mean(gaps[off])


def _in_common(a: Known, b: Known) -> float:
    """Mean cosine of two subjects' references; of one's own: between different pictures, 1 for a
    single one."""
    table = a.vectors.astype(np.float64) @ b.vectors.astype(np.float64).T
    if a is not b:
        return float(table.mean())
    different = ~np.eye(len(table), dtype=np.bool_)
    return float(table[different].mean()) if different.any() else 1.0


def _whole_cosines(whole: Vectors | None, known: Sequence[Known]) -> tuple[float, ...]:
    if whole is None:
        return ()
    wide = whole.astype(np.float64)
    return tuple(
        float((one.whole.astype(np.float64) @ wide).mean())
        for one in known
        if one.whole is not None
    )


def _share_below(values: Sequence[float], level: float) -> float:
    return float(np.mean([value < level for value in values])) if values else float("nan")
