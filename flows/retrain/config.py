"""When `retrain` trains, and when it promotes what came out. Imports no torch and no Prefect."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from focusdpo.data_schemas.strict import StrictModel
from focusdpo.evaluation.comparison import GROUPS
from focusdpo.evaluation.metrics import METRICS

WHOLE: dict[str, Literal["higher", "lower"]] = {"dino": "higher", "clip_i": "higher"}
"""Metrics that only the DreamBench protocols have, of whole pictures."""


def better(metric: str) -> Literal["higher", "lower"]:
    """Which way a metric improves."""
    return WHOLE.get(metric) or METRICS[metric].better


class RetrainConfig(StrictModel):
    """The rules of `retrain`."""

    min_new_pairs: int = Field(
        50,
        ge=1,
        description="train when at least so many pairs are new since the promoted adapter's "
        "dataset version",
    )
    max_age_days: float = Field(
        14.0,
        gt=0,
        description="train on fewer new pairs, when the promoted adapter was promoted longer ago",
    )
    metric: str = Field(
        "failed",
        description="what decides: a metric of the protocol, failed subjects by default "
        "(docs/operations.md)",
    )
    group: str = Field("all", description="the scenes that decide: a group of the protocol's table")
    rule: Literal["better", "not_worse"] = Field(
        "better",
        description="better: promote when the interval of the paired difference lies above zero; "
        "not_worse: when it lies above minus epsilon",
    )
    epsilon: float = Field(
        0.0, ge=0, description="for not_worse: the loss that is put up with, in the metric's unit"
    )

    @model_validator(mode="after")
    def _is_known(self) -> RetrainConfig:
        if self.metric not in METRICS and self.metric not in WHOLE:
            names = ", ".join([*METRICS, *WHOLE])
            raise ValueError(f"metric '{self.metric}': there are {names}")
        if self.group not in GROUPS:
            raise ValueError(f"group '{self.group}': there are {', '.join(GROUPS)}")
        if self.rule == "better" and self.epsilon:
            raise ValueError("epsilon: belongs to rule not_worse")
        return self
