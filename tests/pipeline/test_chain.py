"""All stages of a partition in a row: real pairs come out, the same ones every time."""

from __future__ import annotations

import numpy as np
import pytest

from focusdpo.pipeline.complexity import complexity_map
from focusdpo.pipeline.describe import ClassNameCaptioner, DescribeConfig, describe
from focusdpo.pipeline.disrupt import DisruptConfig, disrupt
from focusdpo.pipeline.generate import GenerateConfig, generate
from focusdpo.pipeline.pair import pair
from focusdpo.pipeline.pairing.gates import PairConfig
from focusdpo.pipeline.score import ScoreConfig, score
from focusdpo.pipeline.segment import SegmentConfig, segment


def build(toy, world, names, faults=0.3):
    scenes = [world.scene(*names, variant=v) for v in range(4)]
    subjects = {name: world.subjects[name] for name in names}
    parts = toy.Generator(faults=faults), toy.Segmenter(), toy.Identity(), toy.Clip()
    painter, segmenter, identity, clip = parts
    made = GenerateConfig()
    sampled = world.keep(
        generate(scenes, subjects, world.read, painter, made, "generate/k"), "generate/k"
    )
    found = segment(
        scenes, subjects, sampled, world.read, segmenter, identity, SegmentConfig(), "segment/k"
    )
    instances = world.keep(found, "segment/k")
    described = describe(
        sampled, instances, world.read, ClassNameCaptioner(), DescribeConfig()
    ).records
    repainted = disrupt(
        scenes,
        subjects,
        sampled,
        described,
        world.read,
        painter,
        DisruptConfig(),
        "disrupt/k",
        reference=made.reference,
    )
    disrupted = world.keep(repainted, "disrupt/k")
    scored = score(
        scenes, subjects, sampled, disrupted, instances, world.read, identity, clip, ScoreConfig()
    ).records
    paired = pair(
        scenes,
        subjects,
        sampled,
        disrupted,
        instances,
        described,
        scored,
        world.read,
        PairConfig(rank_margin=0.01),
        "pair/k",
        reference=made.reference,
    )
    world.keep(paired, "pair/k")
    return sampled, instances, disrupted, paired


@pytest.mark.parametrize("names", [["green"], ["red", "green"], ["red", "blue", "green"]])
def test_pairs_and_rejects_account_for_everything(toy, world, names):
    sampled, instances, disrupted, paired = build(toy, world, names)
    assert len(instances) == len(names) * len(sampled)
    disrupt_pairs = [p for p in paired.records if p.source == "disrupt"]
    rejected = {r.candidate_id for r in paired.rejects if r.source == "disrupt"}
    # Every disruption is a pair or a reject; every sampled one without a disruption is a reject.
    assert {p.lose_id for p in disrupt_pairs} | rejected >= {d.id for d in disrupted}
    assert {p.lose_id for p in disrupt_pairs}.isdisjoint(rejected)
    undisrupted = {s.id for s in sampled} - {d.parent_id for d in disrupted}
    assert undisrupted <= rejected
    assert disrupt_pairs and undisrupted


@pytest.mark.parametrize("names", [["red", "green"]])
def test_every_key_of_a_pair_can_be_read_and_fits(toy, world, names):
    *_, paired = build(toy, world, names)
    for one in paired.records:
        win, lose = world.read(one.win_image), world.read(one.lose_image)
        masks = [world.read(key) for key in one.masks]
        prior = world.read(one.prior) if one.prior else np.maximum.reduce(masks)
        if one.source == "disrupt":
            np.testing.assert_array_equal(win[prior == 0], lose[prior == 0])
        assert one.margin > 0 and len(masks) == len(names)
        made = complexity_map(win, prior >= 128)
        assert (made[prior == 0] == 0).all()
        for reference in one.references:
            assert world.read(reference.image).ndim == 3 and world.read(reference.mask).ndim == 2


def test_the_same_world_gives_the_same_bytes(toy):
    def fresh():
        world = toy.World()
        for name, word, hue in [("red", "disc", 0), ("green", "square", 120)]:
            world.add_subject(name, word, hue)
        return world

    one, two = fresh(), fresh()
    first, second = build(toy, one, ["red", "green"]), build(toy, two, ["red", "green"])
    assert first[:3] == second[:3]
    assert first[3].records == second[3].records and first[3].rejects == second[3].rejects
    assert one.images.keys() == two.images.keys()
    for key, image in one.images.items():
        np.testing.assert_array_equal(image, two.images[key])
