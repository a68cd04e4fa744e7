"""What there is to review, in which order, and what a reviewer sees of it.

Every pair of a version and every pair that reviews have left out of it is in the queue, always as
it was built: decisions are about that, whichever side a version shows as its winner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.pairs import Decision, Pair, Review, Verdict
from focusdpo.data_schemas.scenes import stable_hash
from focusdpo.pipeline.audit import (
    Judged,
    is_swapped,
    judged_digest,
    original_id,
    standing,
    swapped,
    verdict_of,
)
from focusdpo.store.manifests import reviewed_of
from focusdpo.store.samples import read_fields
from focusdpo.studio.columns import Wanted
from focusdpo.studio.version_reading import Dataset

Show = Literal["open", "mine", "disputed", "all"]
Order = Literal["uncertain", "certain", "pair"]
Side = Literal["left", "right"]
SHOWS: tuple[Show, ...] = get_args(Show)
ORDERS: tuple[Order, ...] = get_args(Order)
Places = NDArray[np.bool_]
"""(N,): which pairs of the version."""
Held = Mapping[str, Mapping[str, Review]]
"""Pair -> reviewer -> the decision that counts."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """A pair in the queue."""

    pair_id: str
    """As it was built."""
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
    low: float | None = None
    high: float | None = None
    """Margins as the pairs were built, both included."""


@dataclass(frozen=True, kw_only=True)
class Count:
    """How far a reviewer has come with what the filter lets through."""

    decided: int
    total: int


IN_INDEX: Mapping[Verdict | None, str] = {
    None: "kept",
    "accepted": "kept",
    "swapped": "exchanged",
    "rejected": "out",
    "contested": "out",
}
"""What the next build makes of a pair."""


class Queue:
    """The pairs of one version. Its columns are those of the other pages; what reviews have left
    out, a few beside a whole dataset, is kept as items."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._columns = dataset.pairs
        ids: list[str] = self._columns.table["pair_id"].to_pylist()
        turned = np.array([is_swapped(name) for name in ids], np.bool_)
        self._ids = [original_id(name) for name in ids]
        self._margins = np.where(turned, -self._columns.margin, self._columns.margin)
        self._places = {name: at for at, name in enumerate(self._ids)}
        # Ties by id, as the index is written, so that the order is the same at each look.
        self._ordered = {
            "uncertain": np.argsort(np.abs(self._margins), kind="stable"),
            "certain": np.argsort(-np.abs(self._margins), kind="stable"),
            "pair": np.arange(len(ids)),
        }
        self._left_out = {
            pair.pair_id: pair
            for pair in reviewed_of(dataset.store, dataset.id)
            if pair.pair_id not in self._places
        }

    @property
    def subjects(self) -> list[str]:
        """Everybody in it."""
        names = set(self._columns.subjects.names)
        return sorted(names.union(*(pair.subject_ids for pair in self._left_out.values())))

    def __contains__(self, pair_id: str) -> bool:
        return pair_id in self._places or pair_id in self._left_out

    def items(
        self, reviews: Sequence[Review], reviewer: str, chosen: Filter, most: int
    ) -> tuple[list[Item], int, Count]:
        """The first `most` items that pass, how many pass, and how far the reviewer is with all
        that the subject and source let through."""
        held = _by_pair(standing(reviews))
        inside = self._inside(chosen)
        out = [item for item in self._out(held, reviewer) if _is_of(item, chosen)]
        mine = [name for name, by in held.items() if reviewer in by]
        decided = sum(self._is_inside(name, inside) for name in mine)
        decided += sum(item.mine is not None for item in out)
        count = Count(decided=decided, total=int(inside.sum()) + len(out))
        shown = self._shown(inside, held, mine, chosen.show)
        order = self._ordered[chosen.order]
        passing = order[shown[order]]
        items = list(self._items(passing[:most], held, reviewer))
        more = [item for item in out if _shows(item, chosen.show)]
        return (
            sorted([*items, *more], key=_key(chosen.order))[:most],
            len(passing) + len(more),
            count,
        )

    def waiting(self, reviews: Sequence[Review]) -> int:
        """How many reviews, made since the version was, would change it in the next build: their
        pair is to be left out, exchanged or kept, and is not so in the version."""
        created = str(self._dataset.manifest["created"])
        latest: dict[str, list[Review]] = {}
        for review in reviews:
            latest.setdefault(review.pair_id, []).append(review)
        held = _by_pair(standing(reviews))
        count = 0
        for name, pair_reviews in latest.items():
            newer = {review.reviewer for review in pair_reviews if review.when > created}
            if newer and self._state(name) != IN_INDEX[_verdict(held.get(name, {}))]:
                count += len(newer)
        return count

    def _state(self, pair_id: str) -> str | None:
        """How the version shows a pair as it was built: kept, exchanged or out; None when it has
        none of that name."""
        if pair_id in self._left_out:
            return "out"
        place = self._places.get(pair_id)
        if place is None:
            return None
        return "exchanged" if is_swapped(self._columns.row(place).pair_id) else "kept"

    def pair(self, pair_id: str) -> Pair:
        """A pair as it was built. UserError when the version has none of that id."""
        place = self._places.get(pair_id)
        if place is not None:
            row = self._columns.row(place)
            # the shard's copy of the record, where the artefact that made it is gone
            pair = self._dataset.pair(row) or self._dataset.sample(row.pair_id).pair
            return swapped(pair) if is_swapped(pair.id) else pair
        if pair_id in self._left_out:
            for pair in self._dataset.records(self._left_out[pair_id].partition).pairs:
                if pair.id == pair_id:
                    return pair
        raise UserError(
            f"version {self._dataset.id} shows no pair of this name; load the page again"
        )

    def picture(self, pair: Pair, what: str) -> bytes | None:
        """PNG bytes of a pair's picture, as it was built: win, lose or ref0, ref1, ...; None for
        anything else. From its shard, which is there as long as the version."""
        keys = {"win": pair.win_image, "lose": pair.lose_image}
        keys |= {f"ref{at}": reference.image for at, reference in enumerate(pair.references)}
        if what not in keys:
            return None
        if pair.id not in self._places:
            return self._dataset.store.image_bytes(keys[what])
        row = self._columns.row(self._places[pair.id])
        if is_swapped(row.pair_id):
            what = {"win": "lose", "lose": "win"}.get(what, what)
        return read_fields(self._dataset.store, row)[f"{what}.png"]

    def _inside(self, chosen: Filter) -> Places:
        wanted = Wanted(subject=chosen.subject, source=chosen.source)
        inside = np.zeros(len(self._ids), np.bool_)
        inside[self._columns.select(wanted)] = True
        if chosen.low is not None:
            inside &= self._margins >= chosen.low
        if chosen.high is not None:
            inside &= self._margins <= chosen.high
        return inside

    def _is_inside(self, pair_id: str, inside: Places) -> bool:
        place = self._places.get(pair_id)
        return place is not None and bool(inside[place])

    def _shown(self, inside: Places, held: Held, mine: Sequence[str], show: Show) -> Places:
        """Which of the pairs inside the filter are shown."""
        named = np.zeros(len(self._ids), np.bool_)
        names = (
            mine
            if show != "disputed"
            else [name for name, by in held.items() if _verdict(by) == "contested"]
        )
        named[[self._places[name] for name in names if name in self._places]] = True
        if show == "all":
            return inside
        return inside & ~named if show == "open" else inside & named

    def _items(self, places: NDArray[np.int64], held: Held, reviewer: str) -> Iterator[Item]:
        for at, row in zip(places, self._columns.rows(places), strict=True):
            margin = float(self._margins[at])
            yield _item(self._ids[at], row.subject_ids, row.source, margin, held, reviewer)

    def _out(self, held: Held, reviewer: str) -> Iterator[Item]:
        for name, pair in self._left_out.items():
            by = held.get(name, {})
            source = next((review.source for review in by.values()), "")
            margin = next((review.margin for review in by.values()), None)
            yield _item(name, pair.subject_ids, source, margin, held, reviewer)


def _item(
    name: str,
    subject_ids: tuple[str, ...],
    source: str,
    margin: float | None,
    held: Held,
    reviewer: str,
) -> Item:
    by = held.get(name, {})
    mine = by.get(reviewer)
    return Item(
        pair_id=name,
        subject_ids=subject_ids,
        source=source,
        margin=margin,
        mine=mine.decision if mine else None,
        others=len(by) - (mine is not None),
        verdict=_verdict(by),
    )


def _verdict(by: Mapping[str, Review]) -> Verdict | None:
    return verdict_of(review.decision for review in by.values())


def _by_pair(held: Mapping[Judged, Mapping[str, Review]]) -> Held:
    """The decisions about the pictures judged last: an index row does not say which it has."""
    latest_of: dict[str, Mapping[str, Review]] = {}
    latest: dict[str, str] = {}
    for (pair, _), by in held.items():
        when = max(review.when for review in by.values())
        if when > latest.get(pair, ""):
            latest_of[pair], latest[pair] = by, when
    return latest_of


def _is_of(item: Item, chosen: Filter) -> bool:
    return (
        chosen.subject in ("", *item.subject_ids)
        and chosen.source in ("", item.source)
        and (chosen.low is None or (item.margin is not None and item.margin >= chosen.low))
        and (chosen.high is None or (item.margin is not None and item.margin <= chosen.high))
    )


def _shows(item: Item, show: Show) -> bool:
    if show == "open":
        return item.mine is None
    if show == "mine":
        return item.mine is not None
    return item.verdict == "contested" if show == "disputed" else True


def _key(order: Order) -> Callable[[Item], tuple[bool, float, str]]:
    """The scorers are least certain where the margin is small."""
    if order == "pair":
        return lambda item: (False, 0.0, item.pair_id)
    sign = 1 if order == "uncertain" else -1
    return lambda item: (item.margin is None, sign * abs(item.margin or 0.0), item.pair_id)


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
    decisions = [
        review.decision
        for review in reviews
        if (review.pair_id, review.judged, review.reviewer) == (pair.id, judged, reviewer)
    ]
    if not decisions or decisions[-1] == "withdraw":
        return None
    return decisions[-2] if len(decisions) > 1 else "withdraw"
