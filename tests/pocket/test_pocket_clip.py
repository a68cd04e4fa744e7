"""The pocket CLIP: its part, its losses, its figures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_scorers import arrays, save_random, small_scenes

from focusdpo.pocket.models.clip import ClipModelConfig, ClipNet, PocketClip
from focusdpo.pocket.recipes.clip_recipe import scene_loss, scene_texts
from focusdpo.pocket.recipes.scorer_samples import scene_batch
from focusdpo.pocket.world.identities import class_names

TINY = ClipModelConfig(text_width=32, text_layers=1, embedding=16)


@pytest.fixture
def part(tmp_path: Path) -> PocketClip:
    torch.manual_seed(0)
    return PocketClip(save_random("clip", ClipNet(TINY), TINY, tmp_path), batch=2)


def test_embeds_pictures_of_any_size_and_texts(part: PocketClip) -> None:
    scenes, _ = small_scenes(3)
    images = [*arrays(scenes.images), np.full((23, 23, 3), 255, np.uint8)]
    vectors = part.embed_images(images)
    texts = part.embed_texts(["a cat on sand", "a teddy bear and a fish on wood"])
    assert vectors.shape == (4, 16)
    assert texts.shape == (2, 16)
    np.testing.assert_allclose(np.linalg.norm(np.concatenate([vectors, texts]), axis=1), 1, 1e-4)
    np.testing.assert_allclose(part.embed_images(images[2:3]), vectors[2:3], atol=1e-4)
    assert part.embed_texts([]).shape == (0, 16)


def test_texts_that_differ_in_one_word_differ(part: PocketClip) -> None:
    first, second = part.embed_texts(["a cat and a fish on sand", "a cat and a car on sand"])
    assert np.abs(first - second).max() > 1e-3


def test_false_prompts_change_one_thing() -> None:
    batch = scene_batch(4, 6, class_names("train"), "train")
    texts, fits = scene_texts(batch, 1)
    assert len(texts) == 18
    assert texts[:6] == batch.prompts
    assert fits.shape == (6, 18)
    assert fits[:, :6].diagonal().all()
    assert not fits[:, 6:].any()


def test_scene_loss_by_hand() -> None:
    """Two scenes of one prompt share it: no loss is left where both texts score alike."""
    fits = torch.tensor([[True, True], [True, True]])
    torch.testing.assert_close(scene_loss(torch.zeros(2, 2), fits), torch.tensor(math.log(2)))
    apart = torch.eye(2, dtype=torch.bool)
    assert scene_loss(torch.eye(2) * 50, apart) < 1e-6
