"""The segmenter's recipe: it learns to find bodies, then to name them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from focusdpo.pocket.cards import Figure
from focusdpo.pocket.classes import class_names
from focusdpo.pocket.figures import segmenter_figures
from focusdpo.pocket.fitting.recipe import Recipe
from focusdpo.pocket.fitting.training import Stage, Training
from focusdpo.pocket.lineage import STEP_SEEDS, Lineage, stream
from focusdpo.pocket.models.segmenter import PocketSegmenter, SegmenterModelConfig, SegmenterNet
from focusdpo.pocket.recipes.body_maps import body_loss
from focusdpo.pocket.recipes.scorer_samples import body_crops, scene_batch


class SegmenterRecipe(BaseModel):
    """How the segmenter is made. Its words are the training classes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: SegmenterModelConfig = SegmenterModelConfig(words=class_names("train"))
    proposals: Training = Training(steps=3000, batch=16, lr=2e-3, seed=31)
    words: Training = Training(steps=2000, batch=64, lr=2e-3, seed=32)
    offset_weight: float = Field(1.0, description="of the centre offsets", ge=0)


def stages(config: SegmenterRecipe, model: nn.Module, weights: Path) -> list[Stage]:
    """Proposals, then words."""
    assert isinstance(model, SegmenterNet)
    classes = config.model.words

    def draw_scenes(step: int) -> tuple[Tensor, Tensor]:
        seed = config.proposals.seed * STEP_SEEDS + step
        batch = scene_batch(seed, config.proposals.batch, classes, "train")
        return batch.images, batch.masks

    def proposal_loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        images, masks = batch
        return body_loss(*model.bodies(images), masks, config.offset_weight)

    def draw_crops(step: int) -> tuple[Tensor, Tensor]:
        seed = config.words.seed * STEP_SEEDS + step
        batch = scene_batch(seed, config.words.batch // 2, classes, "train")
        crops, names = body_crops(batch, config.model.size, config.words.batch, seed)
        return crops, torch.tensor([classes.index(name) for name in names])

    def word_loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        crops, target = batch
        return F.cross_entropy(model.match(crops), target, label_smoothing=0.05)

    named = nn.ModuleList([model.regions, model.words])
    return [
        Stage("proposals", model.proposals, draw_scenes, proposal_loss, config.proposals),
        Stage("words", named, draw_crops, word_loss, config.words),
    ]


def lineage(config: SegmenterRecipe) -> Lineage:
    """What the segmenter is made from."""
    first, second = config.proposals, config.words
    return Lineage(
        name="segmenter",
        architecture=("transformers SegformerForSemanticSegmentation", "timm RegNet"),
        init_seed=first.seed,
        streams=(
            stream("proposals", first.seed, first.batches, plan="scenes", per_batch=first.batch,
                   items=first.steps * first.batch, items_are="scenes", classes="train"),
            stream("words", second.seed, second.batches, plan="scenes",
                   per_batch=second.batch // 2, items=second.steps * second.batch,
                   items_are="bodies cut from half as many scenes", classes="train"),
        ),
    )  # fmt: skip


def settings(config: SegmenterRecipe) -> dict[str, Any]:
    """What `PocketSegmenter` reads."""
    return {"model": config.model.model_dump(mode="json")}


def measure(weights: Path) -> list[Figure]:
    """On held-out individuals."""
    return segmenter_figures(PocketSegmenter(weights))


RECIPE = Recipe(
    name="segmenter",
    config=SegmenterRecipe,
    what="a text-prompted segmenter: a SegFormer (transformers) proposes bodies of any class,"
    " a RegNet (timm) compares each with the words",
    data=lambda config: (
        f"{config.proposals.steps * config.proposals.batch} scenes for the proposals and"
        f" {config.words.steps * config.words.batch} bodies for the words, of the 32 training"
        " classes, four fifths spoilt like painted images"
    ),
    build=lambda config, weights: SegmenterNet(config.model),
    seed_of=lambda config: config.proposals.seed,
    stages=stages,
    settings=settings,
    measure=measure,
    lineage=lineage,
)
