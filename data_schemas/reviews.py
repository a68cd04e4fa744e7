"""What people decided about preference pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from focusdpo.data_schemas.pairs import PairSource

Decision = Literal[
    "accept",  # the winner is better: the pair stays as it was built
    "reject",  # neither is better, or the pair teaches something wrong
    "swap",  # the loser is better
    "withdraw",  # the reviewer takes an earlier decision back
]
DECISIONS: tuple[Decision, ...] = get_args(Decision)
Verdict = Literal["accepted", "rejected", "contested", "swapped"]
"""What all decisions about a pair come to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """One decision of one reviewer. It is never changed; a later one counts instead."""

    id: str
    pair_id: str
    """As the pair was built, whichever side a version shows as its winner."""
    judged: str
    """Digest of its two pictures: a decision holds for these only."""
    partition: str
    subject_ids: tuple[str, ...]
    source: PairSource
    margin: float
    """Of the pair as it was built: above zero, as its scorers saw it."""
    decision: Decision
    """About the pair as it was built: `swap` says that its loser is better."""
    reviewer: str
    when: str
    """UTC, ISO 8601."""
    reason: str = ""
    blind: bool = False
    """The reviewer did not know which side the scorers prefer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewedPair:
    """A pair that reviews have changed in a dataset version."""

    pair_id: str
    """As it was built."""
    partition: str
    subject_ids: tuple[str, ...]
    verdict: Verdict
    """rejected, contested or swapped."""
