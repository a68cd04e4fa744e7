"""Masks for a repaint and the exact paste-back: pure functions of arrays (H, W)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from focusdpo.pipeline.parts import Image, Mask


def grow(mask: Mask, pixels: int, keep: Mask) -> Mask:
    """`mask` and all within `pixels` (Euclidean) of it, less `keep`; `mask` itself stays whole."""
    if not mask.any():
        return mask.copy()
    near = ndimage.distance_transform_edt(~mask) <= pixels
    return mask | (near & ~keep)


def feather_alpha(region: Mask, solid: Mask, pixels: int) -> NDArray[np.float32]:
    """Opacity (H, W): 0 outside `region`, a ramp of `pixels` steps, 1 beyond it and on `solid`.

    Above 0 everywhere in `region`, so that `region` is exactly what is repainted.
    """
    if region.all():
        return np.ones(region.shape, dtype=np.float32)
    # The picture's own border is no edge: pad so that distances ignore it.
    depth = ndimage.distance_transform_edt(np.pad(region, pixels + 1, mode="edge"))
    inner = depth[pixels + 1 : -pixels - 1, pixels + 1 : -pixels - 1]
    alpha = np.clip(inner / (pixels + 1), 0, 1).astype(np.float32)
    alpha[solid & region] = 1
    return alpha


def blend(new: Image, old: Image, alpha: NDArray[np.float32]) -> Image:
    """`new` over `old` with opacity alpha (H, W) in [0, 1]; exactly `old` where alpha is 0."""
    mixed = np.rint(alpha[..., None] * new + (1 - alpha[..., None]) * old.astype(np.float32))
    pasted: Image = np.where(alpha[..., None] > 0, mixed, old).astype(np.uint8)
    return pasted
