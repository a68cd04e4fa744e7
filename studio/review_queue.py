"""What there is to review, in which order, and what a reviewer sees of it.

Every pair of a version and every pair that reviews have left out of it is in the queue, always as
it was built: decisions are about that, whichever side a version shows as its winner.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.pairs import Pair
from focusdpo.data_schemas.reviews import Decision, Review, Verdict
from focusdpo.data_schemas.scenes import stable_hash
from focusdpo.data_schemas.shards import IndexRow
from focusdpo.pipeline.reviews import (
    Judged,
    is_swapped,
    judged_digest,
    original_id,
    standing,
    swapped,
    verdict_of,
)
from focusdpo.pipeline.store import Store
from focusdpo.pipeline.version_tables import partitions_of, reviewed_of
from focusdpo.pipeline.versions import DatasetVersion

Show = Literal["open", "mine", "disputed", "all"]
Order = Literal["uncertain", "certain", "pair"]
Side = Literal["left", "right"]
SHOWS: tuple[Show, ...] = get_args(Show)
ORDERS: tuple[Order, ...] = get_args(Order)


@dataclass(frozen=True, kw_only=True)
class Item:
    """A pair in the queue."""

    pair_id: str
    """As it was built."""
    partition: str
    subject_ids: tuple[str, ...]
    source: str
    margin: float | None
    """As it was built; None where only the pair's record tells it."""
    mine: Decision | None
    others: int
    """Decisions of other reviewers that count."""
    verdict: Verdict | None


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which items, in which order."""

    subject: str = ""
    source: str = ""
    show: Show = "open"
    order: Order = "uncertain"


@dataclass(frozen=True, kw_only=True)
class Count:
    """How far a reviewer has come with what the filter lets through."""

    decided: int
    total: int


class Queue:
    """The pairs of one version; reads nothing twice."""

    def __init__(self, version: DatasetVersion) -> None:
        self._version = version
        self._store: Store = version.store
        self._rows: dict[str, IndexRow] = {original_id(row.pair_id): row for row in version.rows}
        partitions = partitions_of(version.store, version.id)
        self._keys = {one.partition: one.key for one in partitions}
        self._left_out = {
            one.pair_id: one
            for one in reviewed_of(version.store, version.id)
            if one.pair_id not in self._rows
        }

    @property
    def subjects(self) -> list[str]:
        return sorted({name for row in self._rows.values() for name in row.subject_ids})

    def __contains__(self, pair_id: str) -> bool:
        return pair_id in self._rows or pair_id in self._left_out

    def items(
        self, reviews: Sequence[Review], reviewer: str, chosen: Filter
    ) -> tuple[list[Item], Count]:
        """The items that pass, and how far the reviewer is with all that the subject and source
        let through."""
        held = _by_pair(standing(reviews))
        here = [
            one
            for one in self._all(held, reviewer)
            if chosen.subject in ("", *one.subject_ids) and chosen.source in ("", one.source)
        ]
        decided = sum(one.mine is not None for one in here)
        shown = [one for one in here if _shows(one, chosen.show)]
        return _ordered(shown, chosen.order), Count(decided=decided, total=len(here))

    def pair(self, pair_id: str) -> Pair:
        """A pair as it was built. UserError when the version has none of that id."""
        row = self._rows.get(pair_id)
        if row is not None:
            pair = self._version.read(row).pair
            return swapped(pair) if is_swapped(pair.id) else pair
        left_out = self._left_out.get(pair_id)
        key = self._keys.get(left_out.partition) if left_out else None
        for pair in self._store.read("pair", key, Pair) if key else ():
            if pair.id == pair_id:
                return pair
        raise UserError(f"version {self._version.id} has no pair of this name; load the page again")

    def _all(self, held: Mapping[str, Mapping[str, Review]], reviewer: str) -> Iterator[Item]:
        for name, row in self._rows.items():
            margin = -row.margin if is_swapped(row.pair_id) else row.margin
            yield _item(name, row.partition, row.subject_ids, row.source, margin, held, reviewer)
        for name, one in self._left_out.items():
            by = held.get(name, {})
            source = next((review.source for review in by.values()), "")
            known = next((review.margin for review in by.values()), None)
            yield _item(name, one.partition, one.subject_ids, source, known, held, reviewer)


def _item(
    name: str,
    partition: str,
    subject_ids: tuple[str, ...],
    source: str,
    margin: float | None,
    held: Mapping[str, Mapping[str, Review]],
    reviewer: str,
) -> Item:
    by = held.get(name, {})
    mine = by.get(reviewer)
    return Item(
        pair_id=name,
        partition=partition,
        subject_ids=subject_ids,
        source=source,
        margin=margin,
        mine=mine.decision if mine else None,
        others=len(by) - (mine is not None),
        verdict=verdict_of(one.decision for one in by.values()),
    )


def _by_pair(held: Mapping[Judged, Mapping[str, Review]]) -> dict[str, Mapping[str, Review]]:
    """The decisions about the pictures judged last: an index row does not say which it has."""
    found: dict[str, Mapping[str, Review]] = {}
    latest: dict[str, str] = {}
    for (pair, _), by in held.items():
        when = max(one.when for one in by.values())
        if when > latest.get(pair, ""):
            found[pair], latest[pair] = by, when
    return found


def _shows(one: Item, show: Show) -> bool:
    if show == "open":
        return one.mine is None
    if show == "mine":
        return one.mine is not None
    return one.verdict == "contested" if show == "disputed" else True


def _ordered(items: list[Item], order: Order) -> list[Item]:
    """By margin: the scorers are least certain where it is small. Ties, and pairs without one, by
    id, so that the order is the same at each look."""
    if order == "pair":
        return sorted(items, key=lambda one: one.pair_id)
    sign = 1 if order == "uncertain" else -1
    return sorted(
        items,
        key=lambda one: (one.margin is None, sign * abs(one.margin or 0.0), one.pair_id),
    )


def winner_side(reviewer: str, pair: Pair) -> Side:
    """Where a blind reviewer sees the winner: by chance, but for this reviewer and these pictures
    always the same, so that a second look shows the same picture."""
    return "left" if stable_hash("side", reviewer, pair.id, judged_digest(pair)) % 2 else "right"


def blind_decision(pick: str, reviewer: str, pair: Pair) -> Decision:
    """A blind pick (left, right or neither) as a decision about the pair as it was built."""
    if pick == "neither":
        return "reject"
    if pick not in ("left", "right"):
        raise UserError(f"pick '{pick[:20]}': expected left, right or neither")
    return "accept" if pick == winner_side(reviewer, pair) else "swap"


def before_last(reviews: Sequence[Review], pair: Pair, reviewer: str) -> Decision | None:
    """What undo returns to: the reviewer's last but one decision, or `withdraw`; None when there
    is nothing to undo. `reviews` oldest first."""
    judged = judged_digest(pair)
    own = [
        one.decision
        for one in reviews
        if (one.pair_id, one.judged, one.reviewer) == (pair.id, judged, reviewer)
    ]
    if not own or own[-1] == "withdraw":
        return None
    return own[-2] if len(own) > 1 else "withdraw"
