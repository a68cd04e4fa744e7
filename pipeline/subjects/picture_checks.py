"""What a subject's owner should know of its pictures: blurred, tiny, cut by the border, with a mark
of somebody's laid over them. Told, and no reason to leave a picture out.

Thresholds were set on photographs of the DreamBooth dataset and on blurred and marked copies.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from focusdpo.data_schemas.images import Picture

LUMA = np.array((0.299, 0.587, 0.114))
SIDE = 128
"""Pixels of a subject's longer side at which its sharpness is judged."""
SHARP = 0.16
"""Steepest edge of a sharp subject, as a share of its contrast per pixel at that side."""
FLAT = 24.0
"""A subject with less contrast (of 255) has no edge to judge by."""
TINY = 0.5
"""A subject whose longer side has fewer pixels than this share of a stored reference's is enlarged
to more than twice its size."""
CUT = 0.2
"""Of a subject's extent along a side of the picture, the share that lies on the border when it is
cut there."""
MARK_SIDE, MARK_PICTURES = 256, 4
"""Pixels a side at which pictures are laid over one another, and how many are needed: three
photographs of one thing agree by chance too often."""
MARK_STEP, MARK_COSINE, MARK_SHARE = 6.0, 0.9, 0.005
"""Steps of light, of 255, that count; how alike they point; the share of such pixels."""


def picture_notes(picture: Picture, alpha: NDArray[np.uint8], size: int) -> list[str]:
    """Notes on a picture and its subject's opacity (H, W); `size`: side of a stored reference."""
    solid = alpha > 127
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    if not rows.size:
        return []
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    longer = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    notes = []
    if longer < TINY * size:
        notes.append(
            f"the subject is smaller than {round(TINY * size)} pixels and is enlarged to {size}; "
            "bring a larger picture"
        )
    elif is_blurred(picture.image[window], solid[window]):
        notes.append("the subject is blurred; bring a sharper picture")
    if picture.alpha is None and _is_cut(solid):
        notes.append("the subject is cut by the picture's border; bring one that shows all of it")
    return notes


def is_blurred(image: NDArray[np.uint8], solid: NDArray[np.bool_]) -> bool:
    """Whether a subject's picture (H, W, 3), which is its box, has no steep edge inside the subject
    (H, W). An edge of width s rises by 1 / (s sqrt(2 pi)) of its contrast per pixel."""
    scale = SIDE / max(solid.shape)
    fit = (max(8, round(solid.shape[1] * scale)), max(8, round(solid.shape[0] * scale)))
    grey = Image.fromarray((image @ LUMA).astype(np.uint8)).resize(fit, Image.Resampling.BOX)
    mask = Image.fromarray(solid.astype(np.uint8) * np.uint8(255)).resize(fit)
    inside = ndimage.binary_erosion(np.asarray(mask) > 127, iterations=3)
    light = np.asarray(grey, dtype=np.float64)
    if inside.sum() < SIDE:
        return False
    low, high = np.percentile(light[inside], [2, 98])
    if high - low < FLAT:
        return False
    dy, dx = np.gradient(light)
    steepest = np.percentile(np.hypot(dx, dy)[inside], 99.5)
    return bool(steepest < SHARP * (high - low))


def _is_cut(solid: NDArray[np.bool_]) -> bool:
    """Whether a subject (H, W) runs into a side of its picture over a good part of its extent."""
    if solid.all():
        return False  # the whole picture counts as the subject, which is told
    high, wide = int(solid.any(axis=1).sum()), int(solid.any(axis=0).sum())
    sides = ((solid[0], wide), (solid[-1], wide), (solid[:, 0], high), (solid[:, -1], high))
    return any(side.sum() > CUT * extent for side, extent in sides)


def light_of(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """A picture's luma at the size at which pictures are laid over one another."""
    small = Image.fromarray(image).resize((MARK_SIDE, MARK_SIDE))
    return np.asarray(np.asarray(small, np.float64) @ LUMA)


def has_common_mark(light: Sequence[NDArray[np.float64]]) -> bool:
    """Whether pictures that differ, as `light_of` gives them, share a pattern at one place, as a
    watermark or a logo does: steps of light that point the same way in all of them (after Dekel et
    al., CVPR 2017)."""
    if len(light) < MARK_PICTURES:
        return False
    steps = np.stack([np.stack(list(np.gradient(plane))) for plane in light])
    length = np.hypot(steps[:, 0], steps[:, 1])
    unit = steps / np.maximum(length[:, None], 1e-6)
    mean = unit.mean(axis=0)
    mean /= np.maximum(np.hypot(*mean), 1e-6)
    alike = (unit * mean).sum(axis=1).min(axis=0) > MARK_COSINE
    common = alike & (length.min(axis=0) > MARK_STEP)
    apart = np.std(np.stack(light), axis=0).mean() > MARK_STEP
    return bool(apart and common.mean() > MARK_SHARE)
