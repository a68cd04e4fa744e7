"""The autoencoder's recipe: the encoder is fitted in one go, the decoder trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from focusdpo.pocket.figures import autoencoder_figures, autoencoder_pictures
from focusdpo.pocket.fitting.recipe import Recipe
from focusdpo.pocket.fitting.resuming import step_generator
from focusdpo.pocket.fitting.training import Stage, Training
from focusdpo.pocket.models.autoencoder import ARCHITECTURE, PatchAutoencoder

FIT_SEED = 10**7
"""First batch seed of what the encoder is fitted on; the decoder's are step numbers."""


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
        pictures = [
            autoencoder_pictures("train", 64, FIT_SEED + i) for i in range(config.fit_batches)
        ]
        model.fit([images for pair in pictures for images in pair])
        for values in model.buffers():
            values.copy_(values.half().float())
    return model


def stages(config: AutoencoderRecipe, model: nn.Module, weights: Path) -> list[Stage]:
    """One: the decoder."""
    assert isinstance(model, PatchAutoencoder)
    training = config.decoder

    def draw(step: int) -> list[tuple[Tensor, Tensor]]:
        """Pictures and the noise on their latents, of both sizes."""
        rng = step_generator(training.seed, step)
        patch, channels = model.patch, model.channels
        drawn = []
        for target in autoencoder_pictures("train", training.batch, step):
            b, _, height, width = target.shape
            shape = (b, channels, height // patch, width // patch)
            drawn.append((target, torch.randn(shape, generator=rng)))
        return drawn

    def loss(batch: list[tuple[Tensor, Tensor]]) -> Tensor:
        losses = []
        for target, noise in batch:
            output = model.decode_latents(model.encode_latents(target) + config.noise * noise)
            losses.append(F.mse_loss(output, target) + 0.1 * F.l1_loss(output, target))
        return torch.stack(losses).sum()

    return [Stage("decoder", model, draw, loss, training)]


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
    measure=autoencoder_figures,
)
