"""Sample pictures while training: fixed scenes and seeds, painted by the base and by the policy.

<run>/samples/step-000250.png   a sheet: a row per scene with its references, base and policy
<run>/samples/scenes.json       what the scenes are
"""

from __future__ import annotations

import io
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from focusdpo.data_schemas.scenes import stable_hash
from focusdpo.data_schemas.shards import ShardSample
from focusdpo.model.adapter import reference_policy
from focusdpo.model.backbone import Backbone
from focusdpo.model.training.config import PreviewConfig
from focusdpo.model.training.run_state import RunState
from focusdpo.store.local import make_folder, write_whole

FOLDER = "samples"
CELL = 256
"""Side in pixels of a picture on a sheet; larger ones are shrunk to it."""
GAP, LINE, TEXT = 8, 14, 12
Pixels = NDArray[np.uint8]


class Previews:
    """Paints the scenes of some pairs. The base's pictures are painted once a process."""

    def __init__(
        self,
        backbone: Backbone,
        samples: Sequence[ShardSample],
        config: PreviewConfig,
        out_dir: Path,
        *,
        writes: bool,
    ) -> None:
        """`writes`: this is the process that keeps the sheets."""
        self._backbone, self._samples, self._config = backbone, list(samples), config
        self._folder, self._writes = out_dir / FOLDER, writes
        self._base: list[Pixels] = []

    def due(self, step: int, last: int) -> bool:
        """Whether there is a sheet of `step`."""
        every = self._config.every or 0
        return bool(self._samples) and every > 0 and (step % every == 0 or step == last)

    def paint(self, state: RunState) -> Pixels:
        """The sheet of the present weights, also written to the run's folder."""
        if not self._base:
            with reference_policy(self._backbone.transformer):
                self._base = [self._painted(sample) for sample in self._samples]
        with state.averaged():
            policy = [self._painted(sample) for sample in self._samples]
        pixels = sheet(self._samples, self._base, policy, state.step)
        if self._writes:
            make_folder(self._folder)
            write_whole(self._folder / "scenes.json", json.dumps(self._scenes(), indent=1).encode())
            write_whole(self._folder / f"step-{state.step:06d}.png", _png(pixels))
        return pixels

    def _scenes(self) -> list[dict[str, object]]:
        return [
            {"pair": sample.pair.id, "prompt": sample.pair.prompt, "seed": self._seed(sample)}
            for sample in self._samples
        ]

    def _seed(self, sample: ShardSample) -> int:
        return stable_hash("preview", self._config.seed, sample.pair.id) % 2**31

    @torch.no_grad()
    def _painted(self, sample: ShardSample) -> Pixels:
        images = sample.images
        painted = self._backbone.generate(
            [sample.pair.prompt],
            [_as_image(image) for image in images.references],
            [torch.from_numpy(np.asarray(mask))[None].float() for mask in images.reference_masks],
            [self._seed(sample)],
        )
        pixels = ((painted[0].float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())


def _as_image(pixels: Pixels) -> Tensor:
    """uint8 (h, w, 3) -> (1, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float() / 127.5 - 1


def _png(pixels: Pixels) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def sheet(
    samples: Sequence[ShardSample], base: Sequence[Pixels], policy: Sequence[Pixels], step: int
) -> Pixels:
    """A row per scene: its references, the base's picture and the policy's; below, its prompt."""
    most = max(len(sample.images.references) for sample in samples)
    titles = [f"reference {r + 1}" for r in range(most)] + ["base", f"policy, step {step}"]
    columns, font = len(titles), ImageFont.load_default(TEXT)
    texts = [textwrap.wrap(sample.pair.prompt, columns * CELL // 7) or [""] for sample in samples]
    heights = [CELL + LINE * len(lines) + 2 * GAP for lines in texts]
    width = columns * (CELL + GAP) + GAP
    whole = Image.new("RGB", (width, LINE + 2 * GAP + sum(heights)), "white")
    draw = ImageDraw.Draw(whole)
    for column, title in enumerate(titles):
        draw.text((GAP + column * (CELL + GAP), GAP), title, "black", font)
    top = LINE + 2 * GAP
    for row, sample in enumerate(samples):
        shown = list(sample.images.references)
        shown += [np.full((1, 1, 3), 255, np.uint8)] * (most - len(shown))
        for column, pixels in enumerate([*shown, base[row], policy[row]]):
            whole.paste(_fitted(pixels), (GAP + column * (CELL + GAP), top))
        draw.multiline_text((GAP, top + CELL + GAP // 2), "\n".join(texts[row]), "black", font)
        top += heights[row]
    return np.asarray(whole)


def _fitted(pixels: Pixels) -> Image.Image:
    """A picture in a white square cell; small ones grow by whole pixels."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    scale = CELL / max(image.size)
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    size = tuple(max(1, round(side * scale)) for side in image.size)
    cell = Image.new("RGB", (CELL, CELL), "white")
    cell.paste(image.resize((size[0], size[1]), how))
    return cell
