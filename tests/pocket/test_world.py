"""The world: exact masks, free order, similar subjects, splits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from focusdpo.data_schemas.errors import UserError
from focusdpo.pocket.classes import BACKGROUNDS, HUE_BINS, class_names
from focusdpo.pocket.world.casting import draw_cast, draw_like, told_apart
from focusdpo.pocket.world.identities import Identity, sample_identities
from focusdpo.pocket.world.world import (
    SCENE_SIZE,
    SLOTS,
    Scenes,
    SlotConfig,
    render_references,
    render_scenes,
)


def casts(count: int, scenes: int, seed: int = 0) -> list[list[Identity]]:
    rng = np.random.default_rng(seed)
    return [draw_cast("train", class_names("train"), count, rng) for _ in range(scenes)]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_scene_depends_on_its_own_subjects_and_seed_alone(count: int) -> None:
    rows = casts(count, 5)
    together = render_scenes(rows, [3, 1, 4, 1, 5])
    for b, seed in enumerate([3, 1, 4, 1, 5]):
        alone = render_scenes([rows[b]], [seed])
        torch.testing.assert_close(alone.images[0], together.images[b], atol=1e-5, rtol=0)
        assert (alone.masks[0] == together.masks[b]).float().mean() > 0.9995
    assert together.images.shape == (5, 3, SCENE_SIZE, SCENE_SIZE)
    assert together.images.min() >= 0 and together.images.max() <= 1


def test_masks_are_disjoint_and_every_subject_is_seen() -> None:
    for count in (1, 2, 3, 4):
        scenes = render_scenes(casts(count, 40, count), list(range(40)))
        assert int(scenes.masks.sum(1).max()) <= 1
        assert int(scenes.masks.sum((2, 3)).min()) > 60
        rows, cols = scenes.masks[0, 0].nonzero().T
        box = [cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]
        assert scenes.boxes[0, 0].tolist() == [int(side) for side in box]


def test_subjects_stand_inside_the_scene() -> None:
    scenes = render_scenes(casts(2, 60, 2), list(range(60)))
    border = torch.ones(SCENE_SIZE, SCENE_SIZE, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert not (scenes.masks & border).any()


@pytest.mark.slow
def test_the_first_subject_of_a_scene_stands_anywhere() -> None:
    """Place, size and depth tell nothing of the position in the list."""
    scenes = render_scenes(casts(2, 400, 7), list(range(400)))
    boxes = scenes.boxes.double()
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    side = (boxes[..., 2:] - boxes[..., :2]).amax(-1)
    for values in (middle[..., 0], middle[..., 1], side):
        first_is_less = (values[:, 0] < values[:, 1]).double().mean()
        assert 0.42 < first_is_less < 0.58
    ratio = side.amax(1) / side.amin(1)
    assert ratio.median() > 1.15 and ratio.max() < 2.2
    # 20 tokens of 8 px to a subject of two: what the maps look at.
    assert scenes.masks.sum((2, 3)).double().mean() > 20 * 64


def test_half_of_the_scenes_of_several_hold_similar_subjects() -> None:
    similar = 0
    for cast in casts(2, 300, 9):
        gap = abs(cast[0].hue - cast[1].hue)
        one_hue = min(gap, 1 - gap) < 1 / HUE_BINS
        similar += cast[0].class_name == cast[1].class_name or one_hue
    assert 100 < similar < 250


def test_similar_subjects_can_be_told_apart() -> None:
    rng = np.random.default_rng(3)
    model = sample_identities("train", ["key"], 1, 2)[0]
    likes = [draw_like(model, "class and hue", "train", ["key"], rng) for _ in range(20)]
    assert all(told_apart(model, like) for like in likes)
    assert not told_apart(model, replace(model, hue=(model.hue + 0.001) % 1))
    assert told_apart(model, replace(model, class_name="bell"))


def test_no_cell_is_in_two_splits() -> None:
    classes = class_names("train")
    cells = {
        split: {subject.cell for subject in sample_identities(split, classes, 800, 3)}
        for split in ("train", "val", "held_out")
    }
    assert not cells["train"] & cells["val"]
    assert not cells["train"] & cells["held_out"]
    assert not cells["val"] & cells["held_out"]


def test_references_differ_in_pose_and_keep_the_individual() -> None:
    person = sample_identities("train", ["cat"], 1, 4)[0]
    images, masks = render_references([person] * 12, list(range(12)))
    again, _ = render_references([person] * 3, [0, 1, 2])
    torch.testing.assert_close(again, images[:3], atol=1e-5, rtol=0)
    areas = masks.sum((1, 2)).double()
    assert areas.max() / areas.min() > 1.15
    assert (masks[0] != masks[1]).any()
    body = torch.stack([(i * m).sum((1, 2)) / m.sum() for i, m in zip(images, masks, strict=True)])
    assert body.std(0).max() < 0.12


def test_some_references_have_a_background_and_some_are_cut() -> None:
    people = sample_identities("train", class_names("train"), 60, 5)
    images, masks = render_references(people, list(range(60)))
    white = ((images > 0.99).all(1) | masks).flatten(1).float().mean(1) > 0.9
    assert 0.4 < white.float().mean() < 0.8
    border = torch.stack([masks[:, 0].any(1), masks[:, -1].any(1),
                          masks[:, :, 0].any(1), masks[:, :, -1].any(1)]).any(0)  # fmt: skip
    assert 0.05 < border.float().mean() < 0.45


def test_unknown_backgrounds_and_uneven_casts_are_refused() -> None:
    with pytest.raises(UserError, match="moon"):
        render_scenes(casts(1, 1), [0], ["moon"])
    with pytest.raises(UserError, match="every scene needs the same"):
        render_scenes([casts(1, 1)[0], casts(2, 1)[0]], [0, 1])
    shown = render_scenes(casts(1, 8), list(range(8)), list(BACKGROUNDS))
    assert shown.backgrounds == BACKGROUNDS


def middles(boxes_BR4: torch.Tensor) -> torch.Tensor:
    return (boxes_BR4[..., :2].double() + boxes_BR4[..., 2:]) / 2


def slotted(count: int, **given: Any) -> Scenes:
    rng = np.random.default_rng(count)
    casts = [draw_cast("train", class_names("train"), count, rng) for _ in range(6)]
    return render_scenes(casts, range(6), slots=SlotConfig(**given))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_each_subject_stands_at_the_slot_of_its_number(count: int) -> None:
    scenes, slots = slotted(count, alone=True), SLOTS[count]
    centres = torch.tensor(slots.centres, dtype=torch.float64)
    # A body need not be symmetric about the point that it is placed by, and may be half hidden.
    apart = (middles(scenes.boxes) - centres).abs()
    assert float(apart.max()) < SlotConfig().jitter + slots.sides[1] / 4
    size = (scenes.boxes[..., 2:] - scenes.boxes[..., :2]).double()
    assert float(size.max()) < 1.5 * slots.sides[1]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_in_any_order_the_slots_are_the_same_and_the_subjects_change(count: int) -> None:
    scenes = slotted(count, jitter=0, any_order=1.0)
    centres = torch.tensor(SLOTS[count].centres, dtype=torch.float64)
    nearest = torch.cdist(middles(scenes.boxes), centres.expand(6, -1, -1)).argmin(-1)
    assert (nearest.sort(-1).values == torch.arange(count)).all(), "each slot once"
    assert len({tuple(row) for row in nearest.tolist()}) > 1
    assert (slotted(count, jitter=0).boxes != scenes.boxes).any()


def test_a_single_subject_has_a_slot_where_that_is_asked_for() -> None:
    boxes = slotted(1, alone=True, jitter=0, tilt=0).boxes
    assert float((middles(boxes) - 48).abs().max()) < 20
    assert float((middles(slotted(1).boxes) - 48).abs().max()) > 12
