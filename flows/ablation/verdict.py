"""What an ablation shows, in words that its intervals allow.

The FocusDPO arm that validation chose is held against the base and against the arms of other
objectives on the same pairs. "Beats" needs a whole family interval on the right side of zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from focusdpo.data_schemas.ablations import BASE, Ablation, Arm, Contrast
from focusdpo.flows.ablation.lookup import (
    Lookup,
    bounds_text,
    interval_of,
    is_focus,
    signed_text,
    spoken,
    title_of,
    unit_of,
)
from focusdpo.flows.reports.metrics import metric_info
from focusdpo.flows.reports.view import Verdict

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


def verdict(ablation: Ablation) -> tuple[str, ...]:
    """The verdict as sentences, the headline first."""
    finding = find(Lookup(ablation))
    return (finding.headline, *finding.details)


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
        one for one in compared if not is_focus(one.rival) and one.rival.source in ("", best.source)
    ]
    siblings = [one for one in compared if is_focus(one.rival) and any(one.contrasts)]
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
    verdicts = tuple(look.verdict(one) for one in contrasts)
    return Comparison(rival=rival, contrasts=contrasts, verdicts=verdicts)


def _headline(best: Arm, rivals: Sequence[Comparison], metrics: Sequence[str]) -> str:
    clauses = _clauses(rivals, metrics)
    return f"{title_of(best)}: {'; '.join(clauses) or 'compared with nothing'}."


def _clauses(rivals: Sequence[Comparison], metrics: Sequence[str]) -> list[str]:
    """One clause for all rivals that fared alike; the best outcomes first."""
    alike: dict[tuple[Verdict, ...], list[str]] = {}
    for one in rivals:
        alike.setdefault(one.verdicts, []).append(_rival_name(one.rival))
    order: tuple[Verdict, ...] = ("better", "undecided", "unchanged", "worse")

    def rank(verdicts: tuple[Verdict, ...]) -> list[int]:
        return [order.index(v) if v in order else len(order) for v in verdicts]

    return [_clause(v, and_list(alike[v]), metrics) for v in sorted(alike, key=rank)]


def _rival_name(arm: Arm) -> str:
    return "the base" if arm.name == BASE else spoken(arm.label)


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
    parts = [f"{verdict} on {title}" for verdict, title in zip(verdicts, names_of, strict=True)]
    return f"is {and_list(parts)} against {names}"


def and_list(words: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join([*([", ".join(words[:-1])] if words[:-1] else []), *words[-1:]])


def titles(metrics: Sequence[str]) -> list[str]:
    """Metrics as they are called within a sentence."""
    return [metric_info(metric).title.lower() for metric in metrics]


def _against_base(look: Lookup, best: Arm, metrics: Sequence[str]) -> str:
    parts = []
    for metric in metrics:
        contrast = look.contrast(best.name, BASE, metric)
        if contrast is not None:
            interval, unit = interval_of(contrast), unit_of(metric)
            text = f"{signed_text(interval, unit)} {bounds_text(interval, unit)}"
            parts.append(f"{metric_info(metric).title.lower()} {text}")
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
    found: dict[str, list[str]] = {}
    for one in siblings:
        alike = one.verdicts[0] if len(set(one.verdicts)) == 1 else "undecided"
        found.setdefault(joint.get(alike, "undecided against"), []).append(title_of(one.rival))
    parts = [f"{words} {and_list(names)}" for words, names in found.items()]
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
    found: dict[Verdict, list[str]] = {}
    for metric in rest:
        verdict = look.verdict(look.contrast(best.name, BASE, metric))
        found.setdefault(verdict, []).append(metric_info(metric).title.lower())
    parts = [
        f"{verdict} on {and_list(found[verdict])}"
        for verdict in ("better", "worse")
        if verdict in found
    ]
    if not parts:
        return ""
    return f"Against the base it is also {' and '.join(parts)}."
