"""The copy-paste guard: is a painted subject its reference over again, pose and all?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image as PillowImage

from focusdpo.pipeline.metrics import nan_mean
from focusdpo.pipeline.parts import Image, Mask, ReferenceImage
from focusdpo.pipeline.score import crop_on_white

COPY_SIDE = 32
"""Side in pixels at which crops are compared."""


def copy_guard(
    picture: Image,
    masks: Sequence[Mask | None],
    thumbs: Sequence[Sequence[ReferenceImage]],
) -> float:
    """Mean over found subjects of `copied` against the nearest of their references.

    `masks[i]` (H, W) is subject i's instance in `picture` (H, W, 3), None when it is missing;
    `thumbs[i]` are `thumb`s of its references. NaN when nobody was found.
    """
    best = [
        max(copied(thumb(picture, mask), one) for one in own)
        for mask, own in zip(masks, thumbs, strict=True)
        if mask is not None
    ]
    return nan_mean(np.array(best))


def thumb(image: Image, mask: Mask) -> ReferenceImage:
    """The subject cut to its box, small: place and size in the picture do not matter."""
    side = (COPY_SIDE, COPY_SIDE)
    colour, hole = (
        np.asarray(
            PillowImage.fromarray(crop_on_white(pixels, mask, margin=0.0)).resize(
                side, PillowImage.Resampling.BILINEAR
            ),
            dtype=np.float64,
        )
        for pixels in (image, np.zeros_like(image))
    )
    # `hole` is the white that resizing mixed in: taken out, edges tell nothing of the outline.
    inside = np.clip((colour - hole) / np.maximum(1 - hole / 255, 0.5), 0, 255)
    return ReferenceImage(image=np.rint(inside).astype(np.uint8), mask=hole[..., 0] < 128)


def copied(a: ReferenceImage, b: ReferenceImage) -> float:
    """How far `a` is `b` over again: overlap of the masks (IoU) times the correlation of the
    pixels that both cover, each channel about its own mean; 0 when there is nothing to compare."""
    both = a.mask & b.mask
    if not both.any():
        return 0.0
    x, y = (one.image[both].astype(np.float64) for one in (a, b))
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    norm = float(np.linalg.norm(x) * np.linalg.norm(y))
    correlation = float((x * y).sum()) / norm if norm else 0.0
    return correlation * float(both.sum() / (a.mask | b.mask).sum())
