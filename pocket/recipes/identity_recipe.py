"""The identity encoder's recipe: two views of each of many look-alikes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from focusdpo.pocket.cards import Figure
from focusdpo.pocket.classes import class_names
from focusdpo.pocket.figures import identity_figures
from focusdpo.pocket.fitting.recipe import Recipe
from focusdpo.pocket.fitting.training import Stage, Training
from focusdpo.pocket.lineage import STEP_SEEDS, Lineage, stream
from focusdpo.pocket.models.identity import IdentityModelConfig, IdentityNet, PocketIdentity
from focusdpo.pocket.recipes.scorer_samples import lookalikes, two_views


class IdentityRecipe(BaseModel):
    """How the identity encoder is made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: IdentityModelConfig = IdentityModelConfig(size=48, patch=6)
    views: Training = Training(steps=1500, batch=64, lr=1e-3, warmup=60, seed=21)
    temperature: float = Field(0.07, description="of the contrastive loss", gt=0)


def stages(config: IdentityRecipe, model: nn.Module, weights: Path) -> list[Stage]:
    """One."""
    classes = class_names("train")

    def draw(step: int) -> tuple[Tensor, Tensor]:
        seed = config.views.seed * STEP_SEEDS + step
        identities = lookalikes(classes, "train", config.views.batch // 4, seed)
        return two_views(identities, config.model.size, seed)

    def loss(views: tuple[Tensor, Tensor]) -> Tensor:
        here, there = model(torch.cat(views)).chunk(2)
        return contrastive_loss(here, there, config.temperature)

    return [Stage("views", model, draw, loss, config.views)]


def contrastive_loss(first_BD: Tensor, second_BD: Tensor, temperature: float) -> Tensor:
    """InfoNCE both ways on unit vectors: row i of `first` belongs to row i of `second`."""
    logits = first_BD @ second_BD.T / temperature
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def lineage(config: IdentityRecipe) -> Lineage:
    """What the identity encoder is made from."""
    views = config.views
    return Lineage(
        name="identity",
        architecture=("transformers Dinov2Model",),
        init_seed=views.seed,
        streams=(
            stream("views", views.seed, views.batches, plan="views", per_batch=views.batch,
                   items=views.steps * views.batch,
                   items_are="individuals, each in a scene and in a reference", classes="train"),
        ),
    )  # fmt: skip


def settings(config: IdentityRecipe) -> dict[str, Any]:
    """What `PocketIdentity` reads."""
    return {"model": config.model.model_dump(mode="json")}


def measure(weights: Path) -> list[Figure]:
    """On held-out individuals."""
    return identity_figures(PocketIdentity(weights))


RECIPE = Recipe(
    name="identity",
    config=IdentityRecipe,
    what="a DINOv2 (transformers) with a linear head that tells individuals apart",
    data=lambda config: (
        f"{config.views.steps * config.views.batch} individuals of the 32 training classes, each"
        " seen in a spoilt scene and in a reference picture; look-alikes in every batch"
    ),
    build=lambda config, weights: IdentityNet(config.model),
    seed_of=lambda config: config.views.seed,
    stages=stages,
    settings=settings,
    measure=measure,
    lineage=lineage,
)
