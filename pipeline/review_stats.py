"""How well reviewers agree with one another and with the scorers.

Nominal labels accept, reject, swap. `nan` is told as None: a figure that cannot be had from so few
decisions, or where chance alone would agree always.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from focusdpo.data_schemas.pairs import Decision, Review
from focusdpo.pipeline.audit import Judged, standing, verdict_of

PREFERENCE: Mapping[Decision, int] = {"accept": 1, "reject": 0, "swap": -1}
"""How a reviewer stands to the scorers' winner."""


@dataclass(frozen=True, kw_only=True)
class PairOfReviewers:
    """Two reviewers on the pairs that both have judged."""

    a: str
    b: str
    pairs: int
    agreement: float
    """Share of them with the same decision."""
    kappa: float | None
    """Cohen's: agreement beyond that of chance, 1 at best."""


@dataclass(frozen=True, kw_only=True)
class WithScorers:
    """Reviewers' preferences beside the scorers'."""

    decisions: int
    prefer_winner: int
    prefer_loser: int
    neither: int
    share: float | None
    """Of those who prefer a side: the share who prefer the scorers' winner."""
    low: float | None
    high: float | None
    """Wilson's 95 % interval of that share."""
    rank_correlation: float | None
    """Spearman's, of preference (1, 0, -1) with the pair's margin."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What `focusdpo review stats` tells."""

    decisions: int
    """In the audit, those that no longer count included."""
    pairs: int
    """With a decision that counts."""
    verdicts: dict[str, int]
    reviewers: dict[str, dict[str, int]]
    """Reviewer -> decision -> how many that count."""
    several: int
    """Pairs that two or more have judged."""
    agreement: float | None
    """Over all two reviewers of a pair: the share with the same decision."""
    alpha: float | None
    """Krippendorff's, nominal, for any number of reviewers and with gaps."""
    between: list[PairOfReviewers]
    scorers: WithScorers
    scorers_blind: WithScorers
    """The same of decisions that were made without knowing the scorers' side."""

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def statistics(reviews: Sequence[Review]) -> Statistics:
    """All figures of an audit."""
    held = standing(reviews)
    counted = [review for by in held.values() for review in by.values()]
    reviewers: dict[str, Counter[str]] = {}
    for review in counted:
        reviewers.setdefault(review.reviewer, Counter())[review.decision] += 1
    units = [[review.decision for review in by.values()] for by in held.values()]
    verdicts = Counter(str(verdict_of(unit)) for unit in units)
    return Statistics(
        decisions=len(reviews),
        pairs=len(held),
        verdicts=dict(sorted(verdicts.items())),
        reviewers={name: dict(sorted(reviewers[name].items())) for name in sorted(reviewers)},
        several=sum(len(unit) > 1 for unit in units),
        agreement=raw_agreement(units),
        alpha=krippendorff_alpha(units),
        between=between(held),
        scorers=with_scorers(counted),
        scorers_blind=with_scorers([review for review in counted if review.blind]),
    )


def between(held: Mapping[Judged, Mapping[str, Review]]) -> list[PairOfReviewers]:
    """Every two reviewers with pairs in common."""
    both: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for by in held.values():
        for a, b in itertools.combinations(sorted(by), 2):
            both.setdefault((a, b), []).append((by[a].decision, by[b].decision))
    return [
        PairOfReviewers(
            a=a,
            b=b,
            pairs=len(labels),
            agreement=sum(first == second for first, second in labels) / len(labels),
            kappa=cohen_kappa(labels),
        )
        for (a, b), labels in sorted(both.items())
    ]


def cohen_kappa(labels: Sequence[tuple[str, str]]) -> float | None:
    """Cohen's kappa of two reviewers: (p_o - p_e) / (1 - p_e)."""
    if not labels:
        return None
    observed = sum(a == b for a, b in labels) / len(labels)
    first, second = (Counter(side) for side in zip(*labels, strict=True))
    by_chance = sum(first[name] * second[name] for name in first) / len(labels) ** 2
    if by_chance == 1.0:
        return None
    return (observed - by_chance) / (1.0 - by_chance)


def raw_agreement(units: Iterable[Sequence[str]]) -> float | None:
    """Share of all two decisions about one pair that are the same."""
    same = total = 0
    for unit in units:
        total += math.comb(len(unit), 2)
        same += sum(math.comb(count, 2) for count in Counter(unit).values())
    return same / total if total else None


def krippendorff_alpha(units: Iterable[Sequence[str]]) -> float | None:
    """Krippendorff's alpha for nominal labels: 1 - observed / expected disagreement, where a pair
    with n decisions weighs n. Pairs with one decision tell nothing and are passed over."""
    observed = 0.0
    totals: Counter[str] = Counter()
    for unit in units:
        if len(unit) < 2:
            continue
        counts = Counter(unit)
        totals.update(counts)
        differing = len(unit) ** 2 - sum(count**2 for count in counts.values())
        observed += differing / (len(unit) - 1)
    size = totals.total()
    expected = size**2 - sum(count**2 for count in totals.values())
    if not expected:
        return None
    return 1.0 - (size - 1) * observed / expected


def with_scorers(reviews: Sequence[Review]) -> WithScorers:
    """Decisions that count, beside what the scorers say of the same pairs."""
    counts = Counter(review.decision for review in reviews)
    preferring = counts["accept"] + counts["swap"]
    share = counts["accept"] / preferring if preferring else None
    low, high = wilson(counts["accept"], preferring)
    return WithScorers(
        decisions=len(reviews),
        prefer_winner=counts["accept"],
        prefer_loser=counts["swap"],
        neither=counts["reject"],
        share=share,
        low=low,
        high=high,
        rank_correlation=rank_correlation(
            [PREFERENCE[review.decision] for review in reviews],
            [review.margin for review in reviews],
        ),
    )


def wilson(hits: int, total: int) -> tuple[float | None, float | None]:
    """Wilson's 95 % interval of a share."""
    from scipy.stats import binomtest

    if not total:
        return None, None
    interval = binomtest(hits, total).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def rank_correlation(values: Sequence[float], others: Sequence[float]) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None where either does not vary."""
    from scipy.stats import spearmanr

    if len(set(values)) < 2 or len(set(others)) < 2:
        return None
    return float(spearmanr(values, others).statistic)
