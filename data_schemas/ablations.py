"""What an ablation found: which settings each objective got, how its adapters fare, who beats whom.

`Ablation` is written as `ablation.json`; report, Markdown and figures are made from it alone and
from the pictures that it names.
"""

from __future__ import annotations

from dataclasses import dataclass

BASE = "base"
"""Name of the arm that was not trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to train: an objective on pairs of one source."""

    name: str
    """Unique, e.g. "focus_dpo/both"."""
    objective: str
    """Key of the objective, e.g. "focus_dpo", "focus_s", "focus_d", "dpo", "sft", "patch_dpo"."""
    label: str
    """For people, e.g. "FocusDPO (M_s and M_d)"."""
    source: str
    """disrupt, rank, both; "" for the base."""
    settings: dict[str, str]
    """What the search chose: dotted setting -> value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPoint:
    """One setting that was tried for one objective, seen on the validation split."""

    objective: str
    settings: dict[str, str]
    score: float
    """What the choice is made by: mean over scenes of identity + leakage margin (identity alone in
    scenes of one subject), less the base's."""
    identity: float
    """Difference to the base."""
    leakage_margin: float
    """Difference to the base."""
    winner_rise: float
    """(e_w - e_w^ref) / e_w^ref at the end of training; NaN for objectives without a reference."""
    chosen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """Validation metrics of an objective's chosen setting along its training."""

    objective: str
    step: int
    metric: str
    """A name of `pipeline.metrics.METRICS`."""
    value: float
    """Difference to the base, mean over validation scenes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRow:
    """A metric of an arm over a group of scenes, mean over training seeds."""

    arm: str
    metric: str
    group: str
    mean: float
    seed_std: float
    """Standard deviation over seeds of the seeds' means; NaN with one seed."""
    seeds: int
    scenes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """a - b on a metric: paired over scenes and seeds."""

    a: str
    b: str
    metric: str
    group: str
    mean: float
    low: float
    high: float
    """Interval of this contrast alone."""
    family_low: float
    family_high: float
    """Interval that holds for all contrasts of the family at once (max-T bootstrap)."""
    p_family: float
    """Adjusted for the family."""
    scenes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far the preference scorer and the judge rank the same pictures alike."""

    arm: str
    metric: str
    """identity or leakage_margin."""
    spearman: float
    """Over pictures."""
    pictures: int
    scorer_difference: float
    """Mean difference to the base by the scorer; NaN for the base itself."""
    judge_difference: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablation:
    """The whole result."""

    protocol: str
    dataset_version: str
    pairs: dict[str, int]
    """Source -> training pairs."""
    steps: int
    batch_pairs: int
    seeds: tuple[int, ...]
    scenes: int
    validation_scenes: int
    arms: tuple[Arm, ...]
    """The base first."""
    search: tuple[SearchPoint, ...]
    curves: tuple[CurvePoint, ...]
    rows: tuple[ArmRow, ...]
    contrasts: tuple[Contrast, ...]
    agreement: tuple[Agreement, ...]
    metrics_better: dict[str, str]
    """Metric -> higher or lower."""
    seconds: float
    """Sum over all trainings and evaluations."""
    wall_seconds: float
    workers: int
    machine: dict[str, str]
    command: str
    pictures: dict[str, str]
    """Arm -> folder of its pictures of the first seed, below the ablation's folder; pictures are
    called `<scene id>-0.png`."""
