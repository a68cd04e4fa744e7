"""What a judge's looks at pictures come to: matched subjects, and who has failed.

Letters: R subjects, n instances, D embedding width; S is references by instances, as everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from focusdpo.data_schemas.evaluations import EvalScene, ForeignScores
from focusdpo.data_schemas.scenes import Scene
from focusdpo.evaluation.dreambench_metrics import BENCH_METRICS
from focusdpo.evaluation.measure.config import MeasureConfig
from focusdpo.evaluation.measure.foreign_plan import PROTOCOL
from focusdpo.evaluation.measure.published import cosines_as_published, scores_as_published
from focusdpo.evaluation.measure.sight import PSR, SCR, Box, Looked, Sight
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

_NEVER = -1e6
_AT_PLACE = 10.0
"""Outweighs looks and words."""

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


@dataclass(frozen=True, slots=True)
class Known:
    """A subject as the judge knows it."""

    vectors: Vectors
    """(pictures, D) of the subject in each."""
    thumbs: tuple[ReferenceImage, ...]
    published: Mapping[str, Vectors] = field(default_factory=dict)
    """Public protocol -> (pictures, D) of what it compares pictures with."""

    def without(self, picture: int) -> Known:
        """The same, less one of its pictures."""
        kept = [at for at in range(len(self.vectors)) if at != picture]
        return Known(
            self.vectors[kept],
            tuple(self.thumbs[at] for at in kept),
            {protocol: vectors[kept] for protocol, vectors in self.published.items()},
        )


def know(
    pictures: Sequence[ReferenceImage],
    sight: Sight,
    published: Mapping[str, Vectors] | None = None,
) -> Known:
    """A subject from its references, of any sizes."""
    images, masks = [picture.image for picture in pictures], [picture.mask for picture in pictures]
    return Known(
        vectors=sight.embed(images, masks),
        thumbs=tuple(thumb(image, mask) for image, mask in zip(images, masks, strict=True)),
        published=published or {},
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
    items: Sequence[ToJudge],
    sight: Sight,
    config: EvaluateConfig,
    measure_config: MeasureConfig,
    protocols: Sequence[str] = (),
) -> list[tuple[EvalScene, ForeignScores]]:
    """Both records of each picture, with the scores of public `protocols`; model, index and image
    are left to the caller."""
    if not items:
        return []
    pictures = [item.picture for item in items]
    words = [item.scene.class_names for item in items]
    looks = sight.look(pictures, words)
    fits = sight.fits(pictures, [item.scene.prompt for item in items])
    known = [[subject.published for subject in item.known] for item in items]
    cosines = cosines_as_published(protocols, pictures, words, known, sight)
    return [
        _records(*evidence, config, measure_config)
        for evidence in zip(items, looks, fits, cosines, strict=True)
    ]


def _records(
    item: ToJudge,
    looked: Looked,
    fit: float,
    cosines: Mapping[str, tuple[float, ...]],
    config: EvaluateConfig,
    measure_config: MeasureConfig,
) -> tuple[EvalScene, ForeignScores]:
    similarity = similarity_matrix([known.vectors for known in item.known], looked.vectors)
    given = match(similarity, looked, item.boxes, config.class_weight, measure_config.in_place)
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
    return judged, ForeignScores(
        model="",
        scene_id=item.scene.id,
        index=0,
        source=item.source,
        line=item.line,
        seed=item.seed,
        failed_each=tuple(bool(flag) for flag in lost),
        extra=float(len(looked.seen) > len(given)),
        places=tuple(tuple(float(value) for value in row) for row in places),
        delta_own=own_gap,
        delta_other=other_gap,
        whole=cosines.get(SCR, ()),
        crops=cosines.get(PSR, ()),
        **scores_as_published(cosines),
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
            [[_inside(instance.mask, box) for instance in looked.seen] for box in boxes]
        ).reshape(similarity.shape)
        evidence = evidence + _AT_PLACE * inside
        barred = barred | (inside < in_place)
    given = assign(np.where(barred, _NEVER, evidence))
    return [k if k != NOBODY and not barred[row, k] else NOBODY for row, k in enumerate(given)]


def _inside(mask: Mask, box: Box) -> float:
    """Share of a mask within a box."""
    x0, y0, x1, y1 = (max(0, edge) for edge in box)
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
