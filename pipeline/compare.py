"""Measured pictures -> a table of means with bootstrap intervals, and the paired difference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np

from focusdpo.data_schemas.evaluations import EvalScene
from focusdpo.data_schemas.runs import EvalRow
from focusdpo.pipeline.evaluate import EvaluateConfig
from focusdpo.pipeline.metrics import (
    METRICS,
    Interval,
    bootstrap,
    nan_mean,
)

BASE, ADAPTER, DIFFERENCE = "base", "adapter", "adapter - base"


class Measured(Protocol):
    """A record of one picture of a scene, with metrics as attributes."""

    @property
    def scene_id(self) -> str: ...


def rows(
    base: Sequence[EvalScene], adapter: Sequence[EvalScene], config: EvaluateConfig
) -> list[EvalRow]:
    """The table: each metric and group for base, adapter and their paired difference.

    `adapter` may be empty: then base alone. Groups without a scene are left out.
    """
    table = []
    for group, belongs in GROUPS.items():
        mine = [one for one in base if belongs(one)]
        theirs = [one for one in adapter if belongs(one)]
        if not mine and not theirs:
            continue
        for metric in METRICS:
            means = intervals(metric, mine, theirs, config)
            table += [
                EvalRow(
                    protocol=(mine or theirs)[0].protocol,
                    metric=metric,
                    group=group,
                    model=model,
                    mean=interval.mean,
                    low=interval.low,
                    high=interval.high,
                    scenes=interval.scenes,
                )
                for model, interval in means.items()
                if interval.scenes
            ]
    return table


GROUPS: dict[str, Callable[[EvalScene], bool]] = {
    "all": lambda one: True,
    "1 subject": lambda one: len(one.subject_ids) == 1,
    "2 subjects": lambda one: len(one.subject_ids) == 2,
    "3 subjects": lambda one: len(one.subject_ids) == 3,
    "same class": lambda one: len(set(one.class_names)) < len(one.class_names),
    "held-out classes": lambda one: one.held_out,
}
"""The groups of scenes that a table shows."""


def scene_means(records: Sequence[Measured], metric: str) -> dict[str, float]:
    """Scene id -> the metric's mean over the scene's pictures, scenes in order of appearance."""
    values: dict[str, list[float]] = {}
    for record in records:
        values.setdefault(record.scene_id, []).append(getattr(record, metric))
    return {scene: nan_mean(np.array(own)) for scene, own in values.items()}


def intervals(
    metric: str, base: Sequence[Measured], adapter: Sequence[Measured], config: EvaluateConfig
) -> dict[str, Interval]:
    """Means over scenes by model, and of the paired difference where there are both.

    ValueError when the two were measured on different scenes.
    """
    ours, theirs = scene_means(base, metric), scene_means(adapter, metric)
    resample = partial(bootstrap, resamples=config.resamples, level=config.level, seed=config.seed)
    found: dict[str, Interval] = {}
    if ours:
        found[BASE] = resample(np.array(list(ours.values())))
    if theirs:
        found[ADAPTER] = resample(np.array(list(theirs.values())))
    if ours and theirs:
        if set(ours) != set(theirs):
            odd = sorted(set(ours) ^ set(theirs))[:3]
            raise ValueError(f"base and adapter were measured on different scenes: {odd}")
        found[DIFFERENCE] = resample(np.array([theirs[k] - ours[k] for k in ours]))
    return found
