"""Training samples for the scorers: scenes of the pocket world, spoilt like painted images.

Everything is a function of a seed. B items, R subjects, H = W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from focusdpo.pocket.first.identities import (
    PATTERNS,
    Identity,
    Split,
    cell_split,
    draw_identity,
    sample_identities,
)
from focusdpo.pocket.first.world import prompt_for, render_scenes
from focusdpo.pocket.recipes.spoiling import ragged, spoil

__all__ = ["SceneBatch", "lookalikes", "ragged", "scene_batch", "scene_plan", "spoil"]

TWIN_SHARE = 0.15
"""Share of scenes in which two subjects have the same class."""


@dataclass(frozen=True)
class SceneBatch:
    """Scenes with equally many subjects and who stands in them."""

    images: Tensor
    """(B, 3, H, W) in [0, 1]."""
    masks: Tensor
    """(B, R, H, W) bool, disjoint; empty for a subject that is not there."""
    identities: list[list[Identity]]
    """R per scene."""
    prompts: list[str]
    """The scenes' captions; one who crowded in later is not named."""


def scene_batch(
    seed: int, batch: int, classes: Sequence[str], split: Split, *, crowd: float = 0.3
) -> SceneBatch:
    """Scenes with 1, 2 or 3 subjects (20, 45, 35 % of the seeds), spoilt; a share `crowd` gets one
    more subject that touches or covers another."""
    rng = np.random.default_rng([seed, 0x5A])
    rows, seeds = scene_plan(rng, batch, classes, split)
    scenes = render_scenes(rows, seeds)
    prompts = [
        prompt_for([one.class_name for one in row], background)
        for row, background in zip(rows, scenes.backgrounds, strict=True)
    ]
    images, masks = scenes.images, scenes.masks
    if crowd > 0:
        images, masks, rows = _crowd_in(images, masks, rows, crowd, rng)
    return SceneBatch(spoil(images, int(rng.integers(2**31))), masks, rows, prompts)


def scene_plan(
    rng: np.random.Generator, batch: int, classes: Sequence[str], split: Split
) -> tuple[list[list[Identity]], list[int]]:
    """Who stands in each scene of a batch, and the scenes' seeds, which decide background and
    placement."""
    count = int(rng.choice([1, 2, 3], p=[0.2, 0.45, 0.35]))
    drawn = sample_identities(split, classes, batch * count, int(rng.integers(2**31)))
    rows = [drawn[i * count : (i + 1) * count] for i in range(batch)]
    if count > 1:
        for row in rows:
            if rng.random() < TWIN_SHARE:
                row[1] = sample_identities(split, [row[0].class_name], 1, int(rng.integers(2**31)))[
                    0
                ]
    return rows, [int(s) for s in rng.integers(2**31, size=batch)]


def _crowd_in(
    images: Tensor,
    masks: Tensor,
    rows: list[list[Identity]],
    share: float,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor, list[list[Identity]]]:
    """Pastes a subject of the next scene beside or upon one of this scene, in some scenes."""
    images = images.clone()
    masks = torch.cat([masks, torch.zeros_like(masks[:, :1])], 1)
    source_images, source_masks = images.clone(), masks.clone()
    size = images.shape[-1]
    guests = []
    for b, row in enumerate(rows):
        other = (b + 1) % len(rows)
        guest, host = int(rng.integers(len(row))), int(rng.integers(len(row)))
        guests.append(rows[other][guest])
        angle, near = rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.0)
        if rng.random() >= share:
            continue
        body = source_masks[other, guest]
        x0, y0, x1, y1 = _box(body)
        u0, v0, u1, v1 = _box(source_masks[b, host])
        reach = near * (max(x1 - x0, y1 - y0) + max(u1 - u0, v1 - v0)) / 2
        dx = (u0 + u1 - x0 - x1) / 2 + reach * np.cos(angle)
        dy = (v0 + v1 - y0 - y1) / 2 + reach * np.sin(angle)
        shift = (int(np.clip(dy, -y0, size - y1)), int(np.clip(dx, -x0, size - x1)))
        moved = torch.roll(body, shift, (0, 1))
        pixels = torch.roll(source_images[other], shift, (1, 2))
        images[b] = torch.where(moved, pixels, images[b])
        masks[b] &= ~moved
        masks[b, -1] = moved
    return images, masks, [[*row, guest] for row, guest in zip(rows, guests, strict=True)]


def _box(mask: Tensor) -> tuple[int, int, int, int]:
    rows, cols = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    return int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1


def lookalikes(classes: Sequence[str], split: Split, groups: int, seed: int) -> list[Identity]:
    """4 identities a group that are easily taken for one another: one, its class in another hue,
    its class with another pattern, another class in its hue and pattern."""
    rng = np.random.default_rng([seed, 0x10])
    out: list[Identity] = []
    while len(out) < 4 * groups:
        first = draw_identity(str(rng.choice(list(classes))), rng)
        if first.split != split:
            continue
        out.append(first)
        out += [_near(first, kind, classes, split, rng) for kind in ("hue", "pattern", "class")]
    return out


def _near(
    one: Identity, kind: str, classes: Sequence[str], split: Split, rng: np.random.Generator
) -> Identity:
    """`one` with one thing changed; after some vain tries any identity of the split."""
    for _ in range(20):
        hue, pattern, name = one.hue, one.pattern, one.class_name
        if kind == "hue":
            hue = float((hue + rng.uniform(0.07, 0.93)) % 1)
        elif kind == "pattern":
            pattern = PATTERNS[int(rng.integers(len(PATTERNS)))]
        else:
            name = str(rng.choice(list(classes)))
        bin_ = Identity(name, hue, one.saturation, one.lightness, pattern)
        if bin_ != one and cell_split(*bin_.cell) == split:
            return bin_
    return sample_identities(split, classes, 1, int(rng.integers(2**31)))[0]
