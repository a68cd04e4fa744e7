"""Hues of bodies, and how far apart they are. B items, H, W pixels."""

from __future__ import annotations

import torch
from torch import Tensor


def measure_hue(images_BCHW: Tensor, masks_BHW: Tensor) -> tuple[Tensor, Tensor]:
    """Hue in [0, 1) (chroma-weighted circular mean over the mask) and its concentration in
    [0, 1] (1: one hue alone; low: grey or many hues). Images in [0, 1].

    A body has one hue at every pixel by construction, so this is exact but for edge pixels.
    """
    red, green, blue = images_BCHW.float().unbind(1)
    high, low = images_BCHW.float().amax(1), images_BCHW.float().amin(1)
    chroma = high - low
    safe = chroma.clamp_min(1e-6)
    sixth = torch.where(
        high == red,
        (green - blue) / safe % 6,
        torch.where(high == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    angle = sixth * (torch.pi / 3)
    weight = chroma * masks_BHW.float()
    total = weight.sum((-2, -1)).clamp_min(1e-6)
    x = (weight * angle.cos()).sum((-2, -1)) / total
    y = (weight * angle.sin()).sum((-2, -1)) / total
    return (torch.atan2(y, x) / (2 * torch.pi)) % 1.0, torch.hypot(x, y)


def hue_distance(first: Tensor, second: Tensor) -> Tensor:
    """Circular distance of hues in [0, 1): 0 to 0.5."""
    difference = (first - second).abs() % 1.0
    return torch.minimum(difference, 1 - difference)
