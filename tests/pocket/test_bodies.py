"""Bodies read off exact maps are the bodies."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from focusdpo.pocket.classes import class_names
from focusdpo.pocket.figures import iou
from focusdpo.pocket.models.bodies import BodiesConfig, find_bodies
from focusdpo.pocket.recipes.body_maps import body_loss, centre_maps
from focusdpo.pocket.recipes.scorer_samples import CROWDED, scene_batch
from focusdpo.pocket.world.casting import draw_cast
from focusdpo.pocket.world.world import render_scenes


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_exact_maps_give_exact_bodies_however_crowded(count: int) -> None:
    rng = np.random.default_rng(count)
    casts = [draw_cast("train", class_names(), count, rng) for _ in range(40)]
    masks = render_scenes(casts, list(range(40)), overlap=CROWDED).masks
    offsets, centres = centre_maps(masks)
    wrong = 0
    for b in range(40):
        union = masks[b].any(0).float().numpy()
        bodies = find_bodies(union, centres[b].numpy(), offsets[b].numpy(), BodiesConfig())
        hits = [
            max((iou(mask, truth.numpy()) for mask, _ in bodies), default=0.0) for truth in masks[b]
        ]
        wrong += len(bodies) != count or min(hits) < 0.99
    assert wrong <= 1


def test_nothing_is_found_where_nothing_is() -> None:
    blank = np.zeros((96, 96), np.float32)
    assert find_bodies(blank, blank, np.zeros((2, 96, 96), np.float32), BodiesConfig()) == []
    full = np.ones((96, 96), np.float32)
    assert find_bodies(full, blank, np.zeros((2, 96, 96), np.float32), BodiesConfig()) == []


def test_the_loss_is_least_on_exact_maps() -> None:
    batch = scene_batch(5, 6, class_names("train"), "train")
    assert batch.masks.shape == (6, 4, 96, 96)
    assert [int(m.flatten(1).any(1).sum()) for m in batch.masks] == [len(c) for c in batch.casts]
    offsets, centres = centre_maps(batch.masks)
    body = batch.masks.any(1).float()
    exact = body_loss(40 * (2 * body - 1), centres.logit(1e-6), offsets, batch.masks, 1.0)
    assert exact < 0.01
    for broken in (
        (-40 * (2 * body - 1), centres.logit(1e-6), offsets),
        (40 * (2 * body - 1), torch.zeros_like(centres), offsets),
        (40 * (2 * body - 1), centres.logit(1e-6), offsets + 8),
    ):
        assert body_loss(*broken, batch.masks, 1.0) > exact + 0.1
