"""The pocket generator as a part of the pipeline: it paints and repaints uint8 images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.adapter import load_adapter
from focusdpo.model.backbones.flux import FluxBackbone, SamplingConfig
from focusdpo.pipeline.parts import Image, Mask, ReferenceImage
from focusdpo.pocket.generator import load_generator

BATCH = 16
"""Images sampled at once; no image depends on it beyond rounding."""


class PocketGenerator:
    """Fits pipeline.parts.Generator and Inpainter with one backbone."""

    def __init__(self, backbone: FluxBackbone, fingerprint: str | None = None) -> None:
        self.backbone = backbone
        self._fingerprint = fingerprint or backbone.fingerprint

    @classmethod
    def load(
        cls,
        adapter: str | Path | None = None,
        *,
        fingerprint: str | None = None,
        sampling: SamplingConfig | None = None,
    ) -> PocketGenerator:
        """The packaged weights, with the LoRA in the folder `adapter` on top. Without
        `fingerprint` it is the backbone's, joined with the digest of the adapter's weights.

        Raises UserError for missing or foreign weights.
        """
        backbone = load_generator(sampling=sampling)
        base = backbone.fingerprint
        if adapter is not None:
            base = f"{base}+{load_adapter(backbone, Path(adapter)).weights_digest}"
        return cls(backbone, fingerprint or base)

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def generate(
        self,
        prompts: Sequence[str],
        references: Sequence[Sequence[ReferenceImage]],
        seeds: Sequence[int],
    ) -> list[Image]:
        """One 64 x 64 image per prompt. Raises UserError for unequal numbers of references."""
        _check(references, len(prompts), len(seeds))
        out: list[Image] = []
        for part in _parts(len(prompts)):
            images, masks = _slots(references[part], self.backbone.image_size)
            out += _to_arrays(self.backbone.generate(prompts[part], images, masks, seeds[part]))
        return out

    def inpaint(
        self,
        images: Sequence[Image],
        masks: Sequence[Mask],
        prompts: Sequence[str],
        references: Sequence[Sequence[ReferenceImage]],
        seeds: Sequence[int],
    ) -> list[Image]:
        """Each image with its masked region repainted. Raises UserError for images of a size the
        backbone does not paint, or unequal numbers of references."""
        _check(references, len(prompts), len(seeds), len(images), len(masks))
        for image in images:
            if image.shape[:2] != self.backbone.image_size:
                raise UserError(
                    f"inpaint: an image of {image.shape[1]} x {image.shape[0]} pixels; the pocket"
                    f" generator paints {self.backbone.image_size[1]} x"
                    f" {self.backbone.image_size[0]}, resize it first"
                )
        out: list[Image] = []
        for part in _parts(len(prompts)):
            slots, slot_masks = _slots(references[part], self.backbone.image_size)
            pictures = torch.stack([_to_tensor(image) for image in images[part]])
            regions = torch.stack([torch.from_numpy(np.asarray(m, bool)) for m in masks[part]])
            out += _to_arrays(
                self.backbone.inpaint(
                    pictures, regions, prompts[part], slots, slot_masks, seeds[part]
                )
            )
        return out


def _parts(count: int) -> Iterator[slice]:
    return (slice(start, start + BATCH) for start in range(0, count, BATCH))


def _check(references: Sequence[Sequence[ReferenceImage]], count: int, *others: int) -> None:
    if {len(references), *others} != {count} or len({len(row) for row in references}) > 1:
        raise UserError(
            f"pocket generator: {count} prompts with {[len(row) for row in references]} references"
            f" and {others} seeds (images, masks); give one of each per prompt and equally many"
            " references to every prompt of a call"
        )


def _slots(
    references: Sequence[Sequence[ReferenceImage]], size: tuple[int, int]
) -> tuple[list[Tensor], list[Tensor]]:
    """Per slot: images (B, 3, *size) in [-1, 1] and masks (B, *size)."""
    count = len(references[0]) if references else 0
    images, masks = [], []
    for slot in range(count):
        prepared = [_prepare(row[slot], size) for row in references]
        images.append(torch.stack([image for image, _ in prepared]))
        masks.append(torch.stack([mask for _, mask in prepared]))
    return images, masks


def _prepare(reference: ReferenceImage, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """White outside the mask, padded to a square, resized."""
    image = _to_tensor(reference.image)
    mask = torch.from_numpy(np.asarray(reference.mask, bool)).float()
    image = torch.where(mask > 0, image, torch.ones(()))
    height, width = mask.shape
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    pad = (left, side - width - left, top, side - height - top)
    image, mask = F.pad(image, pad, value=1.0)[None], F.pad(mask, pad)[None, None]
    if (side, side) != size:
        image = F.interpolate(image, size, mode="bilinear", antialias=True, align_corners=False)
        mask = F.interpolate(mask, size, mode="bilinear", antialias=True, align_corners=False)
    return image[0], (mask[0, 0] > 0.5).float()


def _to_tensor(image: Image) -> Tensor:
    """(H, W, 3) uint8 -> (3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 127.5 - 1


def _to_arrays(images_BCHW: Tensor) -> list[Image]:
    """[-1, 1] -> uint8 (H, W, 3) each."""
    pixels = ((images_BCHW + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()
    return [np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for image in pixels]
