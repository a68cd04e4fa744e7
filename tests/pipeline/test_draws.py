"""Few of very many sets: drawn by their members alone, at the asked rate, without asking all."""

from __future__ import annotations

import itertools
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from focusdpo.data_schemas.scenes import stable_hash
from focusdpo.pipeline.compose import DENSE, THINNING, num_sets, sparse_sets

NAMES = [f"s{i:04d}" for i in range(400)]
SIZES = st.sampled_from([2, 3])
RATES = st.floats(1e-4, DENSE)


def named(ids: list[str], size: int, rate: float, seed: int = 0) -> set[tuple[str, ...]]:
    ordered = sorted(ids)
    found = list(sparse_sets(ordered, size, rate, seed))
    assert len(set(found)) == len(found)
    assert all(list(places) == sorted(set(places)) for places in found)
    return {tuple(ordered[place] for place in places) for places in found}


@settings(max_examples=40, deadline=None)
@given(
    ids=st.lists(st.sampled_from(NAMES), min_size=1, max_size=150, unique=True),
    new=st.sampled_from(["a-new-one", "s0200x", "z-last"]),
    size=SIZES,
    rate=RATES,
    seed=st.integers(0, 3),
)
def test_a_new_name_adds_its_own_sets_and_changes_none(
    ids: list[str], new: str, size: int, rate: float, seed: int
) -> None:
    before = named(ids, size, rate, seed)
    after = named([*ids, new], size, rate, seed)
    assert {one for one in after if new not in one} == before


@settings(max_examples=20, deadline=None)
@given(size=SIZES, low=RATES, high=RATES)
def test_a_higher_rate_keeps_what_a_lower_one_drew(size: int, low: float, high: float) -> None:
    low, high = sorted((low, high))
    assert named(NAMES[:200], size, low) <= named(NAMES[:200], size, high)


@pytest.mark.parametrize(("size", "rate"), [(2, 0.01), (2, DENSE), (3, 3e-4), (3, 3e-3)])
def test_the_rate_is_the_share_of_all_sets(size: int, rate: float) -> None:
    counts = [len(named(NAMES[:300], size, rate, seed)) for seed in range(4)]
    assert sum(counts) / 4 == pytest.approx(rate * math.comb(300, size), rel=0.08)


def test_pairs_are_those_that_asking_every_pair_would_give() -> None:
    arc = THINNING * 0.01 * 2**64
    place = {name: stable_hash("place", "two", 5, name) for name in NAMES}
    asked = {
        pair
        for pair in itertools.combinations(NAMES, 2)
        if (place[pair[0]] + place[pair[1]]) % 2**64 < int(arc)
        and stable_hash("chosen", 5, *pair) < 2**64 // THINNING
    }
    assert named(NAMES, 2, 0.01, 5) == asked


def test_a_draw_from_a_billion_sets_takes_no_time() -> None:
    ids = [f"s{i:05d}" for i in range(2000)]  # 1.3e9 sets of three
    start = time.process_time()
    found = named(ids, 3, 5e-6)
    assert time.process_time() - start < 5
    assert len(found) == pytest.approx(5e-6 * math.comb(2000, 3), rel=0.1)


@settings(max_examples=40, deadline=None)
@given(classes=st.lists(st.sampled_from("abcd"), max_size=12), same=st.booleans(), size=SIZES)
def test_sets_are_counted_without_listing_them(classes: list[str], same: bool, size: int) -> None:
    listed = [one for one in itertools.combinations(classes, size) if same or len(set(one)) == size]
    assert num_sets(classes, size, same) == len(listed)
