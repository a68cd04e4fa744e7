"""Finding an ablation's numbers by arm, metric and group, and writing them as text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from focusdpo.data_schemas.ablations import BASE, Ablation, Arm, ArmRow, Contrast
from focusdpo.flows.reports.chart_data import Better, Unit
from focusdpo.flows.reports.metrics import bounds, judge, mean_text, metric_info, number
from focusdpo.flows.reports.view import Interval, Verdict

ALL = "all"
"""The group of every scene."""
FAMILIES = ("main", "base", "guards")
"""Where a verdict looks first."""
TABLE_FAMILIES = ("base", "guards", "main")
"""Where the table of differences to the base looks first."""
DASH = "\N{EN DASH}"
"""Stands for a number that has no meaning or was not measured."""
SOURCES = {"disrupt": "disrupt pairs", "rank": "rank pairs", "both": "pairs of both sources"}
"""What an arm was trained on, in words."""


def is_focus(arm: Arm) -> bool:
    """FocusDPO, with one map or both."""
    return arm.objective.startswith("focus")


@dataclass(frozen=True, slots=True)
class Change:
    """A difference as the page prints it; dashes where there is none."""

    mean: str = DASH
    bounds: str = ""
    verdict: Verdict = "not judged"


class Lookup:
    """An ablation's rows and contrasts by what they are about."""

    def __init__(self, ablation: Ablation) -> None:
        self.ablation = ablation
        self.arms = {arm.name: arm for arm in ablation.arms}
        self.metrics = tuple(dict.fromkeys(row.metric for row in ablation.rows))
        self.groups = tuple(dict.fromkeys(row.group for row in ablation.rows))
        best = self.arms.get(ablation.best)
        sources = dict.fromkeys(arm.source for arm in ablation.arms if arm.source)
        self.sources = tuple(sorted(sources, key=lambda one: best is None or one != best.source))
        """Pair sources, the chosen arm's first."""
        self._rows = {(row.arm, row.metric, row.group): row for row in ablation.rows}
        self._contrasts: dict[tuple[str, str, str, str], list[Contrast]] = {}
        for one in ablation.contrasts:
            self._contrasts.setdefault((one.a, one.b, one.metric, one.group), []).append(one)

    def row(self, arm: str, metric: str, group: str = ALL) -> ArmRow | None:
        """The arm's mean."""
        return self._rows.get((arm, metric, group))

    def contrast(
        self, a: str, b: str, metric: str, group: str = ALL, prefer: Sequence[str] = FAMILIES
    ) -> Contrast | None:
        """a - b, also where the record holds b - a; of several families the first of `prefer`."""
        found = self._contrasts.get((a, b, metric, group), [])
        found = found or [_turned(one) for one in self._contrasts.get((b, a, metric, group), [])]
        known = [one for one in found if math.isfinite(one.mean)]

        def rank(one: Contrast) -> int:
            return prefer.index(one.family) if one.family in prefer else len(prefer)

        return min(known, key=rank, default=None)

    def better(self, metric: str) -> Better:
        """Which way is better: the record's word, else that of the metric's definition."""
        told = self.ablation.metrics_better.get(metric)
        if told == "higher":
            return "higher"
        return "lower" if told == "lower" else metric_info(metric).better

    def verdict(self, contrast: Contrast | None) -> Verdict:
        """Whether a fares better than b; undecided where the interval holds zero."""
        if contrast is None:
            return "not judged"
        return judge(interval_of(contrast), self.better(contrast.metric), contrast.scenes)

    def change(self, arm: str, metric: str, group: str = ALL) -> Change:
        """The arm's difference to the base."""
        contrast = self.contrast(arm, BASE, metric, group, TABLE_FAMILIES)
        if contrast is None:
            return Change()
        interval = interval_of(contrast)
        unit = unit_of(metric)
        return Change(
            signed_text(interval, unit), bounds_text(interval, unit), self.verdict(contrast)
        )

    def mean_change(self, arm: str, metric: str) -> float:
        """Mean difference to the base: the contrast's, or of the means where there is none; NaN."""
        contrast = self.contrast(arm, BASE, metric, prefer=TABLE_FAMILIES)
        if contrast is not None:
            return contrast.mean
        own, base = self.row(arm, metric), self.row(BASE, metric)
        return own.mean - base.mean if own and base else math.nan


def _turned(one: Contrast) -> Contrast:
    """b - a of a - b."""
    return dataclasses.replace(
        one,
        a=one.b,
        b=one.a,
        mean=-one.mean,
        low=-one.high,
        high=-one.low,
        family_low=-one.family_high,
        family_high=-one.family_low,
    )


def interval_of(contrast: Contrast) -> Interval:
    """What a contrast is judged by: over all scenes its family's, in a group its own."""
    return family_interval(contrast) if contrast.group == ALL else own_interval(contrast)


def own_interval(contrast: Contrast) -> Interval:
    """Of this contrast alone."""
    return Interval(mean=contrast.mean, low=contrast.low, high=contrast.high)


def family_interval(contrast: Contrast) -> Interval:
    """For all contrasts of the family at once."""
    return Interval(mean=contrast.mean, low=contrast.family_low, high=contrast.family_high)


def unit_of(metric: str) -> Unit:
    """How the metric's numbers are printed."""
    return metric_info(metric).unit


def value_text(value: float | None, unit: Unit) -> str:
    """A number in its unit."""
    return number(value, unit) if value is not None and math.isfinite(value) else DASH


def signed_text(interval: Interval, unit: Unit) -> str:
    """A difference in its unit."""
    return mean_text(interval, unit, signed=True) if math.isfinite(interval.mean) else DASH


def bounds_text(interval: Interval, unit: Unit) -> str:
    """A difference's interval in brackets; nothing where it has none."""
    known = math.isfinite(interval.low) and math.isfinite(interval.high)
    return bounds(interval, unit, signed=True) if known else ""


def p_text(value: float) -> str:
    """A p value with three decimals."""
    if not math.isfinite(value):
        return DASH
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def settings_text(settings: dict[str, str]) -> str:
    """Settings in one line; "train." is what all begin with."""
    return ", ".join(f"{name.removeprefix('train.')}={value}" for name, value in settings.items())


def spoken(label: str) -> str:
    """A label within a sentence: what follows its first comma in brackets."""
    name, comma, rest = label.partition(", ")
    return f"{name} ({rest})" if comma else label


def title_of(arm: Arm) -> str:
    """Label and what it was trained on."""
    source = SOURCES.get(arm.source, arm.source)
    return f"{spoken(arm.label)} on {source}" if source else spoken(arm.label)
