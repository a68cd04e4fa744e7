"""Evaluation metrics and their intervals: plain numpy over what a judge saw.

Definitions follow method 4.4. Letters: R subjects, n instances; S is references by instances.
Every value is one number per picture (a mean over its subjects); NaN where it has no meaning.

A structure is what `Judge.pattern` gives: (2, S, S), light and where it is known. Letters: T ways
to turn and mirror, K shifts, P = S x S samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from scipy import ndimage

from focusdpo.data_schemas.evaluations import EvalScene
from focusdpo.data_schemas.scenes import Scene
from focusdpo.pipeline.matching import (
    NOBODY,
    Matrix,
    at_places,
    claims,
    confused,
    failed,
    leakage_margins,
)
from focusdpo.pipeline.parts import Detection, Image, Mask, ReferenceImage, Seen, Vectors
from focusdpo.pipeline.score import crop_on_white

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Metric:
    """How a metric reads."""

    label: str
    better: Literal["higher", "lower"]
    unit: str
    """"cosine", "share" (0 to 1), "degrees" or "correlation"."""
    meaning: str


METRICS: dict[str, Metric] = {
    "failed": Metric(
        "Failed subjects", "lower", "share",
        "Subjects that are missing, come twice, look more like another's reference, or stay below "
        "the least identity (`evaluate.least_identity`).",
    ),
    "identity": Metric(
        "Matched identity", "higher", "cosine",
        "Cosine of each subject's references and its instance; a missing subject counts 0.",
    ),
    "leakage_margin": Metric(
        "Leakage margin", "higher", "cosine",
        "A reference's similarity to its own place less that to the nearest other place; scenes "
        "of two or more subjects.",
    ),
    "confusion": Metric(
        "Confusion rate", "lower", "share",
        "Found subjects that look more like another subject's reference; scenes of two or more.",
    ),
    "missing": Metric("Missing rate", "lower", "share", "Subjects without an instance."),
    "duplicate": Metric(
        "Duplicate rate", "lower", "share", "Subjects that two or more instances claim."
    ),
    "class_recognition": Metric(
        "Class recognised", "higher", "share",
        "Found subjects whose most likely class is the requested one.",
    ),
    "hue_error": Metric(
        "Hue error", "lower", "degrees",
        "Angle between the hues of a found subject and its references; grey ones left out.",
    ),
    "pattern_error": Metric(
        "Pattern error", "lower", "share",
        "Share of the structure of light in which a found subject differs from its references, "
        "laid upon them as well as it fits; measured from pixels, no model beyond the mask.",
    ),
    "clip_t": Metric(
        "Prompt fit (CLIP-T)", "higher", "cosine",
        "Cosine of the whole picture and its prompt, by the CLIP that guards pairs: no judge apart "
        "from them, but blind to individuals, which the prompt does not tell.",
    ),
    "scr_40": Metric(
        "SCR@0.4", "lower", "share", "Subjects whose matched identity is below 0.4."
    ),
    "scr_50": Metric(
        "SCR@0.5", "lower", "share", "Subjects whose matched identity is below 0.5."
    ),
    "scr_60": Metric(
        "SCR@0.6", "lower", "share", "Subjects whose matched identity is below 0.6."
    ),
    "copy_paste": Metric(
        "Copy-paste guard", "lower", "correlation",
        "Outline overlap times pixel correlation of a found subject's crop and its nearest "
        "reference: a rise without a rise of identity means copied pictures, pose and all.",
    ),
}  # fmt: skip
"""Every metric of the protocol, in the order of its table."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over scenes with its bootstrap interval; NaN when no scene counts."""

    mean: float
    low: float
    high: float
    scenes: int


def identity_values(
    similarity: Matrix, assignment: Sequence[int], *, claim: float, least: float
) -> dict[str, float]:
    """The metrics that S (R, n) and the assignment decide.

    `claim` is the least similarity with which an instance claims a reference (duplicates), `least`
    the identity below which a subject has failed.
    """
    places = at_places(similarity, assignment, absent=0.0)
    matched = np.diag(places)
    assigned = np.array([instance != NOBODY for instance in assignment])
    many = len(assignment) > 1
    lost = failed(similarity, assignment, claim=claim, least=least)
    return {
        "failed": float(lost.mean()),
        "identity": float(matched.mean()),
        "leakage_margin": float(leakage_margins(places).mean()) if many else np.nan,
        "confusion": nan_mean(confused(similarity, assignment)[assigned]) if many else np.nan,
        "missing": float(1 - assigned.mean()),
        "duplicate": float((claims(similarity, claim) > 1).mean()),
        "scr_40": float((matched < 0.4).mean()),
        "scr_50": float((matched < 0.5).mean()),
        "scr_60": float((matched < 0.6).mean()),
    }


def judged_scene(
    scene: Scene,
    picture: Image,
    similarity: Matrix,
    assignment: Sequence[int],
    seen: Sequence[Seen] | Sequence[Detection],
    thumbs: Sequence[Sequence[ReferenceImage]],
    *,
    claim: float,
    least: float,
    **others: Any,
) -> EvalScene:
    """The record of one picture (H, W, 3) in which the instances `seen` were assigned to the
    scene's subjects; `others` are the fields that no assignment decides."""
    hits = [seen[k] if k != NOBODY else None for k in assignment]
    measured = identity_values(similarity, assignment, claim=claim, least=least)
    values: dict[str, Any] = {**measured, **others}
    return EvalScene(
        scene_id=scene.id,
        subject_ids=scene.subject_ids,
        class_names=scene.class_names,
        seen=len(seen),
        boxes=tuple(hit.box if hit else () for hit in hits),
        matched=tuple(
            float(similarity[i, k]) if k != NOBODY else 0.0 for i, k in enumerate(assignment)
        ),
        copy_paste=copy_guard(picture, [hit.mask if hit else None for hit in hits], thumbs),
        **values,
    )


def hue_difference(a: float, b: float) -> float:
    """Angle between two hues in degrees, [0, 180]; NaN where either is."""
    return abs((a - b + 180) % 360 - 180)


def circular_mean(degrees: Values) -> float:
    """Mean direction in [0, 360) of the hues that are not NaN; NaN when there is none."""
    known = np.deg2rad(np.asarray(degrees, dtype=np.float64)[~np.isnan(degrees)])
    if not known.size:
        return float("nan")
    return float(np.rad2deg(np.arctan2(np.sin(known).sum(), np.cos(known).sum())) % 360)


def nan_mean(values: NDArray) -> float:
    """Mean of the values that are not NaN; NaN when there is none."""
    wide = np.asarray(values, dtype=np.float64)
    known = wide[~np.isnan(wide)]
    return float(known.mean()) if known.size else float("nan")


def bootstrap(values: Values, *, resamples: int, level: float, seed: int) -> Interval:
    """Percentile bootstrap of the mean over scenes; scenes with NaN are left out.

    With a single scene the interval is that value.
    """
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    if not known.size:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    generator = np.random.default_rng(seed)
    count = known.size
    rows = max(1, 4_000_000 // count)  # bounds the memory of one draw
    means = np.concatenate(
        [
            known[generator.integers(0, count, (min(rows, resamples - start), count))].mean(axis=1)
            for start in range(0, resamples, rows)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(known.mean()), float(low), float(high), int(count))


COPY_SIDE = 32
"""Side in pixels at which crops are compared."""


def copy_guard(
    picture: Image,
    masks: Sequence[Mask | None],
    thumbs: Sequence[Sequence[ReferenceImage]],
) -> float:
    """Mean over found subjects of `copied` against the nearest of their references.

    `masks[i]` (H, W) is subject i's instance in `picture` (H, W, 3), None when it is missing;
    `thumbs[i]` are `thumb`s of its references. NaN when nobody was found.
    """
    there = [
        (thumb(picture, mask), references)
        for mask, references in zip(masks, thumbs, strict=True)
        if mask is not None
    ]
    best = [max(copied(seen, reference) for reference in references) for seen, references in there]
    return nan_mean(np.array(best))


def thumb(image: Image, mask: Mask) -> ReferenceImage:
    """The subject cut to its box, small: place and size in the picture do not matter."""
    side = (COPY_SIDE, COPY_SIDE)
    colour, hole = (
        np.asarray(
            PillowImage.fromarray(crop_on_white(pixels, mask, margin=0.0)).resize(
                side, PillowImage.Resampling.BILINEAR
            ),
            dtype=np.float64,
        )
        for pixels in (image, np.zeros(mask.shape, np.uint8))
    )
    # `hole` is the white that resizing mixed in: taken out, edges tell nothing of the outline.
    white = hole[..., None]
    inside = np.clip((colour - white) / np.maximum(1 - white / 255, 0.5), 0, 255)
    return ReferenceImage(image=np.rint(inside).astype(np.uint8), mask=hole < 128)


def copied(a: ReferenceImage, b: ReferenceImage) -> float:
    """How far `a` is `b` over again: overlap of the masks (IoU) times the correlation of the
    pixels that both cover, each channel about its own mean; 0 when there is nothing to compare."""
    both = a.mask & b.mask
    if not both.any():
        return 0.0
    x, y = (picture.image[both].astype(np.float64) for picture in (a, b))
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    norm = float(np.linalg.norm(x) * np.linalg.norm(y))
    correlation = float((x * y).sum()) / norm if norm else 0.0
    return correlation * float(both.sum() / (a.mask | b.mask).sum())


TURNS = tuple(range(-24, 25, 4))
"""Degrees: a body in a scene is tilted by at most 15, in a reference by at most 8."""
SHIFT = 1
"""Samples by which centroids may be off."""
NOISE = 0.02
"""Lightness that counts as nothing: a flat body equals a flat one whatever its grain."""
OVERLAP = 0.7
"""Least share of the smaller body that the other must cover to be compared."""


def pattern_difference(instance: Vectors, references: Sequence[Vectors]) -> float:
    """Mean over references of the share of structure in which instance and reference differ, each
    laid upon the other as well as it fits: 0 for the same pattern, 1 for unrelated ones.

    NaN where the instance or all references are too small to tell.
    """
    if not np.isfinite(instance).all():
        return float("nan")
    here = _shifted(instance)
    shares = [
        # References are the sharper ones: turning, which blurs a little, costs them less.
        _least_share(*_turned(reference), *here)
        for reference in references
        if np.isfinite(reference).all()
    ]
    return nan_mean(np.array(shares))


def _least_share(
    light_TP: NDArray[np.float64],
    known_TP: NDArray[np.float64],
    light_PK: NDArray[np.float64],
    known_PK: NDArray[np.float64],
) -> float:
    """min over T and K of |a - b|^2 / (|a|^2 + |b|^2) on the samples that both know; 1 at most."""
    shared = known_TP @ known_PK
    energy = light_TP**2 @ known_PK + known_TP @ light_PK**2
    difference = energy - 2 * light_TP @ light_PK
    share = np.maximum(difference, 0) / (energy + shared * NOISE**2 + 1e-12)
    smaller = np.minimum(known_TP.sum(1)[:, None], known_PK.sum(0)[None])
    return float(np.where(shared >= OVERLAP * smaller, share, 1.0).min(initial=1.0))


def _turned(structure: Vectors) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Light and known, each (T, P)."""
    side = structure.shape[-1]
    light, known = (
        ndimage.map_coordinates(plane.astype(np.float64), _coordinates(side), order=1)
        for plane in structure
    )
    solid = (known > 0.9).astype(np.float64)
    return (light * solid).reshape(-1, side**2), solid.reshape(-1, side**2)


@cache
def _coordinates(side: int) -> NDArray[np.float64]:
    """(2, T, S, S): from where each turned and mirrored patch takes its samples."""
    grid = np.arange(side) - (side - 1) / 2
    y, x = np.meshgrid(grid, grid, indexing="ij")
    coordinates = []
    for mirror, degrees in product((1, -1), TURNS):
        cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        coordinates.append([sin * mirror * x + cos * y, cos * mirror * x - sin * y])
    return np.array(coordinates).swapaxes(0, 1) + (side - 1) / 2


def _shifted(structure: Vectors) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Light and known, each (P, K); what comes in over the edge is unknown."""
    side = structure.shape[-1]
    wide = np.pad(structure.astype(np.float64), ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)))
    steps = range(2 * SHIFT + 1)
    moved = [wide[:, y : y + side, x : x + side] for y, x in product(steps, steps)]
    light, known = np.stack(moved, -1).reshape(2, side**2, -1)
    return light, known
