"""Repainting from words alone with models that were made to fill a hole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import PIL.Image
import torch

from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.adapters.painter import check_calls
from focusdpo.pipeline.parts import Image, Inpainter, Mask, ReferenceImage
from focusdpo.store.checkpoints import digest_files


class FillInpainter:
    """Fits pipeline.parts.Inpainter with a diffusers inpainting pipeline, from words alone.

    Each item's noise comes from its own seed, drawn on the CPU, so that no batch and no device
    matters beyond rounding. `multiple`: sides of pictures are multiples of so many pixels."""

    def __init__(
        self, pipeline: Any, fingerprint: str, *, multiple: int, batch: int, options: dict[str, Any]
    ) -> None:
        self.pipeline = pipeline
        self.fingerprint = fingerprint
        self._multiple, self._batch, self._options = multiple, batch, options

    def inpaint(
        self,
        images: Sequence[Image],
        masks: Sequence[Mask],
        prompts: Sequence[str],
        references: Sequence[Sequence[ReferenceImage]],
        seeds: Sequence[int],
    ) -> list[Image]:
        """Each image with its masked region repainted from its prompt. UserError for references,
        which such a model cannot take, and for pictures whose sides it does not paint."""
        check_calls(prompts, references, seeds, images, masks)
        if any(references):
            raise UserError(
                "inpaint: a fill model reads words alone and takes no references; put a backbone's "
                "painter beside it (TextInpainter)"
            )
        for image, mask in zip(images, masks, strict=True):
            self._check_size(image, mask)
        painted: list[Image] = []
        for part in self._parts(images):
            painted += self._paint(images[part], masks[part], prompts[part], seeds[part])
        return painted

    def _paint(
        self,
        images: Sequence[Image],
        masks: Sequence[Mask],
        prompts: Sequence[str],
        seeds: Sequence[int],
    ) -> list[Image]:
        height, width = images[0].shape[:2]
        found = self.pipeline(
            prompt=list(prompts),
            image=[PIL.Image.fromarray(np.ascontiguousarray(image)) for image in images],
            mask_image=[PIL.Image.fromarray(mask.astype(np.uint8) * 255) for mask in masks],
            height=height,
            width=width,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np",
            **self._options,
        ).images
        return list((found * 255).round().astype(np.uint8))

    def _parts(self, images: Sequence[Image]) -> Iterator[slice]:
        """Runs of pictures of one size, at most a batch long."""
        at = 0
        for _, run in groupby(images, key=lambda image: image.shape):
            end = at + len(list(run))
            for start in range(at, end, self._batch):
                yield slice(start, min(start + self._batch, end))
            at = end

    def _check_size(self, image: Image, mask: Mask) -> None:
        height, width = image.shape[:2]
        if mask.shape != (height, width):
            raise UserError(
                f"inpaint: an image of {width} x {height} pixels with a mask of {mask.shape[1]} x "
                f"{mask.shape[0]}"
            )
        if height % self._multiple or width % self._multiple or not height or not width:
            raise UserError(
                f"inpaint: an image of {width} x {height} pixels; this model paints sides that are "
                f"multiples of {self._multiple}: choose models.backbone.image_size so"
            )


class TextInpainter:
    """Fits pipeline.parts.Inpainter: `fill` paints a call without references, `painter`, that of a
    backbone, one with references."""

    def __init__(self, fill: Inpainter, painter: Inpainter) -> None:
        self.fill, self.painter = fill, painter

    @property
    def fingerprint(self) -> str:
        """Of both: either may have painted."""
        return digest_files([], "text inpainter", self.fill.fingerprint, self.painter.fingerprint)

    def inpaint(
        self,
        images: Sequence[Image],
        masks: Sequence[Mask],
        prompts: Sequence[str],
        references: Sequence[Sequence[ReferenceImage]],
        seeds: Sequence[int],
    ) -> list[Image]:
        """Each image repainted. UserError for unequal numbers of references, and as of the two."""
        check_calls(prompts, references, seeds, images, masks)
        chosen = self.painter if any(references) else self.fill
        return chosen.inpaint(images, masks, prompts, references, seeds)
