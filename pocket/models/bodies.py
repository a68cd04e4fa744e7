"""Bodies from maps: what the segmenter and the judge both read off their own networks.

As in Panoptic-DeepLab (arXiv 1911.10194) a network tells for every pixel whether it belongs to a
body, whether a body has its centre there, and where the centre of its own body lies. The peaks of
the second map are the bodies; every pixel of the first goes to the peak that it points to, so that
a body that another one cuts in two stays one. H, W pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage

from focusdpo.pipeline.parts import Mask

REACH = 16.0
"""Pixels of one unit of a predicted offset."""
Map = NDArray[np.float32]


class BodiesConfig(BaseModel):
    """How bodies are read off."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    foreground: float = Field(0.5, description="least foreground probability of a pixel")
    centre: float = Field(0.25, description="least height of a centre's peak")
    smooth: float = Field(1.0, description="pixels that centres are smoothed by", ge=0)
    apart: int = Field(13, description="side of the window in which one peak is kept", ge=1)
    min_area: int = Field(60, description="least pixels of a body", ge=1)


def find_bodies(
    probability_HW: Map, centre_HW: Map, offsets_2HW: Map, config: BodiesConfig
) -> list[tuple[Mask, float]]:
    """Disjoint masks and their mean probability. Offsets are x, y in pixels to the body's
    centre."""
    smooth = ndimage.gaussian_filter(centre_HW, config.smooth)
    peaks = (smooth == ndimage.maximum_filter(smooth, config.apart)) & (smooth > config.centre)
    centres = np.argwhere(peaks)
    rows, cols = np.nonzero(probability_HW > config.foreground)
    if not len(centres) or not len(rows):
        return []
    y, x = rows + offsets_2HW[1][rows, cols], cols + offsets_2HW[0][rows, cols]
    distance = (y[:, None] - centres[:, 0]) ** 2 + (x[:, None] - centres[:, 1]) ** 2
    masks = np.zeros((len(centres), *probability_HW.shape), bool)
    masks[distance.argmin(1), rows, cols] = True
    return [
        (mask, float(probability_HW[mask].mean()))
        for mask in masks
        if mask.sum() >= config.min_area
    ]


def box_of(mask: Mask) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of a mask that is not empty, end exclusive."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1
