"""The pocket segmenter: words to masks of all their instances.

Language-driven segmentation (LSeg, arXiv 2201.03546) on a small diffusers U-Net: an embedding per
pixel is compared with an embedding per word; beside it a foreground channel that knows no words,
which answers for `object` and for every word that training never saw. Connected regions of the
foreground are the instances; a region over which the asked words disagree is divided among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage
from torch import Tensor, nn

from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.parts import Detection, Image, Mask
from focusdpo.pocket.weightfiles import WEIGHTS, fingerprint, load_weights, read_settings

OBJECT = "object"
"""The word for all subjects, whatever their class."""

SCENE = 64


class SegmenterModelConfig(BaseModel):
    """Shape of the segmenter."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    words: tuple[str, ...] = Field((), description="classes it was trained on")
    channels: tuple[int, ...] = Field((16, 48, 96, 96), description="U-Net widths from 32 x 32 down")
    embedding: int = Field(24, description="length of a pixel's and of a word's embedding", ge=2)


class SegmentConfig(BaseModel):
    """How masks are read off."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    foreground: float = Field(0.5, description="least foreground probability of a pixel")
    min_area: int = Field(14, description="least pixels of an instance", ge=1)
    confidence: float = Field(0.25, description="least confidence of a detection")
    split_share: float = Field(
        0.25, description="share of a region that a second word must own to divide it"
    )


class SegmenterNet(nn.Module):
    """Images (B, 3, 64, 64) in [0, 1] -> foreground logits (B, 64, 64), word logits (B, W, 64, 64)."""

    def __init__(self, config: SegmenterModelConfig) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        self.config = config
        depth = len(config.channels)
        # 2 x 2 pixels to a cell: a quarter of the arithmetic at little loss of edge.
        self.unet = UNet2DModel(
            sample_size=SCENE // 2,
            in_channels=12,
            out_channels=4 * (config.embedding + 1),
            block_out_channels=config.channels,
            layers_per_block=1,
            down_block_types=("DownBlock2D",) * depth,
            up_block_types=("UpBlock2D",) * depth,
            norm_num_groups=8,
            add_attention=False,
        ).to(memory_format=torch.channels_last)
        self.words = nn.Embedding(max(1, len(config.words)), config.embedding)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        cells = F.pixel_unshuffle(images * 4 - 2, 2).contiguous(memory_format=torch.channels_last)
        out = F.pixel_shuffle(self.unet(cells, torch.zeros((), device=images.device)).sample, 2)
        words = torch.einsum("bdhw,nd->bnhw", out[:, 1:], self.words.weight)
        return out[:, 0], words


@dataclass(frozen=True, slots=True)
class _Region:
    mask: NDArray[np.bool_]
    foreground: float
    words: NDArray[np.float32]
    """Mean probability of each known word, (W,)."""


class PocketSegmenter:
    """`pipeline.parts.Segmenter` on the packaged weights."""

    def __init__(
        self,
        folder: Path = WEIGHTS,
        config: SegmentConfig | None = None,
        *,
        batch: int = 32,
        device: str = "cpu",
    ) -> None:
        self.config = config or SegmentConfig()
        model = SegmenterModelConfig.model_validate(read_settings("segmenter", folder)["model"])
        self.net = SegmenterNet(model)
        load_weights("segmenter", self.net, folder)
        self.net.eval().to(device)
        self._index = {word: i for i, word in enumerate(model.words)}
        self._batch, self._device = batch, device
        self.fingerprint = f"{fingerprint('segmenter', folder)}-{self.config.model_dump_json()}"

    @property
    def words(self) -> tuple[str, ...]:
        """Words that it was trained on; every other word is looked for as `object`."""
        return tuple(self._index)

    def segment(
        self, images: Sequence[Image], class_names: Sequence[Sequence[str]]
    ) -> list[list[Detection]]:
        """All instances of each of the words in each image, best first. A word it does not know
        is looked for among the regions that no other asked word explains."""
        if len(images) != len(class_names):
            raise ValueError(f"{len(images)} images and {len(class_names)} word lists")
        foreground, words = self._predict(images)
        return [
            self._detect(fg, ws, asked)
            for fg, ws, asked in zip(foreground, words, class_names, strict=True)
        ]

    def _predict(
        self, images: Sequence[Image]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Foreground (B, H, W) and word probabilities (B, W, H, W)."""
        wrong = [image.shape for image in images if image.shape != (SCENE, SCENE, 3)]
        if wrong:
            raise UserError(
                f"pocket segmenter: got an image of shape {wrong[0]}; it reads"
                f" {SCENE} x {SCENE} RGB scenes only. Resize scenes, or use another segmenter"
            )
        if not images:
            empty = np.zeros((0, SCENE, SCENE), np.float32)
            return empty, empty[:, None]
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
        foreground, words = [], []
        with torch.inference_mode():
            for chunk in pixels.split(self._batch):
                fg, ws = self.net(chunk.to(self._device))
                foreground.append(fg.sigmoid().cpu())
                words.append(ws.softmax(1).cpu())
        return torch.cat(foreground).numpy(), torch.cat(words).numpy()

    def _detect(
        self, foreground: NDArray[np.float32], words: NDArray[np.float32], asked: Sequence[str]
    ) -> list[Detection]:
        known = [self._index[word] for word in asked if word in self._index]
        found = []
        for region in self._regions(foreground, words, known):
            for word in asked:
                confidence = region.foreground * self._claim(word, region.words, known)
                if confidence >= self.config.confidence:
                    found.append(Detection(word, region.mask, box_of(region.mask), confidence))
        return sorted(found, key=lambda d: (-d.confidence, d.class_name, d.box))

    def _claim(self, word: str, probabilities: NDArray[np.float32], known: list[int]) -> float:
        """How well a region fits a word, in [0, 1]."""
        if word in self._index:
            return float(probabilities[self._index[word]])
        if word == OBJECT:
            return 1.0
        return float(1 - probabilities[known].sum())

    def _regions(
        self, foreground: NDArray[np.float32], words: NDArray[np.float32], known: list[int]
    ) -> list[_Region]:
        labels, count = ndimage.label(foreground > self.config.foreground)
        regions = []
        for label in range(1, count + 1):
            mask: NDArray[np.bool_] = labels == label
            if mask.sum() < self.config.min_area:
                continue
            for part in self._divide(mask, words, known):
                regions.append(
                    _Region(part, float(foreground[part].mean()), words[:, part].mean(1))
                )
        return regions

    def _divide(
        self, mask: NDArray[np.bool_], words: NDArray[np.float32], known: list[int]
    ) -> list[NDArray[np.bool_]]:
        """The parts of a region that different asked words own; the region itself if one does."""
        if len(known) < 2:
            return [mask]
        # Smoothed, so that a part is a body and not a sprinkle of pixels.
        smooth = ndimage.gaussian_filter(words[known] * mask, (0, 1.5, 1.5))
        owner = np.where(mask, smooth.argmax(0), -1)
        least = max(self.config.min_area, self.config.split_share * mask.sum())
        owners = [k for k in range(len(known)) if (owner == k).sum() >= least]
        sure = [k for k in owners if words[known[k]][owner == k].mean() >= 0.5]
        if len(sure) < 2:
            return [mask]
        share = np.where(mask, smooth[sure].argmax(0), -1)
        return [share == k for k in range(len(sure))]


def box_of(mask: Mask) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of a mask that is not empty, end exclusive."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1
