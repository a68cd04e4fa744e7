"""Evaluation metrics and their intervals: plain numpy over what a judge saw.

Definitions follow method 4.4. Letters: R subjects, n instances; S is references by instances.
Every value is one number per picture (a mean over its subjects); NaN where it has no meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from focusdpo.pipeline.matching import (
    NOBODY,
    Matrix,
    at_places,
    claims,
    confused,
    leakage_margins,
)

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
        "Prompt fit, CLIP-T", "higher", "cosine",
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
    similarity: Matrix, assignment: Sequence[int], *, claim: float
) -> dict[str, float]:
    """The metrics that S (R, n) and the assignment decide.

    `claim` is the least similarity with which an instance claims a reference (duplicates).
    """
    places = at_places(similarity, assignment, absent=0.0)
    matched = np.diag(places)
    found = np.array([instance != NOBODY for instance in assignment])
    many = len(assignment) > 1
    return {
        "identity": float(matched.mean()),
        "leakage_margin": float(leakage_margins(places).mean()) if many else np.nan,
        "confusion": nan_mean(confused(similarity, assignment)[found]) if many else np.nan,
        "missing": float(1 - found.mean()),
        "duplicate": float((claims(similarity, claim) > 1).mean()),
        "scr_40": float((matched < 0.4).mean()),
        "scr_50": float((matched < 0.5).mean()),
        "scr_60": float((matched < 0.6).mean()),
    }


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
