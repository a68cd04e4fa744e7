"""From pictures of subjects to the image tokens of IP-Adapter-Plus and to reference latents.

Letters: B images, m image tokens of a reference (16), E their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WHITE = 1.0
_MARGIN = 0.1
"""Share of a subject's longer side that is kept around it on each side."""


def shown_part(mask_HW: Tensor, crop: str) -> tuple[int, int, int, int]:
    """Top, left, bottom, right in pixels of what is shown of a reference: the subject's box with a
    margin, or (crop "whole", or an empty mask) all of it."""
    height, width = mask_HW.shape
    places = mask_HW.nonzero()
    if crop == "whole" or not len(places):
        return 0, 0, height, width
    top, left = (int(v) for v in places.amin(0))
    bottom, right = (int(v) + 1 for v in places.amax(0))
    margin = round(_MARGIN * max(bottom - top, right - left))
    return (
        max(0, top - margin),
        max(0, left - margin),
        min(height, bottom + margin),
        min(width, right + margin),
    )


def framed(image_3HW: Tensor, mask_HW: Tensor, crop: str) -> tuple[Tensor, Tensor]:
    """A reference on white, cut to what is shown and padded to a square: image (3, s, s) in
    [-1, 1] and mask (s, s) in {0, 1}. An empty mask means that all of the picture is the subject.
    """
    mask_HW = mask_HW.float()
    if not mask_HW.any():
        mask_HW = torch.ones_like(mask_HW)
    image_3HW = torch.where(mask_HW.bool(), image_3HW, WHITE)
    top, left, bottom, right = shown_part(mask_HW, crop)
    rows, columns = bottom - top, right - left
    side = max(rows, columns)
    before, above = (side - columns) // 2, (side - rows) // 2
    pad = (before, side - columns - before, above, side - rows - above)
    return (
        F.pad(image_3HW[:, top:bottom, left:right], pad, value=WHITE),
        F.pad(mask_HW[top:bottom, left:right], pad),
    )


def resized(images_BCHW: Tensor, side: int) -> Tensor:
    """Squares (B, C, s, s) brought to side x side by antialiased bilinear interpolation."""
    if images_BCHW.shape[-1] == side:
        return images_BCHW
    size = (side, side)
    return F.interpolate(images_BCHW, size, mode="bilinear", antialias=True, align_corners=False)


def to_bytes(image_3HW: Tensor) -> Tensor:
    """[-1, 1] -> uint8 on the CPU."""
    return ((image_3HW + 1) * 127.5).round().clamp(0, 255).to("cpu", torch.uint8)


class ImageTokens(nn.Module):
    """CLIP's vision tower and IP-Adapter-Plus' resampler: pictures -> image tokens (B, m, E).

    As diffusers' pipelines do it: the official preprocessing, the last but one hidden layer."""

    encoder: Any
    resampler: Any

    def __init__(self, encoder: nn.Module, resampler: nn.Module) -> None:
        from transformers import CLIPImageProcessor

        super().__init__()
        self.encoder, self.resampler = encoder, resampler
        size = self.encoder.config.image_size
        self._preprocess = CLIPImageProcessor(size=size, crop_size=size)

    @torch.no_grad()
    def forward(self, images: Sequence[Tensor]) -> Tensor:
        """Squares of any size, (3, s, s) in [-1, 1] each."""
        pixels = [
            self._preprocess(images=[to_bytes(image)], return_tensors="pt").pixel_values
            for image in images
        ]
        return self._tokens(torch.cat(pixels))

    @torch.no_grad()
    def doubled(self, given_BRmE: Tensor) -> Tensor:
        """For guidance (2B, R, m, E): first as many tokens of no picture, those of an input of
        zeros, then the given ones."""
        size = self.encoder.config.image_size
        none_1mE = self._tokens(torch.zeros(1, 3, size, size)).to(given_BRmE)
        return torch.cat([none_1mE.expand_as(given_BRmE), given_BRmE])

    def _tokens(self, pixels: Tensor) -> Tensor:
        weight = next(self.encoder.parameters())
        pixels = pixels.to(weight.device, weight.dtype)
        tokens: Tensor = self.resampler(
            self.encoder(pixels, output_hidden_states=True).hidden_states[-2]
        )
        return tokens
