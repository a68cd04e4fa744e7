"""A picture of what the generator paints."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from focusdpo.model.backbones.flux import FluxBackbone
from focusdpo.pocket.first.identities import Identity, class_names, sample_identities
from focusdpo.pocket.first.world import prompt_for, render_references, render_scenes

COLUMNS = 8
SHARES = ((1, 8), (2, 16), (3, 8))
"""Subjects per scene and how many scenes of them."""


def save_gallery(backbone: FluxBackbone, path: Path) -> None:
    """32 scenes of training classes and unseen identities: above each picture its references."""
    rows: list[Tensor] = []
    for count, scenes in SHARES:
        people = _different(count * scenes, count)
        for start in range(0, scenes, COLUMNS):
            part = [people[i * count :][:count] for i in range(start, start + COLUMNS)]
            rows += _paint(backbone, part, seed=1000 * count + start)
    canvas = torch.cat([torch.cat(list(row), 2) for row in rows], 1)
    pixels = (canvas * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(path, optimize=True)


def _different(total: int, count: int) -> list[Identity]:
    """Identities in groups of `count` different classes."""
    people: list[Identity] = []
    for one in sample_identities("val", class_names("train"), 20 * total, count):
        group = people[len(people) - len(people) % count :]
        if one.class_name not in {other.class_name for other in group}:
            people.append(one)
    return people[:total]


def _paint(backbone: FluxBackbone, part: list[list[Identity]], seed: int) -> list[Tensor]:
    """A row per reference slot, then the painted one: (COLUMNS, 3, 64, 64) in [0, 1] each."""
    seeds = list(range(seed, seed + len(part)))
    backgrounds = render_scenes(part, seeds).backgrounds
    slots = [
        render_references([row[r] for row in part], [s * 8 + r for s in seeds])
        for r in range(len(part[0]))
    ]
    prompts = [
        prompt_for([one.class_name for one in row], background)
        for row, background in zip(part, backgrounds, strict=True)
    ]
    painted = backbone.generate(
        prompts, [i * 2 - 1 for i, _ in slots], [m.float() for _, m in slots], seeds
    )
    return [*[images for images, _ in slots], painted.cpu() / 2 + 0.5]
