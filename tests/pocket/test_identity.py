"""The identity encoder: its part, its loss, its figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_scorers import arrays, save_random, small_scenes

from focusdpo.data_schemas.errors import UserError
from focusdpo.pocket.figures import rank_one
from focusdpo.pocket.models.identity import IdentityModelConfig, IdentityNet, PocketIdentity
from focusdpo.pocket.recipes.identity_recipe import contrastive_loss
from focusdpo.pocket.recipes.scorer_samples import two_views
from focusdpo.pocket.weightfiles import fingerprint
from focusdpo.pocket.world.identities import class_names, sample_identities

TINY = IdentityModelConfig(size=16, width=32, layers=1, heads=2, embedding=8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return save_random("identity", IdentityNet(TINY), TINY, tmp_path)


def test_embeds_whatever_surrounds_the_subject_and_in_any_batch(folder: Path) -> None:
    part = PocketIdentity(folder, batch=3)
    scenes, _ = small_scenes(5)
    images, masks = arrays(scenes.images), list(scenes.masks[:, 0].numpy())
    vectors = part.embed(images, masks)
    assert vectors.shape == (5, 8) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    other = [np.where(m[..., None], i, 7).astype(np.uint8) for i, m in zip(images, masks)]  # noqa: B905
    np.testing.assert_allclose(part.embed(other, masks), vectors, atol=1e-4)
    np.testing.assert_allclose(part.embed(images[3:4], masks[3:4]), vectors[3:4], atol=1e-4)


def test_what_surrounds_a_large_subject_is_not_seen(folder: Path) -> None:
    """It is shrunk before it is cropped, and its border must not take on the background."""
    mask = np.zeros((300, 300), bool)
    mask[31:270, 40:201] = True
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (300, 300, 3), dtype=np.uint8)
    dark = np.where(mask[..., None], image, np.uint8(0))
    part = PocketIdentity(folder)
    np.testing.assert_array_equal(part.embed([image], [mask]), part.embed([dark], [mask]))


def test_fingerprint_follows_the_weights(folder: Path, tmp_path: Path) -> None:
    assert PocketIdentity(folder).fingerprint == fingerprint("identity", folder)
    torch.manual_seed(1)
    other = save_random("identity", IdentityNet(TINY), TINY, tmp_path / "other")
    assert fingerprint("identity", other) != fingerprint("identity", folder)


@pytest.mark.parametrize("fault", ["missing", "truncated", "foreign", "settings"])
def test_bad_weight_files_are_named_with_the_command_that_mends_them(
    folder: Path, fault: str
) -> None:
    weights, settings = folder / "identity.safetensors", folder / "identity.json"
    if fault == "missing":
        weights.unlink()
    elif fault == "truncated":
        weights.write_bytes(weights.read_bytes()[:500])
    elif fault == "foreign":
        save_random("identity", torch.nn.Linear(2, 2), TINY, folder)
    else:
        settings.write_text("{")
    with pytest.raises(UserError, match=r"identity\.(safetensors|json).*pocket train identity"):
        PocketIdentity(folder)


def test_contrastive_loss_is_least_for_matching_rows() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(8, 16), dim=1)
    right = contrastive_loss(vectors, vectors, 0.05)
    assert right < contrastive_loss(vectors, vectors.roll(1, 0), 0.05)
    same = torch.ones(8, 4) / 2
    torch.testing.assert_close(contrastive_loss(same, same, 0.05), torch.tensor(8.0).log())


def test_two_views_show_the_same_subject() -> None:
    people = sample_identities("train", class_names("train"), 7, 2)
    first, second = two_views(people, 32, 5)
    assert first.shape == second.shape == (7, 3, 32, 32)
    hue_like = [(a - b).abs().mean() for a, b in zip(first, second, strict=True)]
    crossed = [(a - b).abs().mean() for a, b in zip(first, second.roll(1, 0), strict=True)]
    assert sum(hue_like) < sum(crossed)


def test_rank_one_counts_own_reference() -> None:
    eye = np.eye(4, dtype=np.float32)
    assert rank_one(eye, eye) == 1.0
    assert rank_one(eye, eye[[1, 0, 2, 3]]) == 0.5
