"""Which sets of subjects are drawn when few of very many are wanted.

Whether a set is drawn is a function of its members alone, so a new subject changes no set that is
there. Each name has a place on a circle of 2**64; a set is a candidate when the sum of its
members' places falls into a short arc, and is drawn when one hash of the set agrees, too. Partners
with a sum in an arc lie side by side among sorted places, so candidates are found without asking
every set: a draw costs about four hashes, whatever the number of subjects.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from focusdpo.data_schemas.scenes import stable_hash

DENSE = 1 / 64
"""From this rate on, every set is asked by its own hash."""
THINNING = 4
"""Candidates per drawn set: without it, names that lie close would share all their partners."""

Places = NDArray[np.uint64]


def sparse_sets(ids: Sequence[str], size: int, rate: float, seed: int) -> Iterator[tuple[int, ...]]:
    """Positions in `ids` (sorted, unique) of the drawn sets of 2 or 3, each ascending and once.

    A share of `rate` (at most `DENSE`) of all sets; a higher rate draws these sets and more.
    """
    arc = THINNING * rate
    found = (
        _pairs(_places(ids, "two", seed), arc) if size == 2 else _triples(ids, math.sqrt(arc), seed)
    )
    for places in found:
        names = [ids[place] for place in places]
        if stable_hash("chosen", seed, *names) < 2**64 // THINNING:
            yield places


def num_sets(classes: Sequence[str], size: int, same_class: bool) -> int:
    """How many sets of 1, 2 or 3 there are, with unlike classes unless `same_class`."""
    if same_class:
        return math.comb(len(classes), size)
    counts = Counter(classes).values()
    # Elementary symmetric polynomials of the classes' counts, by Newton's identities.
    one, two, three = (sum(count**power for count in counts) for power in (1, 2, 3))
    return (one, (one**2 - two) // 2, (one**3 - 3 * one * two + 2 * three) // 6)[size - 1]


def _places(ids: Sequence[str], what: str, seed: int) -> Places:
    return np.array([stable_hash("place", what, seed, one) for one in ids], np.uint64)


def _pairs(places: Places, arc: float) -> Iterator[tuple[int, int]]:
    """Positions i < j whose places sum into [0, arc) of the circle."""
    order = np.argsort(places, kind="stable")
    around = places[order]
    for i, place in enumerate(places):
        for j in order[_inside(around, place, arc)]:
            if j > i:
                yield i, int(j)


def _triples(ids: Sequence[str], arc: float, seed: int) -> Iterator[tuple[int, int, int]]:
    """Positions i < j < k: the first two by one circle, all three by another."""
    thirds = _places(ids, "three", seed)
    order = np.argsort(thirds, kind="stable")
    around = thirds[order]
    with np.errstate(over="ignore"):
        for i, j in _pairs(_places(ids, "first two", seed), arc):
            for k in order[_inside(around, thirds[i] + thirds[j], arc)]:
                if k > j:
                    yield i, j, int(k)


def _inside(around: Places, place: np.uint64, arc: float) -> NDArray[np.intp]:
    """Indices into sorted places whose sum with `place` falls into [0, arc)."""
    start = -int(place) % 2**64
    stop = start + int(arc * 2**64)
    low = int(np.searchsorted(around, np.uint64(start)))
    if stop <= 2**64:
        high = len(around) if stop == 2**64 else int(np.searchsorted(around, np.uint64(stop)))
        return np.arange(low, high)
    high = int(np.searchsorted(around, np.uint64(stop - 2**64)))
    return np.concatenate([np.arange(low, len(around)), np.arange(high)])
