"""The autoencoder's recipe: the encoder is fitted in one go, the decoder trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from focusdpo.pocket.autoencoder import PatchAutoencoder, load_autoencoder
from focusdpo.pocket.cards import Figure
from focusdpo.pocket.classes import Split, class_names
from focusdpo.pocket.second.casting import draw_cast
from focusdpo.pocket.second.generator import frame_references
from focusdpo.pocket.second.recipes.checkpoints import step_generator
from focusdpo.pocket.second.recipes.recipe import Recipe
from focusdpo.pocket.second.recipes.training import Stage, Training
from focusdpo.pocket.second.world import render_references, render_scenes

ARCHITECTURE: dict[str, Any] = {"patch": 4, "latent_channels": 12, "width": 64, "blocks": 4}
FIT_SEED = 10**7
"""First batch seed of what the encoder is fitted on; the decoder's are step numbers."""
TEST_SEED = 2 * 10**6


class AutoencoderRecipe(BaseModel):
    """How the autoencoder is made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: dict[str, Any] = Field(ARCHITECTURE, description="of PatchAutoencoder")
    fit_batches: int = Field(8, description="batches of 64 that the encoder is fitted on", ge=1)
    decoder: Training = Training(
        steps=3000, batch=32, lr=2e-3, warmup=50, cooldown=0.7, weight_decay=1e-3, seed=0
    )
    noise: float = Field(
        0.1, ge=0, description="noise on the latents, so that painted latents decode well"
    )


def build(config: AutoencoderRecipe, weights: Path) -> PatchAutoencoder:
    """Its encoder is final: principal components, rounded to the half precision in which weights
    are stored, so that latents before and after saving are the same."""
    model = PatchAutoencoder(config.architecture)
    with torch.no_grad():
        pictures = [pictures_of("train", 64, FIT_SEED + i) for i in range(config.fit_batches)]
        model.fit([images for pair in pictures for images in pair])
        for values in model.buffers():
            values.copy_(values.half().float())
    return model


def stages(config: AutoencoderRecipe, model: nn.Module, weights: Path) -> list[Stage]:
    """One: the decoder."""
    assert isinstance(model, PatchAutoencoder)
    training = config.decoder

    def loss_of_step(step: int) -> Tensor:
        rng = step_generator(training.seed, step)
        losses = []
        for target in pictures_of("train", training.batch, step):
            latents = model.encode_latents(target)
            noise = torch.randn(latents.shape, generator=rng)
            output = model.decode_latents(latents + config.noise * noise)
            losses.append(F.mse_loss(output, target) + 0.1 * F.l1_loss(output, target))
        return torch.stack(losses).sum()

    return [Stage("decoder", model, loss_of_step, training)]


def pictures_of(split: Split, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Half scenes (count / 2, 3, 96, 96), half framed references (count / 2, 3, 40, 40), in
    [-1, 1]."""
    rng = np.random.default_rng([seed, 0xAE])
    half, classes = count // 2, class_names(split)
    casts = [draw_cast(split, classes, 1 + seed % 3, rng) for _ in range(half)]
    scenes = render_scenes(casts, rng.integers(2**31, size=half).tolist())
    alone = [cast[0] for cast in casts]
    pictures, masks = render_references(alone, rng.integers(2**31, size=half).tolist())
    framed, _ = frame_references(pictures * 2 - 1, masks.float())
    return scenes.images * 2 - 1, framed


@torch.no_grad()
def measure(weights: Path) -> list[Figure]:
    """PSNR of held-out individuals of held-out classes, mean over pictures."""
    model = load_autoencoder(weights)
    batches = [pictures_of("held_out", 64, TEST_SEED + i) for i in range(3)]
    values = []
    for images in zip(*batches, strict=True):
        target = torch.cat(images)
        values.append(psnr(model.decode_latents(model.encode_latents(target)), target))
    return [
        Figure("autoencoder", "PSNR of scenes in dB", values[0], ">= 32"),
        Figure("autoencoder", "PSNR of framed references in dB", values[1], ""),
    ]


def psnr(output: Tensor, target: Tensor) -> float:
    """Mean over images in [-1, 1], in dB."""
    error = ((output.clamp(-1, 1) - target) / 2).square().flatten(1).mean(1)
    return float((-10 * error.log10()).mean())


RECIPE = Recipe(
    name="autoencoder",
    config=AutoencoderRecipe,
    what="a linear patch encoder (principal components) with a residual convolutional decoder",
    data=lambda config: (
        f"{config.fit_batches * 64} pictures for the encoder and"
        f" {config.decoder.steps * config.decoder.batch} for the decoder, half of them scenes of 1"
        " to 3 subjects and half framed references, of the 32 training classes"
    ),
    build=build,
    seed_of=lambda config: config.decoder.seed,
    stages=stages,
    settings=lambda config: dict(config.architecture),
    measure=measure,
)
