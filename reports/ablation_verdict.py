"""What an ablation shows, in words that its intervals allow.

The FocusDPO arm that validation chose is held against the base and against the arms of other
objectives on the same pairs. "Beats" needs a whole family interval on the right side of zero.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from focusdpo.data_schemas.ablations import BASE, Ablation, Arm, ArmRow, Contrast
from focusdpo.reports.metric_texts import (
    DASH,
    and_list,
    difference_text,
    in_sentence,
    judge,
    metric_info,
)
from focusdpo.reports.view import Better, Interval, Verdict

ALL = "all"
"""The group of every scene."""
FAMILIES = ("main", "base", "guards")
"""Where a verdict looks first."""
TABLE_FAMILIES = ("base", "guards", "main")
"""Where the table of differences to the base looks first."""
SOURCES = {
    "disrupt": "disrupt pairs",
    "rank": "rank pairs",
    "failure": "failure pairs",
    "both": "pairs of both sources",
}
"""Sources of pairs in words."""
_CONDITION = re.compile(r"([^-]*)(?:-n(\d+))?(?:-noise(.+))?")


def source_text(source: str) -> str:
    """What an arm was trained on, in words: failure-n100-noise2.5 is "failure pairs, 100 of them,
    noise about 2.5"."""
    match = _CONDITION.fullmatch(source)
    name, count, noise = match.groups() if match else (source, None, None)
    words = [SOURCES.get(name, name)]
    words += [f"{count} of them"] if count else []
    words += [f"noise about {noise}"] if noise else []
    return ", ".join(words)


def is_focus(arm: Arm) -> bool:
    """FocusDPO, with one map or both."""
    return arm.objective.startswith("focus")


class Lookup:
    """An ablation's rows and contrasts by what they are about."""

    def __init__(self, ablation: Ablation) -> None:
        self.ablation = ablation
        self.arms = {arm.name: arm for arm in ablation.arms}
        self.metrics = tuple(dict.fromkeys(row.metric for row in ablation.rows))
        self.groups = tuple(dict.fromkeys(row.group for row in ablation.rows))
        best = self.arms.get(ablation.best)
        sources = dict.fromkeys(arm.source for arm in ablation.arms if arm.source)
        self.sources = tuple(
            sorted(sources, key=lambda source: best is None or source != best.source)
        )
        """Pair sources, the chosen arm's first."""
        self._rows = {(row.arm, row.metric, row.group): row for row in ablation.rows}
        self._contrasts: dict[tuple[str, str, str, str], list[Contrast]] = {}
        for contrast in ablation.contrasts:
            self._contrasts.setdefault(
                (contrast.a, contrast.b, contrast.metric, contrast.group), []
            ).append(contrast)

    def row(self, arm: str, metric: str, group: str = ALL) -> ArmRow | None:
        """The arm's mean."""
        return self._rows.get((arm, metric, group))

    def contrast(
        self, a: str, b: str, metric: str, group: str = ALL, prefer: Sequence[str] = FAMILIES
    ) -> Contrast | None:
        """a - b, also where the record holds b - a; of several families the first of `prefer`."""
        contrasts = self._contrasts.get((a, b, metric, group), [])
        contrasts = contrasts or [
            _turned(contrast) for contrast in self._contrasts.get((b, a, metric, group), [])
        ]
        known = [contrast for contrast in contrasts if math.isfinite(contrast.mean)]

        def rank(contrast: Contrast) -> int:
            return prefer.index(contrast.family) if contrast.family in prefer else len(prefer)

        return min(known, key=rank, default=None)

    def better(self, metric: str) -> Better:
        """Which way is better: the record's word, else that of the metric's definition."""
        recorded = self.ablation.metrics_better.get(metric)
        if recorded == "higher":
            return "higher"
        return "lower" if recorded == "lower" else metric_info(metric).better

    def verdict(self, contrast: Contrast | None) -> Verdict:
        """Whether a fares better than b; undecided where the interval holds zero."""
        if contrast is None:
            return "not judged"
        return judge(interval_of(contrast), self.better(contrast.metric), contrast.scenes)

    def mean_change(self, arm: str, metric: str) -> float:
        """Mean difference to the base: the contrast's, or of the means where there is none; NaN."""
        contrast = self.contrast(arm, BASE, metric, prefer=TABLE_FAMILIES)
        if contrast is not None:
            return contrast.mean
        row, base = self.row(arm, metric), self.row(BASE, metric)
        return row.mean - base.mean if row and base else math.nan


def _turned(contrast: Contrast) -> Contrast:
    """b - a of a - b."""
    return dataclasses.replace(
        contrast,
        a=contrast.b,
        b=contrast.a,
        mean=-contrast.mean,
        low=-contrast.high,
        high=-contrast.low,
        family_low=-contrast.family_high,
        family_high=-contrast.family_low,
    )


def interval_of(contrast: Contrast, *, family: bool | None = None) -> Interval:
    """The contrast's own interval, or that for all contrasts of its family at once. A contrast is
    judged by its family's over all scenes, by its own in a group: so without `family`."""
    if contrast.group == ALL if family is None else family:
        return Interval(mean=contrast.mean, low=contrast.family_low, high=contrast.family_high)
    return Interval(mean=contrast.mean, low=contrast.low, high=contrast.high)


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
    source = source_text(arm.source)
    return f"{spoken(arm.label)} on {source}" if source else spoken(arm.label)


FEW_SEEDS = 3
"""Below this many training seeds the spread between seeds is hardly known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The best FocusDPO arm against one other arm, on each of the family's metrics."""

    rival: Arm
    contrasts: tuple[Contrast | None, ...]
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The verdict of an ablation."""

    best: Arm | None
    """The FocusDPO arm that validation chose."""
    metrics: tuple[str, ...]
    """The deciding metrics that the record has rows of."""
    rivals: tuple[Comparison, ...]
    """Base and other objectives."""
    siblings: tuple[Comparison, ...]
    """The other FocusDPO arms that the best was compared with."""
    headline: str
    details: tuple[str, ...]


def find(look: Lookup) -> Finding:
    """Whom the chosen arm beats, and what has to be said beside it."""
    metrics = tuple(m for m in look.ablation.deciding if m in look.metrics)
    best = look.arms.get(look.ablation.best)
    if best is None or not metrics:
        headline = "No FocusDPO arm was measured, so there is no verdict."
        return Finding(
            best=best, metrics=metrics, rivals=(), siblings=(), headline=headline, details=()
        )
    others = [arm for arm in look.ablation.arms if arm.name != best.name]
    compared = [_compare(look, best, arm, metrics) for arm in others]
    rivals = [
        comparison
        for comparison in compared
        if not is_focus(comparison.rival) and comparison.rival.source in ("", best.source)
    ]
    siblings = [
        comparison
        for comparison in compared
        if is_focus(comparison.rival) and any(comparison.contrasts)
    ]
    details = [
        _against_base(look, best, metrics),
        _highest(look, best, metrics),
        _siblings(siblings, metrics),
        _others(look, best, metrics),
        *_cautions(look),
    ]
    return Finding(
        best=best,
        metrics=metrics,
        rivals=tuple(rivals),
        siblings=tuple(siblings),
        headline=_headline(best, rivals, metrics),
        details=tuple(text for text in details if text),
    )


def _compare(look: Lookup, best: Arm, rival: Arm, metrics: Sequence[str]) -> Comparison:
    contrasts = tuple(look.contrast(best.name, rival.name, metric) for metric in metrics)
    verdicts = tuple(look.verdict(contrast) for contrast in contrasts)
    return Comparison(rival=rival, contrasts=contrasts, verdicts=verdicts)


def _headline(best: Arm, rivals: Sequence[Comparison], metrics: Sequence[str]) -> str:
    clauses = _clauses(rivals, metrics)
    return f"{title_of(best)}: {'; '.join(clauses) or 'compared with nothing'}."


def _clauses(rivals: Sequence[Comparison], metrics: Sequence[str]) -> list[str]:
    """One clause for all rivals that fared alike; the best outcomes first."""
    alike: dict[tuple[Verdict, ...], list[str]] = {}
    for comparison in rivals:
        name = "the base" if comparison.rival.name == BASE else spoken(comparison.rival.label)
        alike.setdefault(comparison.verdicts, []).append(name)
    order: tuple[Verdict, ...] = ("better", "undecided", "unchanged", "worse")

    def rank(verdicts: tuple[Verdict, ...]) -> list[int]:
        return [order.index(v) if v in order else len(order) for v in verdicts]

    return [_clause(v, and_list(alike[v]), metrics) for v in sorted(alike, key=rank)]


TOO_FEW: Verdict = "too few scenes"
_ALIKE: dict[Verdict, str] = {
    "better": "beats {names} on {metrics}",
    "worse": "is worse than {names} on {metrics}",
    "undecided": "is undecided against {names} on {metrics}",
    "unchanged": "does not differ from {names} on {metrics}",
    "too few scenes": "was held against {names} on too few scenes to tell",
    "not judged": "was not compared with {names}",
}


def _clause(verdicts: Sequence[Verdict], names: str, metrics: Sequence[str]) -> str:
    names_of = titles(metrics)
    if len(set(verdicts)) == 1:
        return _ALIKE[verdicts[0]].format(names=names, metrics=and_list(names_of))
    outcomes = list(zip(verdicts, names_of, strict=True))
    few = [title for verdict, title in outcomes if verdict == TOO_FEW]
    parts = [f"{verdict} on {title}" for verdict, title in outcomes if verdict != TOO_FEW]
    but = f", with too few scenes to tell about {and_list(few)}" if few else ""
    return f"is {and_list(parts)} against {names}{but}"


def titles(metrics: Sequence[str]) -> list[str]:
    """Metrics as they are called within a sentence."""
    return [in_sentence(metric_info(metric).title) for metric in metrics]


def _against_base(look: Lookup, best: Arm, metrics: Sequence[str]) -> str:
    parts = []
    for metric in metrics:
        contrast = look.contrast(best.name, BASE, metric)
        if contrast is not None:
            info = metric_info(metric)
            text = difference_text(interval_of(contrast), info.unit)
            parts.append(f"{in_sentence(info.title)} {text}")
    return f"Difference to the base: {and_list(parts)}." if parts else ""


def _highest(look: Lookup, best: Arm, metrics: Sequence[str]) -> str:
    """Which FocusDPO arm the result scenes themselves would have chosen: no verdict, a fact."""
    scores = {}
    for arm in look.ablation.arms:
        score = sum(
            look.mean_change(arm.name, metric) * (-1 if look.better(metric) == "lower" else 1)
            for metric in metrics
        )
        if is_focus(arm) and math.isfinite(score):
            scores[arm.name] = score
    if len(scores) < 2:
        return ""
    first = look.arms[max(scores, key=lambda name: scores[name])]
    who = "it" if first.name == best.name else title_of(first)
    return (
        f"It was chosen by validation scores. Of the {len(scores)} FocusDPO arms {who} has the "
        f"highest mean of {and_list(titles(metrics))} here, which is no test of its lead."
    )


def _siblings(siblings: Sequence[Comparison], metrics: Sequence[str]) -> str:
    """What the intervals say of the other FocusDPO arms."""
    if not siblings:
        return ""
    joint = {"better": "better than", "worse": "worse than", "unchanged": "no different from"}
    by_words: dict[str, list[str]] = {}
    for sibling in siblings:
        alike = sibling.verdicts[0] if len(set(sibling.verdicts)) == 1 else "undecided"
        by_words.setdefault(joint.get(alike, "undecided against"), []).append(
            title_of(sibling.rival)
        )
    parts = [f"{words} {and_list(names)}" for words, names in by_words.items()]
    return f"On {and_list(titles(metrics))} together it is {'; '.join(parts)}."


def _cautions(look: Lookup) -> list[str]:
    """What a reader has to know before believing the verdict."""
    ablation, texts = look.ablation, []
    if len(ablation.seeds) < FEW_SEEDS:
        seeds = "One training seed" if len(ablation.seeds) == 1 else "Two training seeds"
        texts.append(f"{seeds}: how results vary from training to training is hardly known.")
    if ablation.protocol.endswith("/val"):
        texts.append("These are validation scenes: settings were chosen on them.")
    return texts


def _others(look: Lookup, best: Arm, metrics: Sequence[str]) -> str:
    """The metrics that do not decide."""
    rest = [metric for metric in look.metrics if metric not in metrics]
    by_verdict: dict[Verdict, list[str]] = {}
    for metric in rest:
        verdict = look.verdict(look.contrast(best.name, BASE, metric))
        by_verdict.setdefault(verdict, []).append(in_sentence(metric_info(metric).title))
    parts = [
        f"{verdict} on {and_list(by_verdict[verdict])}"
        for verdict in ("better", "worse")
        if verdict in by_verdict
    ]
    if not parts:
        return ""
    return f"Against the base it is also {' and '.join(parts)}."
