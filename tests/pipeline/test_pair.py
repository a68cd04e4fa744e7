"""Every reason, the exact numbers in it, quotas, and the record of an accepted pair."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from focusdpo.data_schemas.candidates import (
    Described,
    Disrupted,
    Instance,
    Sampled,
    Scored,
    Screened,
)
from focusdpo.data_schemas.pairs import is_mixed, signs_of
from focusdpo.data_schemas.strict import key_values
from focusdpo.pipeline.audit import swapped
from focusdpo.pipeline.pair import pair
from focusdpo.pipeline.pairing.gates import PairConfig

ROOM = PairConfig(max_disrupt_per_scene=8, max_rank_per_scene=2)


class Bench:
    """Records of one scene of two subjects, put together number by number."""

    def __init__(self, world, toy):
        self.world, self.toy = world, toy
        self.scene = world.scene("red", "green")
        self.sampled, self.disrupted, self.instances, self.scored = [], [], [], []

    def sample(self, name, identity, *, found=("one", "one"), margin=(0.5, 0.5), **fields):
        at = len(self.sampled)
        self.sampled.append(
            Sampled(id=name, scene_id=self.scene.id, index=at, seed=at, image=f"generate/k/{name}")
        )
        for place, (subject, state) in enumerate(zip(self.scene.subject_ids, found, strict=True)):
            key = f"segment/k/{name}-{place}.png"
            mask = self.toy.slot_mask("disc", (at + place) % 3)
            self.world.images[key] = mask.astype(np.uint8) * 255
            self.instances.append(
                Instance(
                    candidate_id=name,
                    scene_id=self.scene.id,
                    subject_id=subject,
                    class_name=self.scene.class_names[place],
                    found=state,
                    box=None,
                    mask=None if state == "missing" else key,
                    confidence=1.0,
                    extra=2 if state == "duplicate" else 0,
                )
            )
        complete = found == ("one", "one")
        self._score(name, "sampled", identity, margin=margin, complete=complete, **fields)
        return self

    def disrupt(self, name, parent, identity, *, subjects=("red", "green"), mode="all", **fields):
        self.disrupted.append(
            Disrupted(
                id=name,
                scene_id=self.scene.id,
                parent_id=parent,
                mode=mode,
                subject_ids=subjects,
                seed=0,
                image=f"disrupt/k/{name}.png",
                prior=f"disrupt/k/{name}-prior.png",
            )
        )
        self._score(name, "disrupted", identity, **fields)
        return self

    def _score(self, name, kind, identity, **fields):
        numbers = {"margin": (0.5, 0.5), "clip_t": 0.3, "clip_i": (0.8, 0.8), "background": 0.0}
        a, b = identity
        numbers |= {"complete": True, "similarity": ((a, 0.0), (0.0, b))} | fields
        self.scored.append(
            Scored(
                candidate_id=name,
                scene_id=self.scene.id,
                kind=kind,
                similarity=numbers.pop("similarity"),
                identity=identity,
                leakage_margin=numbers.pop("margin"),
                **numbers,
            )
        )

    def pair(self, config=ROOM, screened=()):
        described = [
            Described(instance=i, caption=f"{i.class_name} at rest")
            for i in self.instances
            if i.mask is not None
        ]
        return pair(
            [self.scene],
            self.world.subjects,
            self.sampled,
            self.disrupted,
            self.instances,
            described,
            self.scored,
            self.world.read,
            config,
            "pair/k",
            reference="first",
            screened=screened,
        )


@pytest.fixture
def bench(world, toy):
    return Bench(world, toy)


def reasons(output, source):
    return [(r.candidate_id, r.reason, r.detail) for r in output.rejects if r.source == source]


def test_an_accepted_disruption(bench, world):
    bench.sample("c", (0.9, 0.8)).disrupt("d", "c", (0.5, 0.7), clip_t=0.28)
    output = bench.pair()
    (one,) = output.records
    assert (one.source, one.mode, one.win_id, one.lose_id) == ("disrupt", "all", "c", "d")
    assert (one.win_image, one.lose_image) == ("generate/k/c", "disrupt/k/d.png")
    assert one.masks == ("segment/k/c-0.png", "segment/k/c-1.png")
    assert one.prior == "disrupt/k/d-prior.png"
    assert one.margin == pytest.approx((0.4 + 0.1) / 2)
    assert one.win_identity == (0.9, 0.8) and one.lose_identity == (0.5, 0.7)
    assert one.captions == ("disc at rest", "square at rest")
    assert one.references == tuple(world.subjects[n].references[0] for n in ("red", "green"))
    assert one.partition == bench.scene.partition and one.prompt == bench.scene.prompt
    assert one.reason == (
        "identity 0.850 against 0.600 (margin 0.250), CLIP-T apart by 0.020, "
        "background change 0.00000"
    )
    assert output.images == {}


def test_a_drop_is_measured_on_the_repainted_subjects_alone(bench):
    bench.sample("c", (0.9, 0.8)).disrupt("d", "c", (0.9, 0.6), subjects=("green",), mode="subset")
    (one,) = bench.pair().records
    assert one.margin == pytest.approx(0.2)
    bench.disrupt("e", "c", (0.1, 0.8), subjects=("green",), mode="subset")
    output = bench.pair()
    assert [p.lose_id for p in output.records] == ["d"]
    assert reasons(output, "disrupt") == [("e", "no_identity_drop", "mean drop 0.000 < 0.080")]


@pytest.mark.parametrize(
    ("win", "lose", "changed", "reason", "detail"),
    [
        ((0.9, 0.4), (0.1, 0.1), {}, "weak_winner", "least identity 0.400 < 0.500"),
        ((0.9, 0.8), (0.88, 0.78), {}, "no_identity_drop", "mean drop 0.020 < 0.080"),
        ((0.9, 0.8), (0.5, 0.85), {}, "no_identity_drop", "least drop -0.050 < 0.000"),
        (
            (0.9, 0.8),
            (0.5, 0.5),
            {"clip_t": 0.2},
            "meaning_changed",
            "CLIP-T 0.300 against 0.200: 0.100 > 0.050",
        ),
        (
            (0.9, 0.8),
            (0.5, 0.5),
            {"background": 0.01},
            "background_changed",
            "change 0.01000 > 0.00100",
        ),
    ],
)
def test_reasons_of_disrupt(bench, win, lose, changed, reason, detail):
    output = bench.sample("c", win).disrupt("d", "c", lose, **changed).pair()
    assert output.records == []
    assert reasons(output, "disrupt") == [("d", reason, detail)]


def test_a_winner_that_leaks_is_weak_in_both_sources(bench):
    bench.sample("c", (0.9, 0.8), margin=(0.3, -0.1)).disrupt("d", "c", (0.1, 0.1))
    bench.sample("e", (0.6, 0.6), margin=(0.0, -0.2))
    output = bench.pair()
    why = ("weak_winner", "least leakage margin -0.100 < 0.000")
    assert reasons(output, "disrupt") == [("d", *why)]
    assert reasons(output, "rank") == [("e", *why)]


def test_incomplete_candidates_are_rejected_by_name(bench):
    bench.sample("m", (0.9, -1.0), found=("one", "missing"))
    bench.sample("t", (0.9, 0.9), found=("duplicate", "one"))
    output = bench.pair()
    assert reasons(output, "disrupt") == [
        ("m", "missing_subject", "1 of 2 subjects not found: green"),
        ("t", "duplicate_subject", "found more than once: red 3 times"),
    ]
    assert reasons(output, "rank") == [
        ("m", "too_few_candidates", "0 of 2 candidates show every subject once")
    ]


def test_the_widest_margins_are_kept_and_the_others_are_surplus(bench):
    bench.sample("c", (0.9, 0.9))
    for name, level in (("d1", 0.7), ("d2", 0.2), ("d3", 0.5)):
        bench.disrupt(name, "c", (level, level))
    output = bench.pair(replace_config(max_disrupt_per_scene=2))
    assert [p.lose_id for p in output.records] == ["d2", "d3"]
    assert reasons(output, "disrupt") == [
        ("d1", "surplus", "margin 0.200 is not among the 2 widest of 3")
    ]


def test_rank_sets_best_against_worst_with_the_union_of_their_masks(bench, toy):
    bench.sample("a", (0.7, 0.7)).sample("b", (0.95, 0.9)).sample("c", (0.5, 0.6))
    output = bench.pair(replace_config(max_rank_per_scene=1))
    (one,) = output.records
    assert (one.source, one.mode, one.win_id, one.lose_id) == ("rank", "rank", "b", "c")
    assert one.prior is None
    assert one.margin == pytest.approx(0.925 - 0.55)
    assert one.masks == (f"pair/k/{one.id}-0.png", f"pair/k/{one.id}-1.png")
    assert one.lose_image == "generate/k/c"
    for place, slots in enumerate([(1, 2), (2, 0)]):
        union = np.logical_or(*(toy.slot_mask("disc", slot) for slot in slots))
        np.testing.assert_array_equal(output.images[f"{one.id}-{place}.png"] == 255, union)


@pytest.mark.parametrize(
    ("best", "worst", "reason", "detail"),
    [
        ({}, {"identity": (0.85, 0.85)}, "small_margin", "identity gap 0.050 < 0.080"),
        ({"clip_i": (0.5, 0.5)}, {}, "small_margin", "CLIP-I disagrees: -0.300 < -0.020"),
        ({"margin": (0.1, 0.1)}, {}, "small_margin", "leakage margin disagrees: -0.400 < -0.020"),
        ({"clip_t": 0.4}, {}, "meaning_changed", "CLIP-T 0.400 against 0.300: 0.100 > 0.050"),
        ({"identity": (0.99, 0.45)}, {}, "weak_winner", "least identity 0.450 < 0.500"),
    ],
)
def test_reasons_of_rank(bench, best, worst, reason, detail):
    bench.sample("w", **({"identity": (0.9, 0.9)} | best))
    bench.sample("l", **({"identity": (0.6, 0.6)} | worst))
    output = bench.pair()
    assert output.records == []
    assert reasons(output, "rank") == [("l", reason, detail)]


def test_a_source_with_quota_zero_is_off(bench):
    bench.sample("a", (0.9, 0.9)).sample("b", (0.6, 0.6)).disrupt("d", "a", (0.2, 0.2))
    output = bench.pair(replace_config(max_rank_per_scene=0))
    assert [p.source for p in output.records] == ["disrupt"]
    output = bench.pair(replace_config(max_disrupt_per_scene=0))
    assert [p.source for p in output.records] == ["rank"]


def test_twice_is_the_same(bench):
    bench.sample("a", (0.9, 0.9)).sample("b", (0.6, 0.6)).disrupt("d", "a", (0.2, 0.2))
    first, second = bench.pair(), bench.pair()
    assert (first.records, first.rejects) == (second.records, second.rejects)
    assert len({p.id for p in first.records}) == len(first.records) == 2


def test_records_are_values(bench):
    bench.sample("c", (0.9, 0.8)).disrupt("d", "c", (0.5, 0.7))
    (one,) = bench.pair().records
    assert replace(one) == one and hash(one)


def replace_config(**fields):
    return PairConfig(**fields)


FAILURES = PairConfig(
    max_disrupt_per_scene=0, max_rank_per_scene=0, max_failure_per_scene=8, max_mixed_per_scene=8
)
TRADED = ((0.5, 0.9), (0.9, 0.5))


def mask_of(output, pair, name):
    return output.images[f"{pair.id}-{name}.png"] > 0


def test_a_right_candidate_wins_against_each_way_to_fail(bench):
    bench.sample("good", (0.9, 0.8))
    bench.sample("gone", (0.9, -1.0), found=("one", "missing"), similarity=((0.9, -1), (0.1, -1)))
    bench.sample("traded", (0.5, 0.5), similarity=TRADED)
    bench.world.images["segment/k/twice-0-extra.png"] = (
        bench.toy.slot_mask("square", 0).astype(np.uint8) * 255
    )
    bench.sample("twice", (0.9, 0.8), found=("duplicate", "one"))
    output = bench.pair(FAILURES.model_copy(update={"max_mixed_per_scene": 0}))
    found = {one.lose_id: one for one in output.records}
    assert {name: one.mode for name, one in found.items()} == {
        "gone": "same win", "traded": "win win", "twice": "win same",
    }  # fmt: skip
    assert {one.win_id for one in found.values()} == {"good"}
    gone, twice = found["gone"], found["twice"]
    # What is missing counts as evaluations count it, and the winner's place is all that is known.
    assert gone.lose_identity == (0.9, 0.0) and gone.margin == pytest.approx(0.8)
    place = np.asarray(bench.world.images["segment/k/good-1.png"]) > 0
    assert (mask_of(output, gone, "prior") == place).all()
    # The prior holds both copies; the other subject's place is no part of it.
    copies = [
        bench.world.images[f"segment/k/{name}.png"]
        for name in ("good-0", "twice-0", "twice-0-extra")
    ]
    assert (
        mask_of(output, twice, "prior") == np.logical_or.reduce([one > 0 for one in copies])
    ).all()
    assert "green is missing in the loser" in gone.reason
    assert "red stands there 3 times in the loser" in twice.reason
    assert "green has another's looks in the loser" in found["traded"].reason


def test_a_mixed_pair_has_a_sign_per_subject_and_turns_with_its_pictures(bench):
    bench.sample("a", (0.9, 0.5), similarity=((0.9, 0.6), (0.1, 0.5)))
    bench.sample("b", (0.5, 0.9), similarity=((0.5, 0.1), (0.6, 0.9)))
    (one,) = bench.pair(FAILURES).records
    assert (one.source, one.mode, one.margin) == ("failure", "win lose", pytest.approx(0.4))
    assert signs_of(one.source, one.mode, 2) == (1, -1) and is_mixed(one.source, one.mode)
    turned = swapped(one)
    assert turned.mode == "lose win" and swapped(turned) == one
    # Without mixed pairs neither picture is the better one.
    output = bench.pair(FAILURES.model_copy(update={"max_mixed_per_scene": 0}))
    assert output.records == []
    assert reasons(output, "failure")[0][1] == "no_right_candidate"


def test_what_is_refused_as_unsafe_is_in_no_pair_whoever_made_it(bench):
    """Neither a refused picture, nor a repaint of one, nor a refused repaint; each is a reject of
    its own, told once."""
    for name, identity in (("a", 0.9), ("b", 0.6), ("c", 0.8), ("d", 0.5)):
        bench.sample(name, (identity, identity))
    bench.disrupt("a-1", "a", (0.3, 0.3)).disrupt("c-1", "c", (0.3, 0.3))
    bench.disrupt("c-2", "c", (0.2, 0.2))

    def said(**unsafe):
        return [
            Screened(candidate_id=name, scene_id=bench.scene.id, unsafe=value, threshold=0.5,
                     refused=value >= 0.5)
            for name, value in unsafe.items()
        ]  # fmt: skip

    free = bench.pair()
    passed = bench.pair(screened=said(a=0.1, b=0.2))
    assert (passed.records, passed.rejects) == (free.records, free.rejects)
    ids = {one.win_id for one in free.records} | {one.lose_id for one in free.records}
    assert {"a", "a-1", "c", "c-1", "c-2", "d"} <= ids
    output = bench.pair(screened=[*said(a=0.91, c=0.1), *said(**{"c-2": 0.5})])
    assert {(one.win_id, one.lose_id) for one in output.records} == {("c", "c-1"), ("c", "d")}
    assert reasons(output, "disrupt") == [
        ("a", "unsafe_picture", "unsafe by 0.910 > 0.500"),
        ("c-2", "unsafe_picture", "unsafe by 0.500 > 0.500"),
    ]
    ranked = ROOM.model_copy(update={"max_disrupt_per_scene": 0})
    all_of_them = said(a=1, b=1, c=1, d=1)
    output = bench.pair(ranked, screened=all_of_them)
    assert output.records == [] and [why[1] for why in reasons(output, "rank")] == [
        *["unsafe_picture"] * 4,
        "too_few_candidates",
    ]


def test_a_scene_without_a_failure_says_so_and_the_quota_keeps_the_widest(bench):
    bench.sample("good", (0.9, 0.8)).sample("fine", (0.8, 0.8))
    assert reasons(bench.pair(FAILURES), "failure") == [
        ("good", "no_failed_candidate", "none of 2 candidates fails at a subject")
    ]
    bench.sample("gone", (0.9, -1.0), found=("one", "missing"), similarity=((0.9, -1), (0.1, -1)))
    bench.sample("traded", (0.5, 0.5), similarity=TRADED)
    bench.sample("wordless", (0.5, 0.5), similarity=TRADED, clip_t=0.4)
    one = FAILURES.model_copy(update={"max_failure_per_scene": 1})
    output = bench.pair(one)
    assert [pair.lose_id for pair in output.records] == ["gone"]
    names = {f"{output.records[0].id}-{name}.png" for name in (0, 1, "prior")}
    assert set(output.images) == names  # a pair that is dropped leaves no pictures
    assert [why[1] for why in reasons(output, "failure")] == ["meaning_changed", "surplus"]


def test_the_new_source_is_off_and_leaves_old_keys_as_they_are(bench):
    bench.sample("good", (0.9, 0.8)).sample("traded", (0.5, 0.5), similarity=TRADED)
    assert not [pair for pair in bench.pair().records if pair.source == "failure"]
    assert not reasons(bench.pair(), "failure")
    later = {"max_failure_per_scene", "max_mixed_per_scene"}
    assert set(key_values(PairConfig())) == set(PairConfig.model_fields) - later
    assert key_values(FAILURES)["max_failure_per_scene"] == 8
