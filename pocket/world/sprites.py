"""Bodies: class pictures recoloured, patterned, marked and placed, with exact alpha.

Letters: K bodies, S sprite pixels, W pixels of the square that a body is rendered in. Sprite
coordinates run from -1 to 1; a body's longer side is 2 in its own coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache, lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

from focusdpo.pocket.classes import ASSETS, PATTERNS, class_table
from focusdpo.pocket.world.identities import MARKS, Identity

SPRITE_SIZE = 96
TILT = 15
"""Largest tilt of a body in a scene, in whole degrees."""
PATTERN_PERIOD = 0.5
"""Of a body's longer side's half: about four stripes on a body."""
PATTERN_DEPTH = {"dark": -0.26, "light": 0.26}
"""What a pattern adds to lightness where it is full."""
GREY_TINT = 0.32
"""Chroma that a grey pixel of middle lightness gets, so that grey things have individuals too."""
GREY_BELOW = 0.22
"""Chroma below which a pixel counts as grey."""
LOOSE_SHARE = 0.06
"""Loose pieces of a picture (sparks, flakes) below this share of its area are left out."""


@dataclass(frozen=True)
class Sprites:
    """The class pictures taken apart, C classes."""

    hue: Tensor
    """(C, S, S) in [0, 1): HSL's."""
    chroma: Tensor
    """(C, S, S) in [0, 1]: HSL's, the difference of the largest and the least channel."""
    light: Tensor
    """(C, S, S) in [0, 1]: HSL's."""
    grey: Tensor
    """(C, S, S) in [0, 1]: how grey a pixel is."""
    alpha: Tensor
    second: Tensor
    """(C, S, S) in [0, 1]: the part of other colours than most of the body."""
    patterns: Tensor
    """(C, patterns, S, S) in [0, 1]."""
    marks: Tensor
    """(C, marks, 2, S, S) in [0, 1]: cover, and how white it is."""
    extent: Tensor
    """(C,): longer side of the body in sprite coordinates, 2 for a full sprite."""
    centre: Tensor
    """(C, 2): x, y of the body's middle in sprite coordinates."""
    reach: NDArray[np.float64]
    """(C, 2 TILT + 1, 4): x0, y0, x1, y1 of the body from its middle, by tilt in degrees, in units
    of its longer side."""
    index: dict[str, int]


@cache
def load_sprites() -> Sprites:
    """All class pictures; half a second once per process."""
    table = class_table()
    pictures = [_read_sprite(row["file"]) for row in table.values()]
    rgb, alpha = torch.stack([p[:3] for p in pictures]), torch.stack([p[3] for p in pictures])
    hue, chroma, light = to_hsl(rgb)
    body = alpha > 0.5
    extent, centre, half = _boxes(body)
    second = torch.stack([
        _second_part(*maps) for maps in zip(hue, chroma, light, body, strict=True)
    ])  # fmt: skip
    grey = (1 - chroma / GREY_BELOW).clamp(0, 1)
    u, v = _body_coordinates(extent, centre)
    return Sprites(
        hue=_without_grey_hues(hue, chroma, body),
        chroma=chroma,
        light=light,
        grey=grey,
        alpha=alpha,
        second=second,
        patterns=_pattern_maps(u, v),
        marks=_mark_maps(u, v, half),
        extent=extent,
        centre=centre,
        reach=np.stack([_reach(each.numpy()) for each in body]),
        index={word: i for i, word in enumerate(table)},
    )


def _read_sprite(file: str) -> Tensor:
    """(4, S, S) in [0, 1] without loose pieces."""
    with Image.open(ASSETS / file) as image:
        small = image.convert("RGBA").resize((SPRITE_SIZE, SPRITE_SIZE), Image.Resampling.BOX)
    rgba = np.asarray(small).astype(np.float32) / 255
    labels, count = ndimage.label(rgba[..., 3] > 0.1)
    areas = ndimage.sum_labels(np.ones_like(labels), labels, np.arange(count + 1))
    keep = areas >= LOOSE_SHARE * areas[1:].sum()
    keep[0] = True
    rgba[..., 3] *= keep[labels]
    return torch.from_numpy(rgba).permute(2, 0, 1).contiguous()


def to_hsl(rgb_C3SS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue in [0, 1), chroma and lightness in [0, 1] of pictures in [0, 1]."""
    red, green, blue = rgb_C3SS.unbind(1)
    high, low = rgb_C3SS.amax(1), rgb_C3SS.amin(1)
    chroma = high - low
    safe = chroma.clamp_min(1e-6)
    sixth = torch.where(
        high == red,
        (green - blue) / safe % 6,
        torch.where(high == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    return sixth / 6 % 1, chroma, (high + low) / 2


def to_rgb(hue: Tensor, chroma: Tensor, light: Tensor) -> Tensor:
    """(K, S, S) each -> (K, 3, S, S) in [0, 1]; chroma is cut to what the lightness allows."""
    chroma = torch.minimum(chroma, 1 - (2 * light - 1).abs())
    ramps = [((hue * 6 + offset) % 6 - 3).abs().sub(1).clamp(0, 1) for offset in (0, 4, 2)]
    return light[:, None] + chroma[:, None] * (torch.stack(ramps, 1) - 0.5)


def _boxes(body_CSS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    extents, centres, halves = [], [], []
    for body in body_CSS:
        rows, cols = body.any(1).nonzero()[:, 0], body.any(0).nonzero()[:, 0]
        box = torch.stack([cols[0], rows[0], cols[-1] + 1, rows[-1] + 1]) * (2 / SPRITE_SIZE) - 1
        sides = box[2:] - box[:2]
        extents.append(sides.max())
        centres.append((box[2:] + box[:2]) / 2)
        halves.append(sides / sides.max() / 2)
    return torch.stack(extents), torch.stack(centres), torch.stack(halves)


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


def _body_coordinates(extent: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """(C, S, S) each: x and y of sprite pixels, the body's longer side from -1 to 1."""
    pixel = (torch.arange(SPRITE_SIZE) + 0.5) / SPRITE_SIZE * 2 - 1
    scale = 2 / extent[:, None, None]
    u = (pixel[None, None, :] - centre[:, 0, None, None]) * scale
    v = (pixel[None, :, None] - centre[:, 1, None, None]) * scale
    return torch.broadcast_tensors(u, v)  # type: ignore[return-value]


def _second_part(hue: Tensor, chroma: Tensor, light: Tensor, body: Tensor) -> Tensor:
    """(S, S): the smaller of two clusters of the body's colours, its edge softened."""
    angle = hue * 2 * torch.pi
    features = torch.stack([light, chroma * angle.cos(), chroma * angle.sin()], -1)
    points = features[body]
    spread = points - points.mean(0)
    axis = torch.linalg.svd(spread, full_matrices=False)[2][0]
    reach = spread @ axis
    centres = torch.stack([points[reach.argmin()], points[reach.argmax()]])
    for _ in range(12):
        owner = torch.cdist(points, centres).argmin(1)
        centres = torch.stack([points[owner == k].mean(0) for k in range(2)])
    smaller = int((owner == 1).float().mean() < 0.5)
    nearest = torch.cdist(features, centres).argmin(-1) == smaller
    part = ndimage.median_filter((nearest & body).numpy().astype(np.float32), 5)
    return torch.from_numpy(ndimage.gaussian_filter(part, 0.6))


def _without_grey_hues(hue: Tensor, chroma: Tensor, body: Tensor) -> Tensor:
    """Grey pixels have chance hues: they take the body's chroma-weighted mean."""
    weight = chroma * body
    x = (weight * (hue * 2 * torch.pi).cos()).sum((1, 2))
    y = (weight * (hue * 2 * torch.pi).sin()).sum((1, 2))
    mean = (torch.atan2(y, x) / (2 * torch.pi) % 1)[:, None, None]
    return torch.where(chroma < GREY_BELOW / 2, mean, hue)


def _pattern_maps(u: Tensor, v: Tensor) -> Tensor:
    """(C, patterns, S, S) in [0, 1]: 1 where the ink is."""
    a, b = u * (2 * torch.pi / PATTERN_PERIOD), v * (2 * torch.pi / PATTERN_PERIOD)
    waves = {
        "plain": torch.full_like(u, -1.0),
        "horizontal": b.sin(),
        "vertical": a.sin(),
        "diagonal": ((a + b) * 0.7071).sin(),
        "dots": a.cos() + b.cos() - 0.5,
        "checker": 2 * (a * 0.6).sin() * (b * 0.6).sin(),
    }
    return torch.stack([(waves[name] * 4 + 0.5).clamp(0, 1) for name in PATTERNS], 1)


def _mark_maps(u: Tensor, v: Tensor, half: Tensor) -> Tensor:
    """(C, marks, 2, S, S): a patch on one corner, a band, a badge with a white rim."""
    wide, high = half[:, 0, None, None] * 2, half[:, 1, None, None] * 2

    def disc(x: Tensor, y: Tensor, radius: float) -> Tensor:
        return ((radius - torch.hypot(u - x, v - y)) * 20 + 0.5).clamp(0, 1)

    zero = torch.zeros_like(u)
    badge = disc(zero, 0.1 * high, 0.3)
    cover = {
        "none": (zero, zero),
        "patch": (disc(-0.5 * wide, -0.45 * high, 0.55), zero),
        "band": (((0.13 - (v - 0.3 * high).abs()) * 20 + 0.5).clamp(0, 1), zero),
        "badge": (badge, badge - disc(zero, 0.1 * high, 0.2)),
    }
    return torch.stack([torch.stack(cover[name], 1) for name in MARKS], 1)


@lru_cache(maxsize=2)
def recolour(identities: tuple[Identity, ...]) -> Tensor:
    """(K, 4, S, S): colours premultiplied by alpha, and alpha. Not to be written into: a scene and
    its references share it."""
    sprites = load_sprites()
    index = torch.tensor([sprites.index[i.class_name] for i in identities])
    numbers = torch.tensor(
        [[i.hue, i.second_hue, i.saturation, i.lightness, PATTERN_DEPTH[i.ink]]
         for i in identities]
    )  # fmt: skip
    turn, turn_second, saturation, lightness, depth = numbers.T[..., None, None]
    second, light = sprites.second[index], sprites.light[index]
    hue = (sprites.hue[index] + torch.where(second > 0.5, turn_second, turn)) % 1
    free = 1 - (2 * light - 1).abs()
    chroma = sprites.chroma[index] * saturation + GREY_TINT * sprites.grey[index] * free
    pattern = sprites.patterns[index, torch.tensor([PATTERNS.index(i.pattern) for i in identities])]
    # Eyes and outlines stay dark under a pattern: a face is what tells a class.
    pattern = pattern * ((light - 0.15) / 0.2).clamp(0, 1)
    light = (light + lightness + depth * pattern).clamp(0.06, 0.95)
    colour = to_rgb(hue, chroma, light)
    marked = [k for k, subject in enumerate(identities) if subject.mark != "none"]
    if marked:
        colour[marked] = _marked(colour[marked], [identities[k] for k in marked])
    alpha = sprites.alpha[index][:, None]
    return torch.cat([colour * alpha, alpha], 1)


def _marked(colour_K3SS: Tensor, identities: Sequence[Identity]) -> Tensor:
    """Bodies with their marks on, which keep some of the body's shading, so that they lie on it and
    not before it."""
    sprites = load_sprites()
    index = torch.tensor([sprites.index[i.class_name] for i in identities])
    hue = torch.tensor([i.mark_hue for i in identities])[:, None, None]
    marks = sprites.marks[index, torch.tensor([MARKS.index(i.mark) for i in identities])]
    cover, white = marks[:, :, None].unbind(1)
    shade = (sprites.light[index] * 0.45 + 0.3).clamp(0, 1)
    paint = to_rgb(hue.expand_as(shade), torch.full_like(shade, 0.75), shade)
    paint = torch.lerp(paint, torch.full_like(paint, 0.97), white)
    return torch.lerp(colour_K3SS, paint, cover)


@dataclass(frozen=True, slots=True)
class Poses:
    """Where and how K bodies stand, in pixels of the picture."""

    x: NDArray[np.float64]
    """(K,) centre of the body's box before tilting."""
    y: NDArray[np.float64]
    side: NDArray[np.float64]
    """Longer side of the upright body."""
    tilt: NDArray[np.float64]
    """Degrees, clockwise."""
    mirrored: NDArray[np.bool_]

    @classmethod
    def joined(cls, parts: Sequence[Poses]) -> Poses:
        """All bodies of `parts` in one."""
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def render_bodies(identities: Sequence[Identity], poses: Poses, size: int) -> Tensor:
    """(K, 4, size, size): colours premultiplied by alpha, and alpha."""
    sheets = recolour(tuple(identities))
    matrix = _placement(identities, poses, size)
    # Bilinear sampling skips pixels where it shrinks by more than two: small bodies are sampled
    # from halved sprites.
    large = torch.from_numpy(np.asarray(poses.side) > SPRITE_SIZE / 2.4)
    out = sheets.new_zeros(len(sheets), 4, size, size)
    for rows, halved in ((large, False), (~large, True)):
        which = rows.nonzero()[:, 0]
        if len(which):
            source = F.avg_pool2d(sheets[which], 2) if halved else sheets[which]
            shape = [len(which), 4, size, size]
            grid = F.affine_grid(matrix[which], shape, align_corners=False)
            out[which] = F.grid_sample(source, grid, padding_mode="zeros", align_corners=False)
    return out


def _placement(identities: Sequence[Identity], poses: Poses, size: int) -> Tensor:
    """(K, 2, 3): from places in the picture, -1 to 1, to sprite coordinates."""
    sprites = load_sprites()
    index = torch.tensor([sprites.index[i.class_name] for i in identities])
    x, y, side, tilt, flip = torch.from_numpy(
        np.stack(
            [poses.x, poses.y, poses.side, np.deg2rad(poses.tilt), np.where(poses.mirrored, -1, 1)]
        ).astype(np.float32)
    )
    zoom = sprites.extent[index] / side
    cos, sin = tilt.cos() * zoom, tilt.sin() * zoom
    half = size / 2
    dx, dy = half - x, half - y
    centre = sprites.centre[index]
    across = [cos * half, sin * half, cos * dx + sin * dy]
    down = [-sin * half, cos * half, cos * dy - sin * dx + centre[:, 1]]
    across = [flip * term for term in across]
    across[2] = across[2] + centre[:, 0]
    return torch.stack([torch.stack(across, 1), torch.stack(down, 1)], 1)
