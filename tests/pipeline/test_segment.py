"""One instance per subject; same words told apart by identity; missing and duplicates recorded."""

from __future__ import annotations

import numpy as np
import pytest

from focusdpo.data_schemas.candidates import Sampled
from focusdpo.pipeline.parts import Detection
from focusdpo.pipeline.segment import SegmentConfig, extra_key, overlap, segment, usable


def look(toy, world, names, *things_of_each, extras=False, **fields):
    """Segments one hand-painted candidate per item of `things_of_each`."""
    scene = world.scene(*names)
    sampled = []
    for at, things in enumerate(things_of_each):
        key = f"generate/k/c{at}.png"
        world.images[key] = toy.picture(things, seed=at)
        sampled.append(Sampled(id=f"c{at}", scene_id=scene.id, index=at, seed=at, image=key))
    output = segment(
        [scene],
        world.subjects,
        sampled,
        world.read,
        toy.Segmenter(),
        toy.Identity(),
        SegmentConfig(**fields),
        "segment/k",
        extras=extras,
    )
    world.keep(output, "segment/k")
    return output


def test_subjects_of_one_word_are_told_apart_by_identity(toy, world):
    output = look(
        toy,
        world,
        ["red", "blue"],
        [("disc", 240, 0), ("disc", 0, 2)],
        [("disc", 0, 1), ("disc", 240, 2)],
    )
    assert [(i.candidate_id, i.subject_id, i.found) for i in output.records] == [
        ("c0", "red", "one"),
        ("c0", "blue", "one"),
        ("c1", "red", "one"),
        ("c1", "blue", "one"),
    ]
    for instance, slot in zip(output.records, [2, 0, 1, 2], strict=True):
        mask = world.images[instance.mask] == 255
        np.testing.assert_array_equal(mask, toy.slot_mask("disc", slot))
        x0, y0, x1, y1 = instance.box
        assert mask[y0:y1, x0:x1].sum() == mask.sum()
        assert mask[y0].any() and mask[y1 - 1].any() and mask[:, x0].any() and mask[:, x1 - 1].any()


def test_a_subject_that_is_not_painted_is_missing(toy, world):
    output = look(toy, world, ["red", "green"], [("disc", 0, 0)])
    red, green = output.records
    assert red.found == "one"
    assert (green.found, green.mask, green.box, green.confidence) == ("missing", None, None, 0.0)
    assert set(output.images) == {"c0-0.png"}


def test_one_of_two_same_class_subjects_is_missing(toy, world):
    output = look(toy, world, ["red", "blue"], [("disc", 240, 1)])
    assert [i.found for i in output.records] == ["missing", "one"]


def test_a_subject_painted_twice_is_a_duplicate(toy, world):
    output = look(
        toy, world, ["red", "green"], [("disc", 0, 0), ("disc", 5, 1), ("square", 120, 2)]
    )
    assert [(i.found, i.extra) for i in output.records] == [("duplicate", 1), ("one", 0)]


def test_an_extra_counts_for_the_subject_it_looks_like(toy, world):
    things = [("disc", 0, 0), ("disc", 238, 1), ("disc", 240, 2)]
    output = look(toy, world, ["red", "blue"], things)
    assert [(i.found, i.extra) for i in output.records] == [("one", 0), ("duplicate", 1)]


def test_where_the_second_copy_stands_is_kept_when_it_is_asked_for(toy, world):
    things = [("disc", 0, 0), ("disc", 5, 1), ("square", 120, 2)]
    plain = look(toy, world, ["red", "green"], things)
    full = look(toy, world, ["red", "green"], things, extras=True)
    assert full.records == plain.records
    assert set(full.images) - set(plain.images) == {"c0-0-extra.png"}
    key = full.records[0].mask
    mask, extra = world.images[key], world.images[extra_key(key)]
    both = (mask > 0) | (extra > 0)
    np.testing.assert_array_equal(both, toy.slot_mask("disc", 0) | toy.slot_mask("disc", 1))
    assert not ((mask > 0) & (extra > 0)).any()


def test_batching_changes_nothing(toy, world):
    scenes = [[("disc", 240, a), ("disc", 0, b)] for a in range(3) for b in range(3) if a != b]
    whole = look(toy, world, ["red", "blue"], *scenes)
    parts = look(toy, world, ["red", "blue"], *scenes, batch=1)
    assert whole.records == parts.records


def detection(mask, confidence, word="disc"):
    return Detection(word, mask, (0, 0, 1, 1), confidence)


def test_thresholds_and_overlaps(toy):
    big, small = toy.shape_mask("square", 20, 20, radius=8), toy.shape_mask("square", 40, 40, 1)
    inside = toy.shape_mask("square", 20, 20, radius=5)
    config = SegmentConfig(min_confidence=0.5, min_area=0.01, max_overlap=0.6)
    assert usable([detection(big, 0.4)], config) == []
    assert usable([detection(small, 0.9)], config) == []
    best = detection(inside, 0.9, "square")
    assert usable([detection(big, 0.7), best], config) == [best]
    assert overlap(big, inside) == 1.0
    assert overlap(big, np.zeros_like(big)) == 0.0


@pytest.mark.parametrize("field", ["min_confidence", "min_area", "max_overlap"])
def test_shares_outside_0_to_1_are_refused(field):
    with pytest.raises(ValueError, match=field):
        SegmentConfig(**{field: 1.5})
