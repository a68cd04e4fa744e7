"""What DreamBench measures on whole pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeScores:
    """One picture against its subjects' photographs, whole against whole."""

    model: str
    """base or adapter."""
    scene_id: str
    index: int
    """Which picture of the scene."""
    dino: float
    """Mean over subjects of the mean DINO cosine to the subject's target photographs."""
    clip_i: float
    """The same with CLIP."""
    dino_each: tuple[float, ...]
    """`dino` per subject, in scene order."""
    clip_i_each: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalScene:
    """What the judge measured on one picture; fields from `identity` on are the metrics
    of `evaluation.metrics.METRICS`; NaN where one has no meaning."""

    protocol: str
    model: str
    """base or adapter."""
    scene_id: str
    index: int
    """Which picture of the scene."""
    image: str
    """Where the picture lies, as given by the caller."""
    subject_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    held_out: bool
    """Whether some class in the scene was held out from all training."""
    seen: int
    """How many instances the judge counted."""
    boxes: tuple[tuple[int, ...], ...]
    """The matched instance's box per subject, empty where it is missing."""
    matched: tuple[float, ...]
    """Matched identity per subject, 0 where it is missing."""
    identity: float
    leakage_margin: float
    confusion: float
    missing: float
    duplicate: float
    class_recognition: float
    hue_error: float
    pattern_error: float
    clip_t: float
    scr_40: float
    scr_50: float
    scr_60: float
    copy_paste: float
    failed: float = float("nan")
    """NaN in tables from before it was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignScores:
    """What a picture from any model shows beside the judge's record of it."""

    model: str
    scene_id: str
    index: int
    """Which picture of the scene."""
    source: str
    """The picture as its table names it."""
    line: int
    """Its row in the table."""
    seed: int | None
    failed_each: tuple[bool, ...]
    """Per subject, in the row's order: missing, doubled, in another's looks, or too unlike."""
    extra: float
    """1 where more instances stand in the picture than subjects were asked for, else 0."""
    places: tuple[tuple[float, ...], ...]
    """S (R, R): reference i and the instance at subject j's place, 0 where there is none."""
    delta_own: float
    """Mean of S[i, i] less what i's references have among themselves (MultiBind's Delta)."""
    delta_other: float
    """Mean over i and other j of S[i, j] less what the references of i and j have in common."""
    whole: tuple[float, ...]
    """Per subject the whole picture's cosine to its references; () where it is not compared."""
    whole_scr_40: float
    whole_scr_50: float
    whole_scr_60: float
    whole_dino: float = math.nan
    """Mean of `whole`."""
    crops: tuple[float, ...] = ()
    """Per subject the cosine of its box to the boxes in its references, as PSRBench compares."""
    crop_dino: float = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerView:
    """What the parts that make pairs see in one picture, counted as the judge counts it."""

    model: str
    scene_id: str
    index: int
    """Which picture of the scene."""
    complete: bool
    """Every subject was found exactly once, as a candidate needs for pairs."""
    identity: float
    """Mean over subjects; one that was not found counts 0."""
    leakage_margin: float
    """Mean over subjects; NaN in scenes of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementRow:
    """How far preference scorer and judge see the same: a metric of both, side by side."""

    metric: str
    group: str
    """all, or taught classes: scenes whose words the scorer was taught."""
    model: str
    """base, adapter, or adapter - base."""
    spearman: float | None
    """Rank correlation over pictures (of the difference: over scenes); None where a side is
    constant or has no values."""
    count: int
    """How many pictures (scenes) it is over."""
    scenes: int
    scorer_mean: float
    scorer_low: float
    scorer_high: float
    judge_mean: float
    judge_low: float
    judge_high: float
    """Means over scenes with the evaluation's bootstrap intervals."""
