"""Backgrounds of the pocket world: two near colours of low chroma each, so that subjects stand
out.

Letters: B items, H = W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from focusdpo.pocket.first.identities import BACKGROUNDS
from focusdpo.pocket.first.sprites import SCENE_SIZE

_COLOURS = (
    ((0.80, 0.74, 0.62), (0.74, 0.67, 0.55)),
    ((0.56, 0.64, 0.48), (0.48, 0.57, 0.42)),
    ((0.55, 0.66, 0.74), (0.64, 0.73, 0.79)),
    ((0.93, 0.94, 0.96), (0.85, 0.87, 0.91)),
    ((0.64, 0.50, 0.45), (0.76, 0.70, 0.65)),
    ((0.58, 0.48, 0.38), (0.50, 0.41, 0.32)),
    ((0.38, 0.38, 0.40), (0.46, 0.46, 0.48)),
    ((0.78, 0.80, 0.80), (0.60, 0.62, 0.63)),
)


def paint_backgrounds(names: Sequence[str], rngs: Sequence[np.random.Generator]) -> Tensor:
    """(B, 3, H, W): two near colours mixed by noise and a regular figure."""
    noise = torch.tensor(np.stack([rng.random((1, 8, 8)) for rng in rngs])).float()
    full = (SCENE_SIZE, SCENE_SIZE)
    noise = F.interpolate(noise, size=full, mode="bicubic", align_corners=False)[:, 0]
    shift = torch.tensor(np.stack([rng.random(2) for rng in rngs])).float() * 16
    kinds = [BACKGROUNDS.index(name) for name in names]
    pixel = torch.arange(SCENE_SIZE) + 0.5
    mixes = torch.stack(
        [
            _figure(name, noise[b], pixel[None] + shift[b, 0], pixel[:, None] + shift[b, 1])
            for b, name in enumerate(names)
        ]
    )
    colours = torch.tensor(_COLOURS)[kinds]
    first, second = colours[:, 0, :, None, None], colours[:, 1, :, None, None]
    return first + (second - first) * mixes[:, None]


def _figure(name: str, noise: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Mix of the two colours, (H, W) in [0, 1]."""
    if name == "water":
        return (0.5 + 0.5 * (y * 0.55 + 2.5 * noise).sin()).clamp(0, 1)
    if name == "wood":
        return (0.4 * noise + 0.8 * ((y % 13) < 1.2).float() + 0 * x).clamp(0, 1)
    if name == "bricks":
        line = ((y % 8) < 1.2) | (((x + 8 * ((y // 8) % 2)) % 16) < 1.2)
        return (0.15 * noise + 0.85 * line.float()).clamp(0, 1)
    if name == "tiles":
        line = ((y % 16) < 1.2) | ((x % 16) < 1.2)
        return (0.1 * noise + 0.85 * line.float()).clamp(0, 1)
    if name == "grass":
        return (noise * 0.7 + 0.3 * (x * 1.3 + 3 * noise).sin()).clamp(0, 1)
    return noise.clamp(0, 1)
