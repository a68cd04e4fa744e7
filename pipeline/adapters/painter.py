"""Any backbone as a part of the pipeline: it paints and repaints uint8 images.

Letters: B images, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.adapters.checked import to_uint8
from focusdpo.pipeline.parts import Image, Mask, ReferenceImage, check_calls, guided


class PaintingBackbone(Protocol):
    """What a painter calls of a backbone (all of `model.backbone.Backbone` fit by shape)."""

    image_size: tuple[int, int]
    """Height and width in pixels."""

    def generate(
        self,
        prompts: Sequence[str],
        images: Sequence[Tensor],
        masks: Sequence[Tensor],
        seeds: Sequence[int],
        *,
        guidance: float | None = None,
    ) -> Tensor:
        """(B, 3, H, W) in [-1, 1]; per reference slot images (B, 3, h, w) and masks (B, h, w)."""
        ...

    def inpaint(
        self,
        images_BCHW: Tensor,
        masks_BHW: Tensor,
        prompts: Sequence[str],
        images: Sequence[Tensor],
        masks: Sequence[Tensor],
        seeds: Sequence[int],
        *,
        guidance: float | None = None,
    ) -> Tensor:
        """images_BCHW with masks_BHW (1 = repaint) repainted."""
        ...


class BackbonePainter:
    """Fits pipeline.parts.Generator and Inpainter with one backbone.

    `batch` images are sampled at once; none depends on it beyond rounding. References may have any
    size and are white outside their mask. A backbone that `keeps_aspect` is given them as they are,
    in batches of one shape; for others they are padded to a square as long as the image's longer
    side. One whose text encoder waits on the CPU (`lends_prompts`) is told all prompts of a call
    first, so that the encoder moves once.
    """

    def __init__(self, backbone: PaintingBackbone, fingerprint: str, batch: int = 8) -> None:
        self.backbone = backbone
        self._fingerprint = fingerprint
        self._batch = batch

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def generate(
        self,
        prompts: Sequence[str],
        references: Sequence[Sequence[ReferenceImage]],
        seeds: Sequence[int],
        *,
        guidance: float | None = None,
    ) -> list[Image]:
        """One image of the backbone's size per prompt. Raises UserError for unequal numbers of
        references."""
        check_calls(prompts, references, seeds)
        self._tell(prompts)
        out: dict[int, Image] = {}
        for part in self._parts(references):
            images, masks = self._slots([references[at] for at in part])
            with torch.no_grad():
                painted = self.backbone.generate(
                    [prompts[at] for at in part],
                    images,
                    masks,
                    [seeds[at] for at in part],
                    **guided(guidance),
                )
            out.update(zip(part, to_arrays(painted), strict=True))
        return [out[at] for at in range(len(prompts))]

    def inpaint(
        self,
        images: Sequence[Image],
        masks: Sequence[Mask],
        prompts: Sequence[str],
        references: Sequence[Sequence[ReferenceImage]],
        seeds: Sequence[int],
        *,
        guidance: float | None = None,
    ) -> list[Image]:
        """Each image with its masked region repainted. Raises UserError for images of a size the
        backbone does not paint, or unequal numbers of references."""
        check_calls(prompts, references, seeds, images, masks)
        height, width = self.backbone.image_size
        for image, mask in zip(images, masks, strict=True):
            if image.shape[:2] != (height, width) or mask.shape != (height, width):
                raise UserError(
                    f"inpaint: an image of {image.shape[1]} x {image.shape[0]} pixels and a mask "
                    f"of {mask.shape[1]} x {mask.shape[0]}; this backbone paints {width} x "
                    f"{height}, resize them first"
                )
        self._tell(prompts)
        out: dict[int, Image] = {}
        for part in self._parts(references):
            slots, slot_masks = self._slots([references[at] for at in part])
            pictures = torch.stack([to_tensor(images[at]) for at in part])
            regions = torch.stack([torch.from_numpy(np.asarray(masks[at], bool)) for at in part])
            with torch.no_grad():
                painted = self.backbone.inpaint(
                    pictures,
                    regions,
                    [prompts[at] for at in part],
                    slots,
                    slot_masks,
                    [seeds[at] for at in part],
                    **guided(guidance),
                )
            out.update(zip(part, to_arrays(painted), strict=True))
        return [out[at] for at in range(len(prompts))]

    def _tell(self, prompts: Sequence[str]) -> None:
        backbone: Any = self.backbone
        if getattr(backbone, "lends_prompts", False):
            backbone.encode_prompts(sorted(set(prompts)))

    def _parts(self, references: Sequence[Sequence[ReferenceImage]]) -> Iterator[list[int]]:
        """Places of at most a batch of calls, whose references can be stacked."""
        alike: dict[object, list[int]] = {}
        for at, call_references in enumerate(references):
            shapes = (
                tuple(reference.mask.shape for reference in call_references)
                if self._keeps_aspect
                else None
            )
            alike.setdefault(shapes, []).append(at)
        for places in alike.values():
            for start in range(0, len(places), self._batch):
                yield places[start : start + self._batch]

    @property
    def _keeps_aspect(self) -> bool:
        return bool(getattr(self.backbone, "keeps_aspect", False))

    def _slots(
        self, references: Sequence[Sequence[ReferenceImage]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Per slot: images (B, 3, h, w) in [-1, 1] and masks (B, h, w)."""
        side = None if self._keeps_aspect else max(self.backbone.image_size)
        images, masks = [], []
        for slot in zip(*references, strict=True):
            prepared = [prepare_reference(reference, side) for reference in slot]
            images.append(torch.stack([image for image, _ in prepared]))
            masks.append(torch.stack([mask for _, mask in prepared]))
        return images, masks


def prepare_reference(reference: ReferenceImage, side: int | None) -> tuple[Tensor, Tensor]:
    """White outside the mask, padded to a square, resized: image (3, side, side) in [-1, 1] and
    mask (side, side) in {0, 1}; without a side (3, h, w) and (h, w), as large as it is."""
    image = to_tensor(reference.image)
    mask = torch.from_numpy(np.asarray(reference.mask, bool)).float()
    image = torch.where(mask > 0, image, torch.ones(()))
    if side is None:
        return image, mask
    height, width = mask.shape
    longer = max(height, width)
    left, top = (longer - width) // 2, (longer - height) // 2
    pad = (left, longer - width - left, top, longer - height - top)
    image, mask = F.pad(image, pad, value=1.0)[None], F.pad(mask, pad)[None, None]
    if longer != side:
        size = (side, side)
        image = F.interpolate(image, size, mode="bilinear", antialias=True, align_corners=False)
        mask = F.interpolate(mask, size, mode="bilinear", antialias=True, align_corners=False)
    return image[0], (mask[0, 0] > 0.5).float()


def to_tensor(image: Image) -> Tensor:
    """(H, W, 3) uint8 -> (3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 127.5 - 1


def to_arrays(images_BCHW: Tensor) -> list[Image]:
    """[-1, 1] -> uint8 (H, W, 3) each. Faulty where a value is not finite."""
    if not torch.isfinite(images_BCHW).all():
        to_uint8(images_BCHW.float().cpu().numpy())  # says how many
    pixels = ((images_BCHW.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()
    return [np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for image in pixels]
