"""How busy scoring keeps its model: pictures a second from files, beside the bare forward rate.

Both are measured in one process, by turns, so that what else the machine does falls on both.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image as Pillow

from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.adapters import dino
from focusdpo.pipeline.parts import Image

if TYPE_CHECKING:
    from focusdpo.pipeline.adapters.streaming import Looker, Stream

SIDE = 512
"""Pixels a side of pictures made for a measurement, as candidates have."""


class Streamed(Protocol):
    """An encoder of this folder: `DinoEncoder` or `ClipEncoder`."""

    @property
    def looker(self) -> Looker: ...

    @property
    def stream(self) -> Stream[Image | Path]: ...

    @property
    def batch(self) -> int: ...


@dataclass(frozen=True, slots=True)
class ScoringRate:
    """Pictures a second; each the median of `repeats` passes over all pictures."""

    images: int
    batch: int
    repeats: int
    device: str
    embed: float
    """From files (or arrays): decoding, scaling, copying and the forward pass."""
    bare: float
    """The forward pass alone, on normalised tensors that lie on the device."""

    @property
    def ratio(self) -> float:
        """Share of the bare rate that is reached; 0.9 is promised."""
        return self.embed / self.bare


def scoring_rate(
    part: Streamed, images: Sequence[Image | Path], *, repeats: int = 3
) -> ScoringRate:
    """Measures both rates of `part` on the same pictures. UserError without pictures."""
    if not images:
        raise UserError("scoring rate: there are no pictures to measure with")
    batch = min(part.batch, len(images))
    sizes = [batch] * (len(images) // batch) + [len(images) % batch] * bool(len(images) % batch)
    bare, embed = _bare(part, images[:batch], sizes), partial(part.stream.run, images)
    _seconds(part, lambda: part.stream.run(images[:batch]))  # loads what is loaded at first use
    turns = [(_seconds(part, bare), _seconds(part, embed)) for _ in range(repeats)]
    quick, slow = (len(images) / float(np.median(times)) for times in zip(*turns, strict=True))
    return ScoringRate(len(images), batch, repeats, str(part.looker.device), slow, quick)


def bench_scoring(
    *, count: int, device: str = "cpu", batch: int = 64, repeats: int = 3
) -> ScoringRate:
    """The promised figure: DINO ViT-S/16 with random weights, on `count` JPEG files."""
    with tempfile.TemporaryDirectory() as scratch:
        weights = save_random_dino(Path(scratch) / "dino")
        files = make_pictures(Path(scratch) / "jpg", count)
        config = dino.DinoConfig(source=str(weights), batch=batch)
        return scoring_rate(dino.build(config, device), files, repeats=repeats)


def make_pictures(folder: Path, count: int) -> list[Path]:
    """JPEG files whose decoding costs what a photograph's does: smooth colours with grain."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    files = [folder / f"{at:05}.jpg" for at in range(count)]
    for file in files:
        coarse = Pillow.fromarray(random.integers(0, 256, (8, 8, 3)).astype(np.uint8))
        smooth = np.asarray(coarse.resize((SIDE, SIDE), Pillow.Resampling.BICUBIC), dtype=np.int16)
        grain = random.integers(-12, 13, (SIDE, SIDE, 1), dtype=np.int16)
        picture = (smooth + grain).clip(0, 255).astype(np.uint8)
        Pillow.fromarray(picture).save(file, quality=92)
    return files


def save_random_dino(folder: Path, width: int = 384, depth: int = 12) -> Path:
    """A ViT-S/16 with random weights in the layout of timm/vit_small_patch16_224.dino."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: 0.02 * torch.randn(shape, generator=generator)
        for name, shape in dino.timm_shapes(width, depth, 16).items()
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "vit_small_patch16_224"}))
    return folder


def _bare(
    part: Streamed, images: Sequence[Image | Path], sizes: Sequence[int]
) -> Callable[[], None]:
    import torch

    looker = part.looker
    pixels = np.stack([part.stream.prepare(image) for image in images])
    ready = looker.normalise(torch.from_numpy(pixels))

    def run() -> None:
        for size in sizes:
            looker.look(ready[:size])

    return run


def _seconds(part: Streamed, run: Callable[[], object]) -> float:
    import torch

    def finish() -> None:
        if part.looker.device.type == "cuda":
            torch.cuda.synchronize(part.looker.device)

    finish()
    start = time.perf_counter()
    run()
    finish()
    return time.perf_counter() - start
