"""Bodies read off maps, crops, and the samples that the scorers learn from."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focusdpo.pocket.crops import crop_subjects, crops_of
from focusdpo.pocket.first.bodies import BodiesConfig, box_of, divide, find_bodies
from focusdpo.pocket.first.identities import class_names
from focusdpo.pocket.first.recipes.bodies import centre_offsets, mask_loss
from focusdpo.pocket.first.recipes.samples import lookalikes, ragged, scene_batch, spoil

CONFIG = BodiesConfig()


def discs(*centres: tuple[int, int], radius: int = 8) -> torch.Tensor:
    """(1, R, 64, 64) disjoint discs; a later one lies under the earlier ones."""
    y, x = torch.arange(64)[:, None], torch.arange(64)
    taken = torch.zeros(64, 64, dtype=torch.bool)
    masks = []
    for cx, cy in centres:
        disc = ((x - cx) ** 2 + (y - cy) ** 2 <= radius**2) & ~taken
        taken |= disc
        masks.append(disc)
    return torch.stack(masks)[None]


def test_touching_bodies_are_divided_by_their_centres() -> None:
    masks = discs((20, 30), (36, 30))
    offsets = centre_offsets(masks)[0].numpy()
    found = find_bodies(masks[0].any(0).float().numpy(), offsets, CONFIG)
    assert len(found) == 2
    for truth in masks[0].numpy():
        assert max((truth & mask).sum() / (truth | mask).sum() for mask, _ in found) > 0.95


def test_one_body_stays_whole_and_crumbs_are_dropped() -> None:
    masks = discs((30, 30), radius=10)
    probability = masks[0, 0].float().numpy()
    probability[2, 2] = 1.0
    found = find_bodies(probability, centre_offsets(masks)[0].numpy(), CONFIG)
    assert [box_of(mask) for mask, _ in found] == [(20, 20, 41, 41)]
    assert found[0][1] == 1.0


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_divide_is_a_partition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    region = rng.random((64, 64)) < 0.3
    offsets = rng.normal(0, 10, (2, 64, 64)).astype(np.float32)
    parts = divide(region, offsets, CONFIG)
    assert (np.sum(parts, axis=0) == region).all()


def test_offsets_point_to_the_middle() -> None:
    masks = discs((20, 30), (40, 30), radius=6)
    offsets = centre_offsets(masks)[0]
    assert offsets[:, 30, 14].tolist() == [6.0, 0.0]
    assert offsets[:, 0, 0].tolist() == [0.0, 0.0]


def test_mask_loss_is_least_at_the_truth() -> None:
    target = discs((20, 30))[:, 0].float()
    sure = (target * 2 - 1) * 20
    assert mask_loss(sure, target) < 1e-3 < mask_loss(-sure, target)


def test_crop_shows_the_subject_alone_whatever_surrounds_it() -> None:
    mask = discs((20, 30))[:, 0]
    image = torch.rand(1, 3, 64, 64)
    other = torch.where(mask[:, None], image, torch.rand(1, 3, 64, 64))
    torch.testing.assert_close(crop_subjects(image, mask, 32), crop_subjects(other, mask, 32))
    crop = crop_subjects(torch.zeros(1, 3, 64, 64), mask, 32)
    assert crop[0, :, 0, 0].min() == 1
    assert crop[0, :, 16, 16].max() == 0


def test_crop_follows_a_shift() -> None:
    mask, image = discs((20, 30))[:, 0], torch.rand(1, 3, 64, 64)
    moved = crop_subjects(image.roll((5, 9), (2, 3)), mask.roll((5, 9), (1, 2)), 32)
    torch.testing.assert_close(moved, crop_subjects(image, mask, 32), atol=1e-4, rtol=0)


def test_crops_take_pictures_of_any_size_and_empty_masks() -> None:
    rng = np.random.default_rng(0)
    big, small = (rng.integers(0, 255, (n, n, 3), dtype=np.uint8) for n in (400, 24))
    crops = crops_of([big, small], [np.ones((400, 400), bool), np.zeros((24, 24), bool)], 32)
    assert crops.shape == (2, 3, 32, 32)
    assert crops[1].min() == 1


def test_samples_depend_on_their_seed_alone() -> None:
    first, again = (scene_batch(5, 4, class_names("train"), "train") for _ in range(2))
    assert torch.equal(first.images, again.images)
    assert first.prompts == again.prompts
    assert (first.masks.sum(1) <= 1).all()
    assert {one.split for row in first.identities for one in row} == {"train"}


def test_spoilt_images_stay_images_and_ragged_masks_stay_masks() -> None:
    images = torch.rand(8, 3, 64, 64)
    spoilt = spoil(images, 3)
    assert spoilt.shape == images.shape
    assert 0 <= spoilt.min() <= spoilt.max() <= 1
    masks = discs((20, 30))[:, 0].repeat(8, 1, 1)
    assert (ragged(masks, 1).sum((1, 2)) > 0).all()


def test_lookalikes_come_in_fours() -> None:
    four = lookalikes(class_names("train"), "train", 1, 4)
    assert four[0].class_name == four[1].class_name == four[2].class_name
    assert four[0].hue == four[2].hue
    assert four[0].pattern == four[1].pattern == four[3].pattern
    assert all(one.split == "train" for one in four)
