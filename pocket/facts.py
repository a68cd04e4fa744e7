"""Facts that pixels tell without a learned model: a body's hue, and the structure of its light.

The world gives a body one hue and darkens it by a pattern of known period
(`pocket/world/sprites.py`), so both can be read off exactly, given the mask. Letters: B bodies,
S samples of a patch's side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from focusdpo.pipeline.parts import Image, Mask, Vectors
from focusdpo.pocket.hues import measure_hue

SIDE = 24
"""S. A pattern's period, 0.37 of a body's longer side, is then about 7 samples."""
SPAN = 1.67
"""Side of the patch in square roots of the body's area: most bodies fit, however turned."""
FINE, COARSE = 0.8, 3.4
"""Samples: Gaussians between which structure lies. The first makes small and large bodies equally
sharp, the second, half a period, takes the shading away."""
FEWEST = 40
"""Pixels below which a body holds less than two periods."""


def hues(images: Sequence[Image], masks: Sequence[Mask], min_chroma: float) -> Vectors:
    """(B,) degrees [0, 360); NaN where the mean chroma is below `min_chroma`."""
    out = np.full(len(images), np.nan, np.float32)
    for k, (image, mask) in enumerate(zip(images, masks, strict=True)):
        if not mask.any():
            continue
        body = image[mask].astype(np.float32) / 255
        if (body.max(1) - body.min(1)).mean() < min_chroma:
            continue
        pixels = torch.from_numpy(body.T.copy())[None, :, None]
        hue, _ = measure_hue(pixels, torch.ones(1, 1, len(body)))
        out[k] = float(hue[0]) * 360 % 360
    return out


def structures(images: Sequence[Image], masks: Sequence[Mask]) -> Vectors:
    """(B, 2, S, S): light between the two scales, and where it is known (1) or not (0).

    The patch stands on the body's centroid and is as large as its area says, so place and size do
    not matter; turning and mirroring are left to who compares. HSL's lightness is independent of
    hue, which the pattern does not change. NaN for a body of too few pixels.
    """
    out = np.full((len(images), 2, SIDE, SIDE), np.nan, np.float32)
    for k, (image, mask) in enumerate(zip(images, masks, strict=True)):
        if mask.sum() >= FEWEST:
            out[k] = _structure(image, mask)
    return out


def _structure(image: Image, mask: Mask) -> NDArray[np.float64]:
    rows, cols = np.nonzero(mask)
    box = slice(rows.min(), rows.max() + 1), slice(cols.min(), cols.max() + 1)
    body = mask[box].astype(np.float64)
    pixels = image[box].astype(np.float64)
    light = (pixels.max(2) + pixels.min(2)) / 510 * body
    step = SPAN * np.sqrt(len(rows)) / SIDE
    band = _smooth(light, body, FINE * step) - _smooth(light, body, COARSE * step)
    offsets = (np.arange(SIDE) - (SIDE - 1) / 2) * step
    where = np.meshgrid(
        rows.mean() - rows.min() + offsets, cols.mean() - cols.min() + offsets, indexing="ij"
    )
    known = ndimage.map_coordinates(body, where, order=1) > 0.9
    return np.stack([ndimage.map_coordinates(band * body, where, order=1) * known, known])


def _smooth(
    light: NDArray[np.float64], body: NDArray[np.float64], sigma: float
) -> NDArray[np.float64]:
    """Gaussian mean over the body alone: what surrounds it does not enter."""
    total, weight = (
        ndimage.gaussian_filter(values, sigma, mode="constant") for values in (light, body)
    )
    smooth: NDArray[np.float64] = total / np.maximum(weight, 1e-6)
    return smooth
