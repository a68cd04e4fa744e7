"""What an ablation found: which settings each objective got, how its adapters fare, who beats whom.

`Ablation` is written as `ablation.json`; report, Markdown and figures are made from it alone and
from the pictures that it names.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from focusdpo.data_schemas.errors import UserError

BASE = "base"
"""Name of the arm that was not trained."""


def _nan(value: object) -> object:
    return float("nan") if value is None else value


Number = Annotated[float, BeforeValidator(_nan)]
"""A float that may be NaN: `null` in JSON, which knows no NaN."""


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
    score: Number
    """What the choice is made by: mean over scenes of identity + leakage margin (identity alone in
    scenes of one subject), less the base's."""
    identity: Number
    """Difference to the base."""
    leakage_margin: Number
    """Difference to the base."""
    winner_rise: Number
    """(e_w - e_w^ref) / e_w^ref at the end of training; NaN for objectives without a reference."""
    chosen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """Validation metrics of an objective's chosen setting along its training."""

    objective: str
    step: int
    metric: str
    """A name of `evaluation.metrics.METRICS`."""
    value: Number
    """Difference to the base, mean over validation scenes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRow:
    """A metric of an arm over a group of scenes, mean over training seeds."""

    arm: str
    metric: str
    group: str
    mean: Number
    seed_std: Number
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
    mean: Number
    low: Number
    high: Number
    """Interval of this contrast alone."""
    family_low: Number
    family_high: Number
    """Interval that holds for all contrasts of the family at once (max-T bootstrap)."""
    p_family: Number
    """Adjusted for the family."""
    scenes: int
    family: str = "main"
    """Contrasts whose interval holds together: main (the FocusDPO variant that validation chose
    against other objectives, all sources), base (every arm against the base), guards (the other
    metrics against the base), or a source's name (the main ones within that source)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far the preference scorer and the judge rank the same pictures alike."""

    arm: str
    metric: str
    """identity or leakage_margin."""
    spearman: Number
    """Over pictures."""
    pictures: int
    scorer_difference: Number
    """Mean difference to the base by the scorer; NaN for the base itself."""
    judge_difference: Number


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Another reading of a doubtful choice of FocusDPO, against the default one: paired over
    validation scenes, one training seed, intervals for all readings and metrics at once."""

    name: str
    settings: dict[str, str]
    """Dotted train setting -> value: what differs from the default reading."""
    metric: str
    mean: Number
    """This reading less the default one."""
    low: Number
    high: Number
    family_low: Number
    family_high: Number
    scenes: int


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
    best: str
    """The FocusDPO arm that the search's validation scores chose, before anything was seen on the
    held-out split."""
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
    level: float = 0.95
    """Of all intervals."""
    deciding: tuple[str, ...] = ("identity", "leakage_margin")
    """Metrics that the verdict rests on."""
    readings: tuple[Reading, ...] = ()
    """Other readings of FocusDPO on validation scenes."""


def to_json(ablation: Ablation) -> str:
    """As it lies in `ablation.json`; NaN becomes null."""
    return _adapter().dump_json(ablation, indent=1).decode() + "\n"


def read_ablation(path: Path) -> Ablation:
    """The record of a file that `to_json` gave. UserError names file and field."""
    try:
        return _adapter().validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: missing, so this ablation did not finish; run `focusdpo ablate` again"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(
            f"{path}: {place}: {first['msg']}; this is no record of an ablation as this focusdpo "
            "writes them, run the same `focusdpo ablate` again"
        ) from error


@functools.cache
def _adapter() -> TypeAdapter[Ablation]:
    return TypeAdapter(Ablation)
