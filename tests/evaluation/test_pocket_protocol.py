"""Protocol pocket on a toy world: the judge's pixels, not answers made up."""

from __future__ import annotations

import math

import numpy as np
import pytest

from focusdpo.evaluation.comparison import rows
from focusdpo.evaluation.pocket_protocol import EvaluateConfig, measure, paint_scenes

CONFIG = EvaluateConfig(resamples=200)


def look(toy, world, subjects, things, config=CONFIG, **fields):
    scene = world.scene(*subjects)
    references = {name: world.shown(name) for name in world.subjects}
    pictures = [toy.picture(things)]
    (one,) = measure("base", [scene], pictures, references, toy.Judge(), config, **fields)
    return one


def test_a_faithful_picture(toy, world):
    one = look(toy, world, ["red", "green"], [("disc", 0, 2), ("square", 120, 0)], names=["x.png"])
    assert one.identity == pytest.approx(1, abs=1e-4)
    assert one.leakage_margin > 0.5
    assert (one.confusion, one.missing, one.duplicate, one.class_recognition) == (0, 0, 0, 1)
    assert one.hue_error < 2
    assert one.pattern_error == pytest.approx(0, abs=1e-6), "flat bodies"
    assert one.scr_60 == 0
    assert one.boxes == ((34, 19, 45, 30), (4, 19, 15, 30))
    assert (one.seen, one.image, one.held_out) == (2, "x.png", False)


def test_traded_colours_are_confusion_though_classes_are_right(toy, world):
    one = look(toy, world, ["red", "green"], [("disc", 120, 2), ("square", 0, 0)])
    assert (one.confusion, one.class_recognition, one.missing) == (1, 1, 0)
    assert one.leakage_margin < -0.5
    assert one.hue_error == pytest.approx(120, abs=2)
    by_looks = look(
        toy,
        world,
        ["red", "green"],
        [("disc", 120, 2), ("square", 0, 0)],
        CONFIG.model_copy(update={"class_weight": 0.0}),
    )
    assert (by_looks.confusion, by_looks.class_recognition) == (0, 0)


def test_one_painted_twice(toy, world):
    one = look(toy, world, ["red", "blue"], [("disc", 0, 0), ("disc", 0, 1)])
    assert (one.missing, one.duplicate, one.confusion) == (0, 0.5, 0.5)


def test_a_missing_subject_and_an_empty_picture(toy, world):
    one = look(toy, world, ["red", "blue"], [("disc", 240, 0)])
    assert one.missing == 0.5 and one.matched[0] == 0 and one.boxes[0] == ()
    assert one.identity == pytest.approx(0.5, abs=1e-3)
    empty = look(toy, world, ["red", "blue"], [])
    assert (empty.missing, empty.identity, empty.seen) == (1, 0, 0)
    assert math.isnan(empty.hue_error) and math.isnan(empty.pattern_error)
    assert math.isnan(empty.class_recognition)


def test_thresholds_and_held_out_classes(toy, world):
    things = [("disc", 0, 0), ("square", 120, 2)]
    strict = CONFIG.model_copy(update={"min_confidence": 0.95})
    assert look(toy, world, ["red", "green"], things, strict).missing == 1
    large = CONFIG.model_copy(update={"min_area": 0.045})
    assert look(toy, world, ["red", "green"], things, large).seen == 1
    assert look(toy, world, ["red", "green"], things, held_out_classes={"square"}).held_out


def test_a_copied_reference_raises_the_guard(toy, world):
    world.add_subject("odd", "disc", 0, pictures=1)
    key = world.subjects["odd"].references[0]
    striped = world.images[key.image].copy()
    mask = world.images[key.mask] > 0
    striped[(np.arange(toy.SIDE) % 4 < 2)[:, None] & mask] = toy.colour_of(12)
    world.images[key.image] = striped
    scene = world.scene("odd")
    copied = np.where(mask[..., None], striped, toy.picture([]))
    plain = np.where(mask[..., None], toy.colour_of(6), toy.picture([]))
    guards = [
        measure(
            "base", [scene], [p.astype(np.uint8)], {"odd": world.shown("odd")}, toy.Judge(), CONFIG
        )
        for p in (copied, plain)
    ]
    assert guards[0][0].copy_paste == pytest.approx(1, abs=1e-6)
    assert guards[1][0].copy_paste < 0.2


def test_a_lost_pattern_is_measured_on_the_pixels(toy, world):
    world.add_subject("barred", "disc", 0, pictures=1)
    key = world.subjects["barred"].references[0]
    mask = world.images[key.mask] > 0
    barred = world.images[key.image].copy()
    barred[(np.arange(toy.SIDE) % 8 < 4)[:, None] & mask] //= 2
    world.images[key.image] = barred
    references = {"barred": world.shown("barred")}
    flat = toy.picture([("disc", 0, 1)])
    kept = np.where(mask[..., None], barred, toy.picture([])).astype(np.uint8)
    errors = [
        measure("base", [world.scene("barred")], [picture], references, toy.Judge(), CONFIG)[0]
        for picture in (kept, flat)
    ]
    assert errors[0].pattern_error == pytest.approx(0, abs=1e-6)
    assert errors[1].pattern_error > 0.9


def test_base_and_adapter_from_the_same_seeds(toy, world):
    """A generator that forgets and doubles subjects is told from one that does not."""
    config = EvaluateConfig(images_per_scene=2, batch=7)
    scenes = [world.scene("red", "green", variant=v) for v in range(30)]
    references = {name: world.shown(name) for name in ("red", "green")}
    faulty, sound = toy.Generator(faults=0.5), toy.Generator()
    painted = {
        m: paint_scenes(scenes, references, g, config)
        for m, g in [("base", faulty), ("adapter", sound)]
    }
    same = sum(np.array_equal(a, b) for a, b in zip(*painted.values(), strict=True))
    assert len(painted["base"]) == 60 and 15 < same < 45
    measured = {
        m: measure(m, scenes, p, references, toy.Judge(), config) for m, p in painted.items()
    }
    made = {
        (r.metric, r.model): r
        for r in rows(measured["base"], measured["adapter"], config)
        if r.group == "all"
    }
    assert made["missing", "adapter"].mean == 0
    assert made["identity", "adapter - base"].low > 0
    assert made["missing", "adapter - base"].high < 0
    assert made["missing", "adapter - base"].mean == pytest.approx(
        made["missing", "adapter"].mean - made["missing", "base"].mean
    )
    again = measure("base", scenes, painted["base"], references, toy.Judge(), config)
    assert rows(again, [], config) == rows(measured["base"], [], config)


def test_a_wrong_number_of_pictures_is_refused(toy, world):
    with pytest.raises(ValueError, match="0 pictures, expected 1: 1 for each of 1 scenes"):
        measure("base", [world.scene("red")], [], {"red": world.shown("red")}, toy.Judge(), CONFIG)


class Words:
    """An encoder of texts that knows one word, and of pictures that sees one direction."""

    fingerprint = "words"

    def embed_texts(self, texts):
        return np.array([[1.0, 0.0] if "square" in t else [0.0, 1.0] for t in texts], np.float32)

    def embed_images(self, images):
        return np.array([[0.6, 0.8]] * len(images), np.float32)


def test_prompt_fit_is_the_cosine_of_picture_and_prompt(toy, world):
    """Without an encoder it has no value."""
    square = look(toy, world, ["green"], [("square", 120, 0)], clip=Words())
    disc = look(toy, world, ["red"], [("disc", 0, 0)], clip=Words())
    assert (square.clip_t, disc.clip_t) == (pytest.approx(0.6), pytest.approx(0.8))
    assert math.isnan(look(toy, world, ["red"], [("disc", 0, 0)]).clip_t)
