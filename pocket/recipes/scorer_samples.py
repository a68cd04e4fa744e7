"""Training samples for the scorers: scenes of the pocket world, spoilt like painted images.

Everything is a function of a seed. B items, R subjects, H = W pixels, S pixels of a crop's side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from focusdpo.pocket.classes import PATTERNS, Split
from focusdpo.pocket.crops import crop_subjects
from focusdpo.pocket.recipes.spoiling import ragged, spoil
from focusdpo.pocket.world.casting import differ, draw_cast
from focusdpo.pocket.world.grammar import draw_prompt
from focusdpo.pocket.world.identities import MARKS, Identity, draw_identity, draw_of_split
from focusdpo.pocket.world.world import (
    SCENE_SIZE,
    Overlap,
    render_references,
    render_scenes,
)

COUNT_SHARES = (0.25, 0.35, 0.25, 0.15)
"""Shares of scenes with 1, 2, 3, 4 subjects."""
CROWDED = Overlap(share=0.6, most=0.4)
"""More overlap than the world has: painters let bodies touch."""
LEAST_PIXELS = 80
"""Of a body, to be cut out and named."""


@dataclass(frozen=True)
class SceneBatch:
    """Scenes of 1 to R subjects and who stands in them."""

    images: Tensor
    """(B, 3, H, W) in [0, 1]."""
    masks: Tensor
    """(B, R, H, W) bool, disjoint; empty beyond a scene's own subjects."""
    casts: list[list[Identity]]
    prompts: list[str]
    backgrounds: tuple[str, ...]


def scene_batch(
    seed: int, batch: int, classes: Sequence[str], split: Split, overlap: Overlap = CROWDED
) -> SceneBatch:
    """Scenes with 1 to 4 subjects, spoilt."""
    casts, seeds, rng = scene_plan(seed, batch, classes, split)
    most = len(COUNT_SHARES)
    images = torch.empty(batch, 3, SCENE_SIZE, SCENE_SIZE)
    masks = torch.zeros(batch, most, SCENE_SIZE, SCENE_SIZE, dtype=torch.bool)
    grounds = [""] * batch
    for count in range(1, most + 1):
        rows = [b for b, cast in enumerate(casts) if len(cast) == count]
        if rows:
            scenes = render_scenes(
                [casts[b] for b in rows], [seeds[b] for b in rows], overlap=overlap
            )
            images[rows], masks[rows, :count] = scenes.images, scenes.masks
            for b, ground in zip(rows, scenes.backgrounds, strict=True):
                grounds[b] = ground
    prompts = [
        draw_prompt([subject.class_name for subject in cast], ground, rng)
        for cast, ground in zip(casts, grounds, strict=True)
    ]
    spoilt = spoil(images, int(rng.integers(2**31)))
    return SceneBatch(spoilt, masks, casts, prompts, tuple(grounds))


def scene_plan(
    seed: int, batch: int, classes: Sequence[str], split: Split
) -> tuple[list[list[Identity]], list[int], np.random.Generator]:
    """Who stands in each scene of a batch, the scenes' seeds, which decide background and
    placement, and the generator of what else is drawn."""
    rng = np.random.default_rng([seed, 0x5A])
    counts = 1 + rng.choice(len(COUNT_SHARES), size=batch, p=COUNT_SHARES)
    casts = [draw_cast(split, classes, int(count), rng) for count in counts]
    return casts, rng.integers(2**31, size=batch).tolist(), rng


def body_crops(
    batch: SceneBatch, size: int, count: int, seed: int, margin: float = 0.06
) -> tuple[Tensor, list[str]]:
    """`count` visible subjects cut out of the scenes, on white, (count, 3, S, S), and their
    classes."""
    rng = np.random.default_rng([seed, 0xC1])
    visible = np.argwhere(batch.masks.sum((2, 3)).numpy() > LEAST_PIXELS)
    chosen = visible[rng.integers(len(visible), size=count)]
    scene, place = torch.from_numpy(chosen).unbind(1)
    masks = ragged(batch.masks[scene, place], seed)
    crops = crop_subjects(batch.images[scene], masks, size, margin)
    return crops, [batch.casts[b][r].class_name for b, r in chosen.tolist()]


def two_views(identities: Sequence[Identity], size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Crops (B, 3, S, S) of each individual: from a spoilt scene of 1 to 4 and from a
    reference."""
    scene_seeds, poses, count = view_plan(len(identities), seed)
    padded = [*identities, *identities[: -len(identities) % count]]
    casts = [padded[i : i + count] for i in range(0, len(padded), count)]
    scenes = render_scenes(casts, scene_seeds[: len(casts)])
    images = spoil(scenes.images, seed)
    masks = ragged(scenes.masks.flatten(0, 1), seed)
    crops = crop_subjects(images.repeat_interleave(count, 0), masks, size)[: len(identities)]
    pictures, bodies = render_references(identities, poses)
    return crops, crop_subjects(pictures, bodies, size)


def view_plan(identities: int, seed: int) -> tuple[list[int], list[int], int]:
    """Seeds of the scenes (one for each individual, of which as many are used as there are
    scenes), seeds of the references, and how many subjects a scene has."""
    rng = np.random.default_rng([seed, 0x71])
    scenes, poses = rng.integers(2**31, size=(2, identities)).tolist()
    return scenes, poses, int(rng.integers(1, 5))


def lookalikes(classes: Sequence[str], split: Split, groups: int, seed: int) -> list[Identity]:
    """4 individuals a group that are easily taken for one another: one, its class turned to
    another hue, its class and hue with another detail, another class with its looks."""
    rng = np.random.default_rng([seed, 0x10])
    out: list[Identity] = []
    for _ in range(groups):
        first = draw_of_split(split, classes, rng)
        out.append(first)
        out += [_near(first, kind, classes, split, rng) for kind in ("hue", "detail", "class")]
    return out


def _near(
    model: Identity, kind: str, classes: Sequence[str], split: Split, rng: np.random.Generator
) -> Identity:
    """`model` with one thing changed; after some vain tries any individual of the split."""
    for _ in range(30):
        if kind == "hue":
            turn = rng.uniform(0.1, 0.9)
            hues = (model.hue + turn) % 1, (model.second_hue + turn) % 1
            changed = replace(model, hue=hues[0], second_hue=hues[1])
        elif kind == "class":
            changed = replace(model, class_name=str(rng.choice(list(classes))))
        else:
            changed = _other_detail(model, rng)
        if changed.split == split and differ(model, changed):
            return changed
    return draw_of_split(split, classes, rng)


def _other_detail(model: Identity, rng: np.random.Generator) -> Identity:
    """Another pattern, another mark, or another hue of the second part."""
    detail = ("pattern", "mark", "second_hue")[int(rng.integers(3))]
    drawn = draw_identity(model.class_name, rng)
    if detail == "pattern":
        pattern = PATTERNS[int(rng.integers(len(PATTERNS)))]
        return replace(model, pattern=pattern, ink=drawn.ink)
    if detail == "mark":
        mark = MARKS[int(rng.integers(len(MARKS)))]
        return replace(model, mark=mark, mark_hue=drawn.mark_hue)
    return replace(model, second_hue=(model.hue + rng.uniform(0.2, 0.8)) % 1)
