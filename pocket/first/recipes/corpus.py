"""Latents of rendered scenes and their references, made once, for the generator's recipe.

A chunk holds scenes with equally many subjects. Chunk k is a function of (seed, k) alone, so a
second process may write chunks while the training reads the first ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from focusdpo.model.tokens import LatentCodec, pack
from focusdpo.pocket.first.generator import frame_references
from focusdpo.pocket.first.identities import (
    BACKGROUNDS,
    class_names,
    class_table,
    sample_identities,
)
from focusdpo.pocket.first.world import render_references, render_scenes

PATTERN = (2, 1, 2, 3, 2, 2, 1, 2, 2, 1, 2, 3, 2, 1, 2, 2, 1, 2, 2, 3)
"""Subjects per scene of chunk k: 25 % one, 60 % two, 15 % three."""


@dataclass(frozen=True)
class Chunk:
    """B scenes with R subjects: normalised packed latents and what is in them."""

    target: Tensor
    """(B, N, C)."""
    references: Tensor
    """(B, R, n, C)."""
    coverage: Tensor
    """(B, N) in [0, 1]: share of a token's pixels that show a subject."""
    classes: Tensor
    """(B, R) indices into the class table."""
    backgrounds: Tensor
    """(B,) indices into BACKGROUNDS."""

    @property
    def subjects(self) -> int:
        return self.references.shape[1]


@torch.no_grad()
def encode(codec: LatentCodec, images: Tensor) -> Tensor:
    """Images in [-1, 1] -> packed normalised latents."""
    return pack(codec.encode_latents(images))


def make_chunk(codec: LatentCodec, seed: int, index: int, scenes: int) -> Chunk:
    """Renders and encodes chunk `index` of `scenes` scenes: train classes and identities only."""
    count = PATTERN[index % len(PATTERN)]
    names = list(class_table())
    base = (seed * 100_003 + index + 1) * scenes
    classes = class_names("train")
    people = sample_identities("train", classes, scenes * count, base)
    rows = [people[i * count : (i + 1) * count] for i in range(scenes)]
    targets, references, coverage, backgrounds = [], [], [], []
    for start in range(0, scenes, 64):
        part = rows[start : start + 64]
        seeds = list(range(base + start, base + start + len(part)))
        shown = render_scenes(part, seeds, tidy=True)
        targets.append(encode(codec, shown.images * 2 - 1))
        coverage.append(F.avg_pool2d(shown.masks.any(1).float(), 8).flatten(1))
        backgrounds += [BACKGROUNDS.index(name) for name in shown.backgrounds]
        flat = [person for row in part for person in row]
        poses = [(base + start) * 8 + i for i in range(len(flat))]
        pictures, bodies = render_references(flat, poses)
        framed, _ = frame_references(pictures * 2 - 1, bodies.float())
        references.append(encode(codec, framed).unflatten(0, (len(part), count)))
    return Chunk(
        torch.cat(targets),
        torch.cat(references),
        torch.cat(coverage),
        torch.tensor([[names.index(p.class_name) for p in row] for row in rows]),
        torch.tensor(backgrounds),
    )


def chunk_path(folder: Path, index: int) -> Path:
    return folder / f"chunk-{index:04d}.safetensors"


def write_corpus(codec: LatentCodec, folder: Path, seed: int, count: int, scenes: int) -> None:
    """Writes the chunks that are missing, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        path = chunk_path(folder, index)
        if not path.exists():
            chunk = make_chunk(codec, seed, index, scenes)
            temporary = path.with_suffix(".tmp")
            save_file(
                {
                    "target": chunk.target.half().contiguous(),
                    "references": chunk.references.half().contiguous(),
                    "coverage": chunk.coverage.half().contiguous(),
                    "classes": chunk.classes,
                    "backgrounds": chunk.backgrounds,
                },
                temporary,
            )
            temporary.replace(path)


def read_chunk(path: Path) -> Chunk:
    return Chunk(**load_file(path))
