"""What the generator's check and the search of its sampling count."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from focusdpo.flows.pocket_recipes import best_sampling, read_planted
from focusdpo.model.backbones.flux import FluxBackbone, SamplingConfig
from focusdpo.pipeline.parts import Image, Mask, Seen, Vectors
from focusdpo.pocket.check import (
    BATCH,
    SamplingRow,
    cheapest,
    check_generator,
    paint_asked,
    search_sampling,
)
from focusdpo.pocket.classes import class_names
from focusdpo.pocket.faults import KINDS
from focusdpo.pocket.lineage import lineage_path, read_lineage, words_of
from focusdpo.pocket.models.autoencoder import ARCHITECTURE, PatchAutoencoder
from focusdpo.pocket.models.generator import as_backbone, build_generator, load_generator
from focusdpo.pocket.models.pocket_painter import PocketGenerator
from focusdpo.pocket.recipes import table
from focusdpo.pocket.weightfiles import WEIGHTS, file_digest, read_settings, weight_path

TINY = {
    "patch_size": 1, "in_channels": 48, "num_layers": 1, "num_single_layers": 1,
    "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 32,
    "pooled_projection_dim": 32, "guidance_embeds": False, "axes_dims_rope": [4, 6, 6],
}  # fmt: skip


class BlindJudge:
    """A judge that sees nothing anywhere."""

    fingerprint = "blind"
    class_names = class_names()

    def look(self, images: Sequence[Image]) -> list[list[Seen]]:
        return [[] for _ in images]

    def embed_references(self, images: Sequence[Image], masks: Sequence[Mask]) -> Vectors:
        return np.tile(np.eye(1, 8, dtype=np.float32), (len(images), 1))

    def hue(self, images: Sequence[Image], masks: Sequence[Mask]) -> Vectors:
        return np.zeros(len(images), np.float32)

    def pattern(self, images: Sequence[Image], masks: Sequence[Mask]) -> Vectors:
        return np.full((len(images), 2, 4, 4), np.nan, np.float32)


@pytest.fixture(scope="module")
def backbone() -> FluxBackbone:
    torch.manual_seed(0)
    codec = PatchAutoencoder({**ARCHITECTURE, "blocks": 1})
    return as_backbone(build_generator(TINY), codec.eval(), SamplingConfig(steps=2))


def test_pictures_of_all_kinds_are_painted_for_val_individuals(backbone: FluxBackbone) -> None:
    painter = PocketGenerator(backbone, "tiny")
    painted, again = paint_asked(painter, 2), paint_asked(painter, 2)
    assert [scene.kind for scene in painted] == [kind for kind in KINDS for _ in range(2)]
    for scene, same in zip(painted, again, strict=True):
        assert scene.image.shape == (96, 96, 3)
        assert (scene.image == same.image).all()
        assert {subject.split for subject in scene.asked} == {"val"}
        assert len(scene.references) == len(scene.asked)
    alone = [scene for scene in painted if scene.kind == "one class"]
    assert all(len(set(scene.class_names)) == 1 for scene in alone)


def test_what_a_judge_does_not_see_has_failed(backbone: FluxBackbone) -> None:
    rows = check_generator(PocketGenerator(backbone, "tiny"), BlindJudge(), read_planted, 1)
    assert [row.kind for row in rows] == list(KINDS)
    assert all(row.missing == row.failed == 1 and row.fault == "painted" for row in rows)


def test_the_search_leaves_the_backbone_as_it_was(backbone: FluxBackbone) -> None:
    table = search_sampling(
        backbone, BlindJudge(), read_planted, 1, guidances=(1.0, 2.0), steps=(2, 1)
    )
    assert backbone.sampling.steps == 2 and BATCH > 0
    assert [row.sampling.steps for row in table] == [1, 1, 2, 2]
    assert {row.sampling.guidance for row in table} == {1.0, 2.0}


PACKAGED = sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


@pytest.mark.parametrize("name", [name for name in PACKAGED if lineage_path(name).exists()])
def test_a_packaged_model_has_its_card_and_its_recipe(name: str) -> None:
    card, recipe = read_lineage(name), table.recipe_of(name)
    assert card.weights == file_digest(weight_path(name))
    assert recipe.lineage is not None
    assert recipe.lineage(recipe.config()).model_copy(update={"weights": card.weights}) == card
    assert words_of(card) in weight_path(name).with_suffix(".md").read_text()


def test_the_cheapest_of_the_best_settings_is_chosen() -> None:
    """Of 60 pictures 15 fail at best, with a standard error of 0.056."""

    def row(steps: int, failed: float) -> SamplingRow:
        return SamplingRow(SamplingConfig(steps=steps), failed, 1.0, ())

    best, near, far = row(20, 0.25), row(12, 0.30), row(8, 0.31)
    assert cheapest([best, near, far], 60) is near
    assert cheapest([best, near, row(12, 0.27), far], 60).failed == 0.27
    assert cheapest([best, near], 6000) is best


@pytest.mark.slow
def test_the_chosen_sampling_is_kept_beside_the_weights(tmp_path: Path) -> None:
    """By the packaged models; nothing else of the settings changes."""
    weights = tmp_path / "weights"
    shutil.copytree(WEIGHTS, weights)
    before = read_settings("generator", weights)
    rows, chosen = best_sampling(weights, 1, keep=True)
    assert chosen in rows
    after = read_settings("generator", weights)
    assert after == {**before, "sampling": chosen.sampling.model_dump()}
    assert load_generator(weights).sampling == chosen.sampling
