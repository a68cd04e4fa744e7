"""The pocket world: scenes and references of identities, rendered with exact masks.

Letters: B items, R subjects of a scene, H = W pixels, K canvas pixels (supersampled), S sprite
pixels. Item b depends on its identities, background and seed alone, not on the batch around it.
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

from focusdpo.data_schemas.errors import UserError
from focusdpo.pocket.identities import (
    ASSETS,
    BACKGROUNDS,
    PATTERNS,
    Identity,
    class_names,
    class_table,
)

SCENE_SIZE = 64
SPRITE_SIZE = 64
SUPERSAMPLE = 2
GAP = 2
"""Pixels between the boxes of two subjects."""
STEP_RIGHT = 6
"""Pixels by which a subject's centre lies right of the one named before it."""
TILT = 15
SIZES = {1: (30, 40), 2: (25, 31), 3: (19, 24)}
"""Longer side of an upright subject in pixels by the number of subjects."""
WINDOWS = {1: 52, 2: 40, 3: 32}
"""Side of the square in which one subject is rendered: no tilted body reaches beyond it."""
PATTERN_PERIOD = 0.64
"""In sprite coordinates [-1, 1]: about three stripes on a body."""
PATTERN_DEPTH = 0.17
SHADING = 0.36

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


@dataclass(frozen=True)
class Scenes:
    """Rendered scenes with R subjects each."""

    images: Tensor
    """(B, 3, H, W) in [0, 1]."""
    masks: Tensor
    """(B, R, H, W) bool: pixels that a subject covers by more than half."""
    boxes: Tensor
    """(B, R, 4) int64: x0, y0, x1, y1 of the masks, end exclusive."""
    backgrounds: tuple[str, ...]


@dataclass(frozen=True)
class _Sprites:
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
def _sprites() -> _Sprites:
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
    return _Sprites(
        shade=torch.stack(shades),
        alpha=torch.stack(alphas),
        extent=torch.stack(extents),
        centre=torch.stack(centres),
        reach=np.stack(reach),
        index={word: i for i, word in enumerate(class_table())},
    )


def _reach(body: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Bounding boxes of a tilted body, as in `_Sprites.reach`."""
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


def render_scenes(
    identities: Sequence[Sequence[Identity]],
    seeds: Sequence[int],
    backgrounds: Sequence[str] | None = None,
) -> Scenes:
    """Scenes of identities[b] (R each, 1 to 3), subjects from left to right in that order.

    Without `backgrounds` each seed chooses its own. Raises UserError for an unknown background.
    """
    counts = {len(row) for row in identities}
    if len(counts) != 1 or not counts <= set(SIZES) or len(identities) != len(seeds):
        raise UserError(
            f"render_scenes: got {sorted(counts)} subjects per scene and {len(seeds)} seeds for"
            f" {len(identities)} scenes; every scene needs the same 1 to 3 subjects and one seed"
        )
    rngs = [np.random.default_rng([seed, 0x5C]) for seed in seeds]
    names = _choose_backgrounds(rngs, backgrounds)
    count = counts.pop()
    layouts = np.stack([_layout(rng, row) for rng, row in zip(rngs, identities, strict=True)])
    image = _paint_backgrounds(names, rngs)
    bodies = [
        _render_bodies([row[r] for row in identities], layouts[:, r], SCENE_SIZE, WINDOWS[count])
        for r in range(count)
    ]
    shadow = _shadow(torch.stack([alpha for _, alpha in bodies], 1).amax(1))
    image = image * (1 - shadow[:, None])
    for colour, alpha in bodies:
        image = image * (1 - alpha[:, None]) + colour
    brightness = torch.tensor(np.array([rng.uniform(0.9, 1.0) for rng in rngs]))
    masks = torch.stack([alpha > 0.5 for _, alpha in bodies], 1)
    return Scenes(
        images=(image * brightness.float()[:, None, None, None]).clamp(0, 1),
        masks=masks,
        boxes=_boxes(masks),
        backgrounds=names,
    )


def render_references(
    identities: Sequence[Identity], seeds: Sequence[int], size: int = 64
) -> tuple[Tensor, Tensor]:
    """One picture per identity on white: images (B, 3, size, size) in [0, 1], masks (B, size,
    size) bool. Pose, scale and shade differ from any scene's."""
    rngs = [np.random.default_rng([seed, 0x2E]) for seed in seeds]
    layout = np.stack([_reference_pose(rng) for rng in rngs])
    colour, alpha = _render_bodies(identities, layout, size, SCENE_SIZE)
    shade = torch.tensor(np.array([rng.uniform(0.92, 1.0) for rng in rngs])).float()
    image = colour * shade[:, None, None, None] + 1 - alpha[:, None]
    return image.clamp(0, 1), alpha > 0.5


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


def prompt_for(classes: Sequence[str], background: str) -> str:
    """The world's caption of a scene with 1 to 3 subjects."""
    head = ", ".join(f"a {word}" for word in classes[:-1])
    last = f"a {classes[-1]}"
    return f"{head} and {last} on {background}" if head else f"{last} on {background}"


def _choose_backgrounds(
    rngs: Sequence[np.random.Generator], backgrounds: Sequence[str] | None
) -> tuple[str, ...]:
    drawn = [BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))] for rng in rngs]
    if backgrounds is None:
        return tuple(drawn)
    unknown = sorted(set(backgrounds) - set(BACKGROUNDS))
    if unknown or len(backgrounds) != len(rngs):
        raise UserError(
            f"pocket world: backgrounds {unknown or len(backgrounds)} do not fit; give one per"
            f" scene, each of {', '.join(BACKGROUNDS)}"
        )
    return tuple(backgrounds)


def _layout(rng: np.random.Generator, identities: Sequence[Identity]) -> NDArray[np.float64]:
    """(R, 4): centre x, centre y, longer side in pixels, tilt in degrees. Bodies lie inside the
    scene, their boxes GAP apart, centres from left to right. Where no place is found for the drawn
    sizes, all shrink a little and are placed again."""
    count = len(identities)
    sizes = rng.uniform(*SIZES[count], count)
    tilts = rng.integers(-TILT, TILT + 1, count)
    sprites = _sprites()
    unit = sprites.reach[[sprites.index[i.class_name] for i in identities], tilts + TILT]
    while True:
        boxes = unit * sizes[:, None]
        low, high = 1 - boxes[:, :2], SCENE_SIZE - 1 - boxes[:, 2:]
        tries = low + rng.random((48, count, 2)) * (high - low)
        good = (np.diff(tries[..., 0], axis=1) >= STEP_RIGHT).all(1) & _apart(tries, boxes)
        if good.any():
            return np.concatenate([tries[good.argmax()], sizes[:, None], tilts[:, None]], 1)
        sizes = sizes * 0.97


def _apart(centres_TR2: NDArray[np.float64], boxes_R4: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of T placements keep all boxes GAP apart in x or in y."""
    low, high = centres_TR2 + boxes_R4[:, :2], centres_TR2 + boxes_R4[:, 2:]
    clear = np.any(low[:, :, None] - high[:, None] >= GAP, axis=-1)
    same = np.eye(len(boxes_R4), dtype=bool)
    return np.asarray((clear | np.swapaxes(clear, 1, 2) | same).all((1, 2)))


def _reference_pose(rng: np.random.Generator) -> NDArray[np.float64]:
    side = rng.uniform(44, 54)
    room = (SCENE_SIZE - side * 1.1) / 2
    x, y = SCENE_SIZE / 2 + rng.uniform(-0.6, 0.6, 2) * room
    return np.array([x, y, side, rng.uniform(-8, 8)])


def _render_bodies(
    identities: Sequence[Identity], layout_B4: NDArray[np.float64], size: int, window: int
) -> tuple[Tensor, Tensor]:
    """Colour premultiplied by alpha (B, 3, size, size) and alpha (B, size, size).

    Only a square of `window` scene pixels around each centre is computed.
    """
    sprites = _sprites()
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


def _shadow(alpha_BHW: Tensor) -> Tensor:
    """A soft shadow below and right of the bodies: darkness in [0, 0.35]."""
    soft = F.avg_pool2d(alpha_BHW[:, None], 5, 1, 2, count_include_pad=True)[:, 0]
    return 0.35 * F.pad(soft, (2, 0, 3, 0))[:, : soft.shape[1], : soft.shape[2]]


def _paint_backgrounds(names: Sequence[str], rngs: Sequence[np.random.Generator]) -> Tensor:
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


def _boxes(masks_BRHW: Tensor) -> Tensor:
    """Boxes of masks; an empty mask gives zeros."""
    rows, cols = masks_BRHW.any(-1), masks_BRHW.any(-2)
    size_y, size_x = rows.shape[-1], cols.shape[-1]
    x0, y0 = cols.int().argmax(-1), rows.int().argmax(-1)
    x1 = size_x - cols.flip(-1).int().argmax(-1)
    y1 = size_y - rows.flip(-1).int().argmax(-1)
    boxes = torch.stack([x0, y0, x1, y1], -1)
    return boxes * rows.any(-1)[..., None]


__all__ = [
    "BACKGROUNDS",
    "SCENE_SIZE",
    "Scenes",
    "class_names",
    "hue_distance",
    "measure_hue",
    "prompt_for",
    "render_references",
    "render_scenes",
]
