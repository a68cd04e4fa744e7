"""The pocket autoencoder: a linear patch encoder and a residual convolutional decoder.

The encoder keeps the 12 principal components of 4 x 4 pixel patches, which holds more of a small
picture than a convolutional encoder of the same width learns in an hour on two cores; and since it
is a formula, decoders can be retrained without touching the latents that the generator knows. It
fits `LatentCodec`, as diffusers' AutoencoderKL does behind `KLCodec`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from focusdpo.pocket import weightfiles

ARCHITECTURE: dict[str, Any] = {
    "patch": 4,
    "latent_channels": 12,
    "width": 64,
    "blocks": 4,
}


def _zero(layer: nn.Module) -> None:
    for values in layer.parameters():
        nn.init.zeros_(values)


class Residual(nn.Module):
    """Two 3 x 3 convolutions beside the identity; starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        _zero(self.second)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


class PatchAutoencoder(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] <-> latents (B, 16, H/4, W/4) of about unit scale."""

    mean: Tensor
    analysis: Tensor
    synthesis: Tensor

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.patch, self.channels = config["patch"], config["latent_channels"]
        patch, channels, width = self.patch, self.channels, config["width"]
        values = 3 * patch * patch
        self.register_buffer("mean", torch.zeros(values))
        self.register_buffer("analysis", torch.zeros(channels, values))
        self.register_buffer("synthesis", torch.zeros(values, channels))
        last = nn.Conv2d(width, values, 3, padding=1)
        self.refine = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            *[Residual(width) for _ in range(config["blocks"])],
            nn.SiLU(),
            last,
        )
        _zero(last)

    def fit(self, images: list[Tensor]) -> None:
        """Sets the projection to the principal components of the images' patches.

        Components are divided by the square root of their standard deviation: between raw
        (fine detail drowns in the noise) and white (fine detail weighs as much as the shapes)."""
        channels = self.channels
        values = torch.cat([self._patches(x).permute(0, 2, 3, 1).flatten(0, 2) for x in images])
        mean = values.mean(0)
        _, scale, basis = torch.linalg.svd(values - mean, full_matrices=False)
        spread = (scale / len(values) ** 0.5)[:channels].sqrt()
        gain = (1 / spread) / (spread.square().mean().sqrt())
        self.mean.copy_(mean)
        self.analysis.copy_(basis[:channels] * gain[:, None])
        self.synthesis.copy_((basis[:channels] / gain[:, None]).T)

    def _patches(self, images: Tensor) -> Tensor:
        return F.pixel_unshuffle(images, self.patch)

    def encode_latents(self, images_BCHW: Tensor) -> Tensor:
        values = self._patches(images_BCHW) - self.mean[:, None, None]
        return torch.einsum("cv,bvhw->bchw", self.analysis, values)

    def decode_latents(self, latents_Bchw: Tensor) -> Tensor:
        linear = torch.einsum("vc,bchw->bvhw", self.synthesis, latents_Bchw)
        values = linear + self.mean[:, None, None] + self.refine(latents_Bchw)
        return F.pixel_shuffle(values, self.patch)


def build_autoencoder(config: dict[str, Any] | None = None) -> PatchAutoencoder:
    """An autoencoder whose projection is not fitted yet."""
    return PatchAutoencoder(config or ARCHITECTURE)


def load_autoencoder(folder: Path | None = None) -> PatchAutoencoder:
    """The trained autoencoder in evaluation mode, float32.

    Raises UserError where the weights are absent or damaged."""
    folder = folder or weightfiles.WEIGHTS
    model = build_autoencoder(weightfiles.read_settings("autoencoder", folder))
    weightfiles.load_weights("autoencoder", model, folder)
    return model.eval().requires_grad_(False)
