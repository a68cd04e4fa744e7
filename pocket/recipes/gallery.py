"""Contact sheets: scenes of the world, and what the generator paints, with their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from focusdpo.pocket.classes import BACKGROUNDS, Split, class_names
from focusdpo.pocket.models.generator import load_generator
from focusdpo.pocket.world.casting import draw_cast
from focusdpo.pocket.world.grammar import draw_prompt, prompt_for
from focusdpo.pocket.world.identities import Identity
from focusdpo.pocket.world.world import SCENE_SIZE, render_references, render_scenes

COLUMNS = 8
SHARES = ((1, 8), (2, 16), (3, 8))
"""Subjects per scene and how many scenes of them."""
CAPTION = 26
"""Pixels of a prompt's two lines."""
GAP = 6


def world_sheet(count: int, seed: int, *, scale: int = 2) -> Image.Image:
    """Rendered scenes of 1 to 4 subjects of the training split with prompts of all kinds."""
    rng = np.random.default_rng([seed, 0x6A])
    cells = []
    for number in range(count):
        cast = draw_cast("train", class_names("train"), (1, 2, 2, 3, 2, 1, 4, 3)[number % 8], rng)
        scene = render_scenes([cast], [int(rng.integers(2**31))])
        prompt = draw_prompt([subject.class_name for subject in cast], scene.backgrounds[0], rng)
        cells.append((scene.images[0], prompt))
    return sheet(cells, scale)


def save_gallery(weights: Path, path: Path, *, split: Split = "val", seed: int = 5) -> None:
    """32 painted scenes of unseen individuals, the references of each above it."""
    backbone = load_generator(weights)
    cells = []
    for count, scenes in SHARES:
        rng = np.random.default_rng([seed, count])
        for start in range(0, scenes, COLUMNS):
            casts = [draw_cast(split, class_names("train"), count, rng) for _ in range(COLUMNS)]
            prompts = [
                prompt_for([subject.class_name for subject in cast], str(rng.choice(BACKGROUNDS)))
                for cast in casts
            ]
            slots = _references(casts, rng)
            seeds = [1000 * count + start + i for i in range(COLUMNS)]
            painted = backbone.generate(
                prompts,
                [images * 2 - 1 for images, _ in slots],
                [masks.float() for _, masks in slots],
                seeds,
            )
            for b, prompt in enumerate(prompts):
                strip = _strip([images[b] for images, _ in slots])
                cells.append((torch.cat([strip, painted[b].cpu() / 2 + 0.5], 1), prompt))
    sheet(cells, 1).save(path, optimize=True)


def _references(
    casts: Sequence[Sequence[Identity]], rng: np.random.Generator
) -> list[tuple[Tensor, Tensor]]:
    """Pictures and masks of each slot."""
    return [
        render_references(
            [cast[slot] for cast in casts], rng.integers(2**31, size=len(casts)).tolist()
        )
        for slot in range(len(casts[0]))
    ]


def _strip(pictures: Sequence[Tensor]) -> Tensor:
    """References side by side at a third of their size: (3, 32, 96) in [0, 1]."""
    small = [torch.nn.functional.avg_pool2d(picture, 3) for picture in pictures]
    strip = torch.ones(3, SCENE_SIZE // 3, SCENE_SIZE)
    row = torch.cat(small, 2)
    strip[:, :, : row.shape[2]] = row
    return strip


def sheet(cells: Sequence[tuple[Tensor, str]], scale: int, columns: int = COLUMNS) -> Image.Image:
    """Pictures (3, H, W) in [0, 1] in rows, each with its prompt under it."""
    height, width = (side * scale for side in cells[0][0].shape[1:])
    rows = -(-len(cells) // columns)
    size = (columns * (width + GAP), rows * (height + CAPTION + GAP))
    canvas = Image.new("RGB", size, (255, 255, 255))
    draw = ImageDraw.Draw(canvas)
    for number, (picture, prompt) in enumerate(cells):
        left, top = number % columns * (width + GAP), number // columns * (height + CAPTION + GAP)
        pixels = (picture.clamp(0, 1).permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        canvas.paste(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC),
                     (left, top))  # fmt: skip
        draw.text((left, top + height + 1), _wrapped(prompt, width // 6), fill=(0, 0, 0))
    return canvas


def _wrapped(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    cut = text.rfind(" ", 0, width + 1)
    return f"{text[:cut]}\n{text[cut + 1 :]}"
