"""Scores against direct computation on pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from focusdpo.data_schemas.candidates import Disrupted, Instance, Sampled
from focusdpo.pipeline.score import ScoreConfig, background_distance, crop_on_white, score


def scored(toy, world, things, names=("red", "green"), lost=(), repaint=None, **fields):
    """Scores one sampled candidate, and a disrupted one painted as `repaint`."""
    scene = world.scene(*names)
    picture = toy.picture(things)
    world.images["generate/k/c.png"] = picture
    sampled = [Sampled(id="c", scene_id=scene.id, index=0, seed=0, image="generate/k/c.png")]
    instances = []
    for at, name in enumerate(names):
        word, _, slot = things[at]
        world.images[f"segment/k/c-{at}.png"] = toy.slot_mask(word, slot).astype(np.uint8) * 255
        instances.append(
            Instance(
                candidate_id="c",
                scene_id=scene.id,
                subject_id=name,
                class_name=word,
                found="missing" if name in lost else "one",
                box=None,
                mask=None if name in lost else f"segment/k/c-{at}.png",
                confidence=1.0,
                extra=0,
            )
        )
    disrupted = []
    if repaint is not None:
        world.images["disrupt/k/d.png"], prior = repaint
        world.images["disrupt/k/d-prior.png"] = prior.astype(np.uint8) * 255
        disrupted.append(
            Disrupted(
                id="d",
                scene_id=scene.id,
                parent_id="c",
                mode="all",
                subject_ids=names,
                seed=0,
                image="disrupt/k/d.png",
                prior="disrupt/k/d-prior.png",
            )
        )
    return score(
        [scene],
        world.subjects,
        sampled,
        disrupted,
        instances,
        world.read,
        toy.Identity(),
        toy.Clip(),
        ScoreConfig(**fields),
    ).records


def test_the_right_colours_keep_identity_and_the_wrong_ones_lose_it(toy, world):
    good = [("disc", 0, 0), ("square", 120, 2)]
    traded = toy.picture([("disc", 120, 0), ("square", 0, 2)])
    everywhere = np.ones((toy.SIDE, toy.SIDE), bool)
    win, lose = scored(toy, world, good, repaint=(traded, everywhere))
    assert (win.kind, lose.kind) == ("sampled", "disrupted")
    assert win.identity == pytest.approx((1, 1), abs=1e-4)
    assert min(win.leakage_margin) > 0.5 and max(lose.leakage_margin) < -0.5
    table = np.array(lose.similarity)
    assert lose.identity == pytest.approx(np.diag(table))
    # Trading colours trades the columns of S.
    np.testing.assert_allclose(table, np.array(win.similarity)[:, ::-1], atol=1e-4)
    assert win.complete and lose.complete
    # The same shapes: the meaning stays.
    assert lose.clip_t == pytest.approx(win.clip_t, abs=1e-3)
    assert win.background == lose.background == 0


def test_identity_is_the_mean_over_all_pictures_of_the_subject(toy, world):
    odd = world.subjects["red"].references[1]
    world.images[odd.image] = toy.picture([("square", 240, 1)])
    world.images[odd.mask] = toy.slot_mask("square", 1).astype(np.uint8) * 255
    things = [("disc", 0, 0), ("square", 120, 2)]
    (one,) = scored(toy, world, things)
    vectors = toy.Identity().embed(
        [p.image for p in world.shown("red")], [p.mask for p in world.shown("red")]
    )
    own = toy.Identity().embed([toy.picture(things)], [toy.slot_mask("disc", 0)])[0]
    assert one.identity[0] == pytest.approx(np.mean([v @ own for v in vectors]), abs=1e-6)


def test_a_missing_subject_gives_a_column_of_minus_one(toy, world):
    (one,) = scored(toy, world, [("disc", 0, 0), ("square", 120, 2)], lost=("green",))
    assert not one.complete
    assert [row[1] for row in one.similarity] == [-1, -1]
    assert one.identity[1] == -1 and one.clip_i[1] == -1
    assert one.leakage_margin[0] == pytest.approx(one.identity[0] + 1)


def test_one_subject_has_the_least_cosine_as_rival(toy, world):
    (one,) = scored(toy, world, [("disc", 30, 0)], names=("red",))
    assert one.leakage_margin[0] == pytest.approx(one.identity[0] + 1)


def test_batching_changes_nothing(toy, world):
    things = [("disc", 10, 0), ("square", 100, 2)]
    assert scored(toy, world, things) == scored(toy, world, things, batch=1)


IMAGES = arrays(np.uint8, (6, 8, 3))


@given(IMAGES, IMAGES, arrays(bool, (6, 8)))
def test_background_distance_by_pixel(image, parent, prior):
    changes = [
        abs(int(image[y, x, c]) - int(parent[y, x, c])) / 255
        for y in range(6)
        for x in range(8)
        for c in range(3)
        if not prior[y, x]
    ]
    assert background_distance(image, parent, prior) == pytest.approx(
        np.mean(changes) if changes else 0.0
    )


@given(IMAGES, arrays(bool, (6, 8)), st.sampled_from([0.0, 0.25]))
def test_a_crop_holds_the_subject_once_and_white(image, mask, margin):
    crop = crop_on_white(image, mask, margin)
    np.testing.assert_array_equal(crop_on_white(image[..., 0], mask, margin), crop[..., 0])
    if not mask.any():
        assert (crop == 255).all()
        return
    assert crop.shape[0] == crop.shape[1]
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    longest = max(np.ptp(rows), np.ptp(columns)) + 1
    assert crop.shape[0] == longest + 2 * round(margin * longest)
    inside = np.sort(image[mask], axis=0)
    white = np.full((crop.size // 3 - len(inside), 3), 255)
    np.testing.assert_array_equal(
        np.sort(crop.reshape(-1, 3), axis=0), np.sort(np.concatenate([inside, white]), axis=0)
    )
