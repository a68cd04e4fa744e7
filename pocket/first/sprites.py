"""Bodies: emoji shapes tinted, patterned and placed, with exact alpha.

Letters: B items, H = W pixels, K canvas pixels (supersampled), S sprite pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from focusdpo.pocket.first.identities import ASSETS, PATTERNS, Identity, class_table

SCENE_SIZE = 64
SPRITE_SIZE = 64
SUPERSAMPLE = 2
TILT = 15
"""Largest tilt of a body in a scene, in whole degrees."""
PATTERN_PERIOD = 0.64
"""In sprite coordinates [-1, 1]: about three stripes on a body."""
PATTERN_DEPTH = 0.17
SHADING = 0.36


@dataclass(frozen=True)
class Sprites:
    shade: Tensor
    """(classes, S, S) in [0, 1]: luma stretched within the body."""
    alpha: Tensor
    extent: Tensor
    """(classes,): longer side of the body in sprite coordinates, 2 for a full sprite."""
    centre: Tensor
    """(classes, 2): x, y of the body's middle."""
    reach: NDArray[np.float64]
    """(classes, 2 TILT + 1, 4): x0, y0, x1, y1 of the body from its middle, by tilt in degrees, in
    units of its longer side."""
    index: dict[str, int]


@cache
def load_sprites() -> Sprites:
    shades, alphas, extents, centres, reach = [], [], [], [], []
    for row in class_table().values():
        with Image.open(ASSETS / row["file"]) as image:
            small = image.convert("RGBA").resize((SPRITE_SIZE, SPRITE_SIZE), Image.Resampling.BOX)
        rgba = torch.from_numpy(np.asarray(small).copy()).float() / 255
        alpha = rgba[..., 3]
        luma = rgba[..., :3] @ torch.tensor([0.299, 0.587, 0.114])
        body = alpha > 0.5
        low, high = torch.quantile(luma[body], torch.tensor([0.04, 0.96]))
        rows, cols = body.any(1).nonzero()[:, 0], body.any(0).nonzero()[:, 0]
        box = torch.stack([cols[0], rows[0], cols[-1] + 1, rows[-1] + 1]) * (2 / SPRITE_SIZE) - 1
        shades.append(((luma - low) / (high - low)).clamp(0, 1))
        alphas.append(alpha)
        extents.append((box[2:] - box[:2]).max())
        centres.append((box[2:] + box[:2]) / 2)
        reach.append(_reach(body.numpy()))
    return Sprites(
        shade=torch.stack(shades),
        alpha=torch.stack(alphas),
        extent=torch.stack(extents),
        centre=torch.stack(centres),
        reach=np.stack(reach),
        index={word: i for i, word in enumerate(class_table())},
    )


def _reach(body: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Bounding boxes of a tilted body, as in `Sprites.reach`."""
    rows, cols = np.nonzero(body)
    low = np.array([cols.min(), rows.min()])
    high = np.array([cols.max() + 1, rows.max() + 1])
    # Pixel corners, so that the box holds whole pixels.
    corners = np.concatenate([np.stack([cols + i, rows + j], 1) for i in (0, 1) for j in (0, 1)])
    points = (corners - (low + high) / 2) / (high - low).max()
    angles = np.deg2rad(np.arange(-TILT, TILT + 1))
    x = np.cos(angles)[:, None] * points[:, 0] - np.sin(angles)[:, None] * points[:, 1]
    y = np.sin(angles)[:, None] * points[:, 0] + np.cos(angles)[:, None] * points[:, 1]
    return np.stack([x.min(1), y.min(1), x.max(1), y.max(1)], 1)


def render_bodies(
    identities: Sequence[Identity], layout_B4: NDArray[np.float64], size: int, window: int
) -> tuple[Tensor, Tensor]:
    """Colour premultiplied by alpha (B, 3, size, size) and alpha (B, size, size).

    Only a square of `window` scene pixels around each centre is computed.
    """
    sprites = load_sprites()
    index = torch.tensor([sprites.index[i.class_name] for i in identities])
    x, y, side, tilt = torch.from_numpy(layout_B4).float().unbind(1)
    left, top = ((centre - window / 2).round().clamp(0, SCENE_SIZE - window) for centre in (x, y))
    inner = window * size // SCENE_SIZE
    pixel = (torch.arange(inner * SUPERSAMPLE) + 0.5) / (inner * SUPERSAMPLE) * window
    dx = (pixel[None] + (left - x)[:, None])[:, None]
    dy = (pixel[None] + (top - y)[:, None])[:, :, None]
    zoom = (sprites.extent[index] / side)[:, None, None]
    cos, sin = torch.deg2rad(tilt).cos()[:, None, None], torch.deg2rad(tilt).sin()[:, None, None]
    centre = sprites.centre[index]
    u = (cos * dx + sin * dy) * zoom + centre[:, 0, None, None]
    v = (cos * dy - sin * dx) * zoom + centre[:, 1, None, None]
    picture = F.grid_sample(
        torch.stack([sprites.shade[index], sprites.alpha[index]], 1),
        torch.stack([u, v], -1),
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    )
    alpha = picture[:, 1:]
    colour = _tint(picture[:, 0], _pattern(identities, u, v), identities) * alpha
    small = F.avg_pool2d(torch.cat([colour, alpha], 1), SUPERSAMPLE)
    if window < SCENE_SIZE:
        full = small.new_zeros(len(identities), 4, size, size)
        for b, (row, col) in enumerate(zip(top.int().tolist(), left.int().tolist(), strict=True)):
            full[b, :, row : row + inner, col : col + inner] = small[b]
        small = full
    return small[:, :3], small[:, 3]


def _pattern(identities: Sequence[Identity], u: Tensor, v: Tensor) -> Tensor:
    """(B, K, K) in [0, 1]: 1 where the body is darker. Only the pattern needed is computed."""
    out = torch.zeros_like(u)
    kinds = np.array([PATTERNS.index(i.pattern) for i in identities])
    for kind, name in enumerate(PATTERNS):
        rows = torch.from_numpy(np.flatnonzero(kinds == kind))
        if name == "plain" or len(rows) == 0:
            continue
        a, b = u[rows] * (2 * torch.pi / PATTERN_PERIOD), v[rows] * (2 * torch.pi / PATTERN_PERIOD)
        if name == "horizontal":
            wave = b.sin()
        elif name == "vertical":
            wave = a.sin()
        elif name == "diagonal":
            wave = ((a + b) * 0.7071).sin()
        elif name == "dots":
            wave = a.cos() + b.cos() - 0.5
        else:
            wave = 2 * (a * 0.8).sin() * (b * 0.8).sin()
        out[rows] = (wave * 4 + 0.5).clamp(0, 1)
    return out


def _tint(shade: Tensor, pattern: Tensor, identities: Sequence[Identity]) -> Tensor:
    """HSL to RGB with one hue and saturation per body: (B, 3, K, K)."""
    hue, saturation, lightness = (
        torch.tensor([[getattr(i, name)] for i in identities])[..., None]
        for name in ("hue", "saturation", "lightness")
    )
    light = (lightness + SHADING * (shade - 0.45) - PATTERN_DEPTH * pattern).clamp(0.1, 0.9)
    chroma = (1 - (2 * light - 1).abs()) * saturation
    ramp = torch.stack([((hue * 6 + offset) % 6 - 3).abs() - 1 for offset in (0, 4, 2)], 1).clamp(
        0, 1
    )
    return light[:, None] + chroma[:, None] * (ramp - 0.5)
