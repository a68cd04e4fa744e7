"""The independent judge's recipe: it learns to find bodies, then to tell them apart.

Its seeds are its own, so it shares neither weights nor samples with the scorers; it knows the
words of all classes, also of those that no other pocket model was trained on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from focusdpo.pocket.cards import Figure
from focusdpo.pocket.classes import PATTERNS, class_names
from focusdpo.pocket.figures import judge_figures
from focusdpo.pocket.fitting.recipe import Recipe
from focusdpo.pocket.fitting.training import Stage, Training
from focusdpo.pocket.lineage import STEP_SEEDS, Lineage, stream
from focusdpo.pocket.models.judge import JudgeModelConfig, JudgeNet, PocketJudge
from focusdpo.pocket.recipes.body_maps import body_loss
from focusdpo.pocket.recipes.identity_recipe import contrastive_loss
from focusdpo.pocket.recipes.scorer_samples import lookalikes, scene_batch, two_views


class JudgeRecipe(BaseModel):
    """How the judge is made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: JudgeModelConfig = JudgeModelConfig(classes=class_names())
    sight: Training = Training(steps=5000, batch=16, lr=1.5e-3, seed=910)
    look: Training = Training(steps=2400, batch=64, lr=1.5e-3, seed=920)
    temperature: float = Field(0.07, description="of the contrastive loss", gt=0)
    offset_weight: float = Field(1.0, description="of the centre offsets", ge=0)


def stages(config: JudgeRecipe, model: nn.Module, weights: Path) -> list[Stage]:
    """Sight, then looks."""
    assert isinstance(model, JudgeNet)
    classes = config.model.classes

    def draw_scenes(step: int) -> tuple[Tensor, Tensor]:
        seed = config.sight.seed * STEP_SEEDS + step
        batch = scene_batch(seed, config.sight.batch, classes, "train")
        return batch.images, batch.masks

    def sight_loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        images, masks = batch
        return body_loss(*model.bodies(images), masks, config.offset_weight)

    def draw_views(step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Crops of both views, then classes and patterns of both."""
        seed = config.look.seed * STEP_SEEDS + step
        identities = lookalikes(classes, "train", config.look.batch // 4, seed)
        views = torch.cat(two_views(identities, config.model.size, seed))
        names = torch.tensor([classes.index(subject.class_name) for subject in identities])
        patterns = torch.tensor([PATTERNS.index(subject.pattern) for subject in identities])
        return views, names.repeat(2), patterns.repeat(2)

    def look_loss(batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        views, name, pattern = batch
        names, vectors, patterns = model.describe(views)
        here, there = vectors.chunk(2)
        return (
            F.cross_entropy(names, name)
            + 0.5 * F.cross_entropy(patterns, pattern)
            + contrastive_loss(here, there, config.temperature)
        )

    looks = nn.ModuleList([model.look, model.class_head, model.identity_head, model.pattern_head])
    return [
        Stage("sight", model.sight, draw_scenes, sight_loss, config.sight),
        Stage("look", looks, draw_views, look_loss, config.look),
    ]


def lineage(config: JudgeRecipe) -> Lineage:
    """What the judge is made from."""
    sight, look = config.sight, config.look
    return Lineage(
        name="judge",
        architecture=("diffusers UNet2DModel", "torchvision MobileNetV3"),
        init_seed=sight.seed,
        streams=(
            stream("sight", sight.seed, sight.batches, plan="scenes", per_batch=sight.batch,
                   items=sight.steps * sight.batch, items_are="scenes", classes="all"),
            stream("look", look.seed, look.batches, plan="views", per_batch=look.batch,
                   items=look.steps * look.batch,
                   items_are="individuals, each in a scene and in a reference", classes="all"),
        ),
    )  # fmt: skip


def settings(config: JudgeRecipe) -> dict[str, Any]:
    """What `PocketJudge` reads."""
    return {"model": config.model.model_dump(mode="json")}


def measure(weights: Path) -> list[Figure]:
    """On held-out individuals."""
    return judge_figures(PocketJudge(weights))


RECIPE = Recipe(
    name="judge",
    config=JudgeRecipe,
    what="an independent judge: a U-Net (diffusers) that finds bodies of any class, and a"
    " MobileNetV3 (torchvision) that tells class, pattern and individual",
    data=lambda config: (
        f"{config.sight.steps * config.sight.batch} scenes and"
        f" {config.look.steps * config.look.batch} individuals of all 48 classes, from seeds that"
        " no other pocket model has"
    ),
    build=lambda config, weights: JudgeNet(config.model),
    seed_of=lambda config: config.sight.seed,
    stages=stages,
    settings=settings,
    measure=measure,
    lineage=lineage,
)
