"""Reviews: no decision is lost, what they come to is one rule, figures are the textbook's."""

from __future__ import annotations

import datetime
import itertools
import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kept_root
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from stored_pairs import flat_complexity, put_pairs, put_subjects

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.pairs import DECISIONS, Decision, Pair, Review
from focusdpo.pipeline import review_stats
from focusdpo.pipeline.audit import (
    FOLDER,
    Audit,
    Ruling,
    is_swapped,
    judged_digest,
    original_id,
    standing,
    swapped,
    verdict_of,
    verdicts,
)
from focusdpo.pipeline.shard import load_images
from focusdpo.pipeline.upkeep.garbage import collect
from focusdpo.pipeline.upkeep.purge import purge
from focusdpo.store.artefacts import Store

NOON = datetime.datetime(2026, 11, 28, 12, tzinfo=datetime.UTC)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "root")


@pytest.fixture
def pairs(store: Store) -> list[Pair]:
    """One of each source."""
    return put_pairs(store, put_subjects(store, 2), 2, partition="p")[0]


def said(
    pair: str,
    reviewer: str,
    decision: Decision,
    minute: int,
    margin: float = 0.1,
) -> Review:
    return Review(
        id=f"{minute:032x}", pair_id=pair, judged="j", partition="p", subject_ids=("s",),
        source="rank", margin=margin, decision=decision, reviewer=reviewer,
        when=(NOON + datetime.timedelta(minutes=minute)).isoformat(timespec="microseconds"),
    )  # fmt: skip


def test_what_is_recorded_is_read_by_another(store: Store, pairs: list[Pair]) -> None:
    audit = Audit(store)
    made = audit.record(pairs[0], "reject", "Ada", reason=" tail  is\ncut ", blind=True, now=NOON)
    assert (made.reason, made.reviewer, made.blind) == ("tail is cut", "Ada", True)
    assert made.when == "2026-11-28T12:00:00.000000+00:00"
    assert Audit(Store.open(store.root)).reviews() == audit.reviews() == [made]


def test_a_later_decision_is_later_though_the_clock_went_back(
    store: Store, pairs: list[Pair]
) -> None:
    audit = Audit(store)
    audit.record(pairs[0], "reject", "Ada", now=NOON)
    audit.record(pairs[0], "accept", "Ada", now=NOON - datetime.timedelta(hours=1))
    assert [one.decision for one in audit.reviews()] == ["reject", "accept"]
    assert list(verdicts(audit.reviews()).values()) == ["accepted"]


@pytest.mark.parametrize("name", ["", "   ", "a" * 65, "a\nb", "\u202eevil", "a\x00"])
def test_a_name_that_cannot_be_shown_is_refused(store: Store, pairs: list[Pair], name: str) -> None:
    with pytest.raises(UserError, match="reviewer"):
        Audit(store).record(pairs[0], "accept", name)
    assert not store.files.names(FOLDER)


def test_reasons_have_limits(store: Store, pairs: list[Pair]) -> None:
    for reason, what in (("x" * 1001, "1001 characters"), ("a\x1bb", "control")):
        with pytest.raises(UserError, match=what):
            Audit(store).record(pairs[0], "reject", "Ada", reason=reason)


def test_a_damaged_review_is_named_not_passed_over(store: Store, pairs: list[Pair]) -> None:
    Audit(store).record(pairs[0], "accept", "Ada")
    (path,) = store.files.listing(FOLDER)
    store.files.write(f"{FOLDER}/{path}", b'{"decision": "maybe"}')
    with pytest.raises(UserError, match=path.rpartition("/")[2].partition(".")[0]):
        Audit(store).reviews()


WRITER = """
import sys
from focusdpo.data_schemas.pairs import Pair
from focusdpo.pipeline.audit import Audit
from focusdpo.store.artefacts import Store
root, name = sys.argv[1:3]
store = Store.open(root)
(key,) = store.keys("pair")
pairs = store.read("pair", key, Pair)
audit = Audit(store)
print("ready", flush=True); sys.stdin.readline()
for turn in range(40):
    audit.record(pairs[turn % 2], ("accept", "reject", "swap")[turn % 3], name)
"""


def test_two_reviewers_at_once_lose_no_decision(store: Store, pairs: list[Pair]) -> None:
    command = [sys.executable, "-c", WRITER, str(store.root)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([*command, name], **pipes) for name in ("Ada", "Grace")]  # type: ignore[call-overload]
    for one in both:
        assert one.stdout.readline() == "ready\n"
    for one in both:
        one.stdin.write("go\n")
        one.stdin.flush()
    assert [one.wait(60) for one in both] == [0, 0]
    found = Audit(store).reviews()
    assert Counter(one.reviewer for one in found) == {"Ada": 40, "Grace": 40}
    for name in ("Ada", "Grace"):
        mine = [one.decision for one in found if one.reviewer == name]
        assert mine == [("accept", "reject", "swap")[turn % 3] for turn in range(40)]
    counted = standing(found)
    assert sum(len(by) for by in counted.values()) == 4


@pytest.mark.parametrize(
    ("votes", "verdict"),
    [
        ([], None),
        (["withdraw"], None),
        (["accept"], "accepted"),
        (["swap"], "swapped"),
        (["accept", "reject"], "contested"),
        (["accept", "swap"], "contested"),
        (["accept", "reject", "swap"], "contested"),
        (["accept", "reject", "reject"], "rejected"),
        (["swap", "swap", "accept", "reject"], "swapped"),
        (["accept", "withdraw"], "accepted"),
    ],
)
def test_the_rule(votes: list[Decision], verdict: str | None) -> None:
    assert verdict_of(votes) == verdict


HISTORIES = st.lists(
    st.tuples(st.sampled_from("xyz"), st.sampled_from(["Ada", "Grace", "Edsger"]),
              st.sampled_from(DECISIONS)),
    max_size=30,
)  # fmt: skip


@given(HISTORIES, st.randoms())
def test_what_counts_does_not_depend_on_the_order_of_reading(history, random) -> None:
    reviews = [said(pair, name, what, i) for i, (pair, name, what) in enumerate(history)]
    wanted = {}
    for pair in "xyz":
        last = {name: what for p, name, what in history if p == pair}
        votes = Counter(what for what in last.values() if what != "withdraw")
        best = [what for what, count in votes.items() if count == max(votes.values())]
        if best:
            names = {"accept": "accepted", "reject": "rejected", "swap": "swapped"}
            wanted[pair, "j"] = names[best[0]] if len(best) == 1 else "contested"
    random.shuffle(reviews)
    assert verdicts(reviews) == wanted
    ruling = Ruling.of(sorted(reviews, key=lambda one: one.id))
    assert ruling.changes == {one: v for one, v in wanted.items() if v != "accepted"}
    assert sum(map(len, ruling.partitions.values())) == len(ruling.changes)


def test_a_swap_exchanges_all_that_belongs_to_a_side(store: Store, pairs: list[Pair]) -> None:
    for pair in pairs:
        other = swapped(pair)
        assert other.id != pair.id and is_swapped(other.id) and original_id(other.id) == pair.id
        assert other.win_image == pair.lose_image and other.lose_id == pair.win_id
        assert other.win_identity == pair.lose_identity and other.margin == -pair.margin
        assert judged_digest(other) == judged_digest(pair)
        as_built, turned = (load_images(store, one, flat_complexity) for one in (pair, other))
        np.testing.assert_array_equal(turned.win, as_built.lose)
        np.testing.assert_array_equal(turned.prior, as_built.prior)
        np.testing.assert_array_equal(turned.complexity, as_built.lose_complexity)
        assert swapped(other) == pair


def test_decisions_hold_for_the_pictures_that_were_judged(store: Store, pairs: list[Pair]) -> None:
    audit = Audit(store)
    audit.record(pairs[0], "reject", "Ada")
    audit.record(pairs[1], "swap", "Ada")
    ruling = Ruling.of(audit.reviews())
    kept, changed = ruling.apply(pairs)
    assert [one.id for one in kept] == [swapped(pairs[1]).id]
    assert [one.verdict for one in changed] == ["rejected", "swapped"]
    import dataclasses

    repainted = [dataclasses.replace(one, lose_image=one.masks[0]) for one in pairs]
    assert ruling.apply(repainted) == (repainted, [])


LABELS = st.sampled_from(["accept", "reject", "swap"])


@given(st.lists(st.tuples(LABELS, LABELS), min_size=1, max_size=40))
def test_kappa_is_that_of_the_confusion_matrix(labels: list[tuple[str, str]]) -> None:
    table = np.zeros((3, 3))
    order = ["accept", "reject", "swap"]
    for a, b in labels:
        table[order.index(a), order.index(b)] += 1
    table /= table.sum()
    by_chance = table.sum(axis=0) @ table.sum(axis=1)
    found = review_stats.cohen_kappa(labels)
    if math.isclose(by_chance, 1.0):
        assert found is None
    else:
        assert found == pytest.approx((np.trace(table) - by_chance) / (1 - by_chance), abs=1e-9)


@given(st.lists(st.lists(LABELS, max_size=5), max_size=20))
def test_alpha_is_that_of_the_coincidence_matrix(units: list[list[str]]) -> None:
    """Krippendorff (2011), by summing every ordered two values of a unit."""
    coincidences: Counter[tuple[str, str]] = Counter()
    for unit in units:
        for a, b in itertools.permutations(range(len(unit)), 2):
            coincidences[unit[a], unit[b]] += 1 / (len(unit) - 1)  # type: ignore[assignment]
    n_c: Counter[str] = Counter()
    for (a, _), value in coincidences.items():
        n_c[a] += value
    n = sum(n_c.values())
    observed = sum(value for (a, b), value in coincidences.items() if a != b)
    expected = sum(n_c[a] * n_c[b] for a, b in itertools.permutations(n_c, 2))
    found = review_stats.krippendorff_alpha(units)
    if expected == 0:
        assert found is None
    else:
        assert found == pytest.approx(1 - (n - 1) * observed / expected, abs=1e-9)


def test_alpha_of_a_published_example() -> None:
    """Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section C: 0.743."""
    rows = ["1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3",
            ". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 ."]  # fmt: skip
    columns = zip(*(row.split() for row in rows), strict=True)
    units = [[value for value in column if value != "."] for column in columns]
    assert review_stats.krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)


@given(st.lists(st.tuples(LABELS, st.floats(-1, 1).map(lambda x: round(x, 1))), max_size=30))
def test_rank_correlation_is_spearmans(rows: list[tuple[Decision, float]]) -> None:
    reviews = [
        said(f"p{i}", "Ada", what, i, margin=margin) for i, (what, margin) in enumerate(rows)
    ]
    told = review_stats.statistics(reviews).scorers
    values = [{"accept": 1, "reject": 0, "swap": -1}[what] for what, _ in rows]
    margins = [margin for _, margin in rows]
    if len(set(values)) < 2 or len(set(margins)) < 2:
        assert told.rank_correlation is None
    else:
        assert told.rank_correlation == pytest.approx(spearmanr(values, margins)[0], abs=1e-9)


@settings(max_examples=60)
@given(st.integers(0, 40), st.integers(0, 40))
def test_the_interval_holds_what_a_score_test_does_not_refuse(hits: int, misses: int) -> None:
    total = hits + misses
    low, high = review_stats.wilson(hits, total)
    if not total:
        assert (low, high) == (None, None)
        return
    assert low is not None and high is not None and 0 <= low <= hits / total <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            z = (hits / total - end) / math.sqrt(end * (1 - end) / total)
            assert abs(z) == pytest.approx(1.95996, abs=1e-4)


def test_statistics_of_a_small_audit() -> None:
    reviews = [
        said("x", "Ada", "accept", 0), said("x", "Grace", "accept", 1),
        said("y", "Ada", "accept", 2), said("y", "Grace", "swap", 3),
        said("z", "Ada", "accept", 4), said("z", "Ada", "reject", 5),
    ]  # fmt: skip
    told = review_stats.statistics(reviews)
    assert (told.decisions, told.pairs, told.several, told.agreement) == (6, 3, 2, 0.5)
    assert told.verdicts == {"accepted": 1, "contested": 1, "rejected": 1}
    assert told.reviewers == {"Ada": {"accept": 2, "reject": 1}, "Grace": {"accept": 1, "swap": 1}}
    assert (told.scorers.prefer_winner, told.scorers.neither, told.scorers.share) == (3, 1, 0.75)
    assert told.scorers_blind.decisions == 0 and told.scorers_blind.share is None
    assert json.loads(json.dumps(told.as_dict()))["between"][0]["a"] == "Ada"


def audited(store: Store, subjects: Sequence[str]) -> list[Pair]:
    """A root with a version and a decision about each of its pairs."""
    kept_root.register(store, *subjects)
    version = kept_root.build(store)
    pairs = [version.read(row).pair for row in version.rows]
    audit = Audit(store)
    for pair in pairs:
        audit.record(pair, "reject", "Ada", reason="of no use")
    return pairs


def test_a_purged_subjects_reviews_go_and_no_others(store: Store) -> None:
    pairs = audited(store, ["ant", "owl"])  # ids are hexadecimal and may hold "bee" by chance
    purge(store, ["owl"])
    left = Audit(store).reviews()
    assert {one.pair_id for one in left} == {
        one.id for one in pairs if "owl" not in one.subject_ids
    }
    assert left and not kept_root.files_with(Path(str(store.root)) / FOLDER, b"owl")


def test_gc_keeps_the_audit(store: Store) -> None:
    audited(store, ["ant"])
    kept_root.build(store, setting=1)
    before = Audit(store).reviews()
    collect(store, keep_versions=1, min_age=0)
    assert before and Audit(store).reviews() == before


def test_reviews_on_an_object_store() -> None:
    """One PUT each, so writers at once lose nothing; reading asks for many at a time."""
    store = Store.open("memory://reviews/root")
    pairs = put_pairs(store, put_subjects(store, 2), 2, partition="p")[0]

    def review(name: str) -> None:
        audit = Audit(Store.open("memory://reviews/root", create=False))
        for turn in range(10):
            audit.record(pairs[turn % 2], ("accept", "reject")[turn % 2], name)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(review, ["Ada", "Grace", "Edsger", "Barbara"]))
    found = Audit(store).reviews()
    assert Counter(one.reviewer for one in found) == dict.fromkeys(
        ["Ada", "Grace", "Edsger", "Barbara"], 10
    )
    assert set(verdicts(found).values()) == {"accepted", "rejected"}
