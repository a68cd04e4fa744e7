"""Repaints are exact: parent's pixels outside the prior, the new picture on the subjects."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from focusdpo.data_schemas.candidates import Sampled
from focusdpo.pipeline.describe import ClassNameCaptioner, DescribeConfig, describe
from focusdpo.pipeline.disrupt import (
    DisruptConfig,
    blend,
    choose_mode,
    choose_subset,
    choose_swap,
    disrupt,
    feather_alpha,
    grow,
    repaint_prompt,
)
from focusdpo.pipeline.segment import SegmentConfig, segment

MASKS = arrays(bool, (12, 14))
IMAGES = arrays(np.uint8, (12, 14, 3))
THINGS = {"red": ("disc", 0), "blue": ("disc", 240), "green": ("square", 120)}


def within(mask, pixels):
    """Brute force: which pixels lie at most `pixels` from some pixel of `mask`."""
    near = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]]
        near |= (rows - y) ** 2 + (columns - x) ** 2 <= pixels**2
    return near


@given(MASKS, MASKS, st.integers(0, 4))
def test_growing_is_all_pixels_within_reach_but_others(mask, keep, pixels):
    np.testing.assert_array_equal(grow(mask, pixels, keep), mask | (within(mask, pixels) & ~keep))


@given(MASKS, st.integers(0, 4), st.integers(0, 4))
def test_the_feather_lies_inside_the_region(mask, dilate, feather):
    region = grow(mask, dilate, np.zeros_like(mask))
    alpha = feather_alpha(region, mask, feather)
    np.testing.assert_array_equal(alpha > 0, region)
    assert (alpha[mask] == 1).all()
    assert alpha.max(initial=0) <= 1
    deep = region & ~within(~region, feather + 0.99)
    assert (alpha[deep] == 1).all()


@given(IMAGES, IMAGES, MASKS, st.integers(0, 3))
def test_paste_back_is_exact(new, old, mask, feather):
    region = grow(mask, feather, np.zeros_like(mask))
    alpha = feather_alpha(region, mask, feather)
    pasted = blend(new, old, alpha)
    assert pasted.dtype == np.uint8
    np.testing.assert_array_equal(pasted[~region], old[~region])
    np.testing.assert_array_equal(pasted[mask], new[mask])
    low, high = np.minimum(new, old), np.maximum(new, old)
    assert (pasted >= low).all() and (pasted <= high).all()
    np.testing.assert_array_equal(blend(old, old, alpha), old)


def test_the_pictures_border_is_no_edge():
    region = np.zeros((9, 9), bool)
    region[:, :6] = True
    alpha = feather_alpha(region, np.zeros_like(region), 2)
    np.testing.assert_allclose(alpha[0], [1, 1, 1, 1, 2 / 3, 1 / 3, 0, 0, 0], atol=1e-6)
    np.testing.assert_array_equal(alpha, np.repeat(alpha[:1], 9, axis=0))


def prepared(toy, world, names, count=8):
    """Scene, sampled candidates with exact masks, descriptions."""
    scene = world.scene(*names)
    sampled = []
    for at in range(count):
        things = [(*THINGS[name], slot) for slot, name in enumerate(names)]
        key = f"generate/k/c{at}.png"
        world.images[key] = toy.picture(things, seed=at)
        sampled.append(Sampled(id=f"c{at}", scene_id=scene.id, index=at, seed=at, image=key))
    found = segment(
        [scene],
        world.subjects,
        sampled,
        world.read,
        toy.Segmenter(),
        toy.Identity(),
        SegmentConfig(),
        "segment/k",
    )
    instances = world.keep(found, "segment/k")
    described = describe(
        sampled, instances, world.read, ClassNameCaptioner(), DescribeConfig()
    ).records
    return scene, sampled, instances, described


def run(toy, world, scene, sampled, described, **fields):
    return disrupt(
        [scene],
        world.subjects,
        sampled,
        described,
        world.read,
        toy.Generator(),
        DisruptConfig(**fields),
        "disrupt/k",
        reference="first",
    )


@pytest.mark.parametrize("names", [["red"], ["red", "green"], ["red", "blue", "green"]])
def test_background_and_untouched_subjects_are_the_parents_to_the_bit(toy, world, names):
    scene, sampled, instances, described = prepared(toy, world, names)
    output = run(toy, world, scene, sampled, described, attempts=3)
    assert len(output.records) == 3 * len(sampled)
    masks = {(i.candidate_id, i.subject_id): world.images[i.mask] > 0 for i in instances}
    parents = {one.id: world.images[one.image] for one in sampled}
    for record in output.records:
        assert record.image == f"disrupt/k/{record.id}.png"
        made, prior = output.images[f"{record.id}.png"], output.images[f"{record.id}-prior.png"]
        assert set(np.unique(prior)) <= {0, 255}
        parent = parents[record.parent_id]
        np.testing.assert_array_equal(made[prior == 0], parent[prior == 0])
        for name in names:
            mask = masks[record.parent_id, name]
            if name in record.subject_ids:
                assert (prior[mask] == 255).all()
                assert not np.array_equal(made[mask], parent[mask])
            else:
                assert (prior[mask] == 0).all()
        union = np.logical_or.reduce([masks[record.parent_id, n] for n in record.subject_ids])
        assert not (prior > 0)[~within(union, 3)].any()


def test_a_swap_paints_each_place_from_the_others_reference(toy, world):
    scene, sampled, instances, described = prepared(toy, world, ["red", "green"])
    output = run(
        toy, world, scene, sampled, described, weight_all=1e-9, weight_subset=0, weight_swap=1
    )
    for record in output.records:
        assert record.mode == "swap"
        assert record.subject_ids == ("red", "green")
        made = output.images[f"{record.id}.png"]
        own = {i.subject_id: i for i in instances if i.candidate_id == record.parent_id}
        for name, hue in (("red", 120), ("green", 0)):
            mask = world.images[own[name].mask] > 0
            np.testing.assert_array_equal(np.unique(made[mask], axis=0), [toy.colour_of(hue)])


def test_only_candidates_with_every_subject_once_are_disrupted(toy, world):
    scene, sampled, _, described = prepared(toy, world, ["red", "green"], count=3)
    lacking = [d for d in described if d.instance.candidate_id != "c1"] + [
        d for d in described if d.instance.candidate_id == "c1" and d.instance.subject_id == "red"
    ]
    output = run(toy, world, scene, sampled, lacking)
    assert [r.parent_id for r in output.records] == ["c0", "c2"]


def test_bytes_depend_on_the_candidate_and_not_on_its_company(toy, world):
    scene, sampled, _, described = prepared(toy, world, ["red", "green"])
    whole = run(toy, world, scene, sampled, described)
    alone = run(toy, world, scene, sampled[3:4], described)
    parts = run(toy, world, scene, sampled, described, batch=1)
    assert whole.records == parts.records
    assert alone.records == [r for r in whole.records if r.parent_id == "c3"]
    for name, image in (parts.images | alone.images).items():
        np.testing.assert_array_equal(image, whole.images[name])


def test_modes_come_in_proportion_to_their_weights():
    config = DisruptConfig(weight_all=0.5, weight_subset=0.2, weight_swap=0.3)
    counts = Counter(choose_mode(str(n), config.weights(2)) for n in range(4000))
    for mode, weight in config.weights(2).items():
        assert counts[mode] / 4000 == pytest.approx(weight, abs=0.03)
    assert config.weights(1) == {"all": 1.0}
    only = DisruptConfig(weight_subset=0, weight_swap=0)
    assert {choose_mode(str(n), only.weights(3)) for n in range(50)} == {"all"}


@pytest.mark.parametrize("count", [2, 3])
def test_subsets_are_proper_and_swaps_leave_nobody(count):
    subsets = {choose_subset(str(n), count) for n in range(300)}
    assert len(subsets) == 2**count - 2
    assert all(0 < len(s) < count and list(s) == sorted(s) for s in subsets)
    swaps = {choose_swap(str(n), count) for n in range(300)}
    assert len(swaps) == count - 1
    for swap in swaps:
        assert sorted(swap) == list(range(count))
        assert all(place != donor for place, donor in enumerate(swap))


def test_the_prompt_takes_the_captions(world):
    scene = world.scene("red", "green")
    assert repaint_prompt(scene, ["disc", "square"]) == scene.prompt
    assert repaint_prompt(scene, ["big disc", "square at rest"]) == (
        "a big disc and a square at rest on grey"
    )
    assert repaint_prompt(world.scene("red", "blue"), ["disc", "tiny disc"]) == (
        "a disc and a tiny disc on grey"
    )


def test_a_feather_wider_than_the_dilation_is_refused():
    with pytest.raises(ValueError, match="feather is 4 px, at most dilate"):
        DisruptConfig(dilate=3, feather=4)
