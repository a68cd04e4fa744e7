"""Trains the identity encoder: `python -m focusdpo.pocket.first.recipes.identity --out DIR`.

Two views of each identity meet in a batch: cut from a spoilt scene by a ragged mask, and from a
reference picture. The batch holds look-alikes, so that class alone and hue alone do not help.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from focusdpo.pocket.cards import Figure, write_card
from focusdpo.pocket.crops import crop_subjects
from focusdpo.pocket.first.figures import identity_figures
from focusdpo.pocket.first.identities import Identity, class_names
from focusdpo.pocket.first.recipes.fitting import FitConfig, fit
from focusdpo.pocket.first.recipes.running import run_recipe
from focusdpo.pocket.first.recipes.samples import lookalikes, ragged, spoil
from focusdpo.pocket.first.world import render_references, render_scenes
from focusdpo.pocket.lineage import STEP_SEEDS, Lineage, stream
from focusdpo.pocket.models.identity import IdentityModelConfig, IdentityNet, PocketIdentity
from focusdpo.pocket.weightfiles import save_weights


class IdentityRecipe(BaseModel):
    """How the identity encoder is made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: IdentityModelConfig = IdentityModelConfig()
    fit: FitConfig = FitConfig(steps=240, batch=64, lr=1e-3, warmup=30, seed=21)
    temperature: float = Field(0.07, description="of the contrastive loss", gt=0)


def train(config: IdentityRecipe, out_dir: Path) -> list[Figure]:
    """Writes identity.safetensors, .json and .md to `out_dir`; returns the held-out figures."""
    torch.manual_seed(config.fit.seed)
    net = IdentityNet(config.model)
    classes = class_names("train")

    def loss_of_step(step: int) -> Tensor:
        seed = config.fit.seed * STEP_SEEDS + step
        identities = lookalikes(classes, "train", config.fit.batch // 4, seed)
        first, second = two_views(identities, config.model.size, seed)
        here, there = net(torch.cat([first, second])).chunk(2)
        return contrastive_loss(here, there, config.temperature)

    fitted = fit(net, loss_of_step, config.fit, out_dir)
    save_weights("identity", net, {"model": config.model.model_dump()}, out_dir)
    figures = identity_figures(PocketIdentity(out_dir))
    write_card(
        "identity",
        out_dir,
        what="a DINOv2 (transformers) with a linear head that tells individuals apart",
        data=f"{config.fit.steps * config.fit.batch} identities of the 32 training classes, each"
        " seen in a spoilt scene and in a reference picture; look-alikes in every batch",
        seconds=fitted.seconds,
        figures=figures,
        module=net,
        lineage=lineage(config),
    )
    return figures


def lineage(config: IdentityRecipe) -> Lineage:
    """What the identity encoder is made from."""
    fitted = config.fit
    return Lineage(
        name="identity",
        architecture=("transformers Dinov2Model",),
        init_seed=fitted.seed,
        streams=(
            stream("individuals", fitted.seed, fitted.batches, plan="views",
                   per_batch=fitted.batch, items=fitted.steps * fitted.batch,
                   items_are="individuals, each in a scene and in a reference", classes="train"),
        ),
    )  # fmt: skip


def two_views(identities: list[Identity], size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Crops (B, 3, S, S) of each identity: from a scene (1 to 3 subjects) and from a reference."""
    scene_seeds, poses, count = view_plan(len(identities), seed)
    padded = identities + identities[: -len(identities) % count]
    rows = [padded[i : i + count] for i in range(0, len(padded), count)]
    scenes = render_scenes(rows, scene_seeds[: len(rows)])
    images = spoil(scenes.images, seed)
    masks = ragged(scenes.masks.flatten(0, 1), seed)
    crops = crop_subjects(images.repeat_interleave(count, 0), masks, size)[: len(identities)]
    pictures, bodies = render_references(identities, poses)
    return crops, crop_subjects(pictures, bodies, size)


def view_plan(identities: int, seed: int) -> tuple[list[int], list[int], int]:
    """Seeds of the scenes (one for each identity, of which as many are used as there are scenes),
    seeds of the references, and how many subjects a scene has."""
    rng = torch.Generator().manual_seed(seed)
    scenes, poses = torch.randint(2**31, (2, identities), generator=rng).tolist()
    return scenes, poses, int(torch.randint(1, 4, (), generator=rng))


def contrastive_loss(first_BD: Tensor, second_BD: Tensor, temperature: float) -> Tensor:
    """InfoNCE both ways on unit vectors: row i of one belongs to row i of the other."""
    logits = first_BD @ second_BD.T / temperature
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


if __name__ == "__main__":
    run_recipe("identity", IdentityRecipe, train)
