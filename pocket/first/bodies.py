"""Bodies from maps: what the segmenter and the judge both read off their own networks.

A network tells for every pixel whether it belongs to a body and, as in Panoptic-DeepLab (arXiv
1911.10194), where the centre of that body lies. Connected regions are bodies; a region whose
pixels point to several centres is divided. H, W pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage

from focusdpo.pipeline.parts import Mask

REACH = 16.0
"""Pixels of one unit of a predicted offset."""


class BodiesConfig(BaseModel):
    """How bodies are read off."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    foreground: float = Field(0.5, description="least foreground probability of a pixel")
    min_area: int = Field(14, description="least pixels of a body", ge=1)
    apart: float = Field(8.0, description="least distance of two centres in pixels", gt=0)
    split_share: float = Field(0.2, description="least share of a region that a body may have")


def find_bodies(
    probability_HW: NDArray[np.float32], offsets_2HW: NDArray[np.float32], config: BodiesConfig
) -> list[tuple[Mask, float]]:
    """Masks and their mean probability. Offsets are x, y in pixels to the body's centre."""
    labels, count = ndimage.label(probability_HW > config.foreground)
    bodies = []
    for label in range(1, count + 1):
        region: Mask = labels == label
        if region.sum() >= config.min_area:
            parts = divide(region, offsets_2HW, config)
            bodies += [(part, float(probability_HW[part].mean())) for part in parts]
    return bodies


def divide(region: Mask, offsets_2HW: NDArray[np.float32], config: BodiesConfig) -> list[Mask]:
    """The bodies of a region by the centres that its pixels point to; the region itself if it is
    one body. Every pixel belongs to exactly one part."""
    rows, cols = np.nonzero(region)
    height, width = region.shape
    x = (cols + offsets_2HW[0][rows, cols]).clip(0, width - 1)
    y = (rows + offsets_2HW[1][rows, cols]).clip(0, height - 1)
    votes = np.zeros(region.shape)
    np.add.at(votes, (y.round().astype(int), x.round().astype(int)), 1)
    smooth = ndimage.gaussian_filter(votes, 1.5)
    window = 2 * int(config.apart // 2) + 1
    peaks = (smooth == ndimage.maximum_filter(smooth, window)) & (smooth > 0.2 * smooth.max())
    centres = np.argwhere(peaks)
    least = max(config.min_area, config.split_share * len(rows))
    while len(centres) > 1:
        owner = ((y[:, None] - centres[:, 0]) ** 2 + (x[:, None] - centres[:, 1]) ** 2).argmin(1)
        areas = np.bincount(owner, minlength=len(centres))
        if areas.min() >= least:
            parts = np.zeros((len(centres), height, width), bool)
            parts[owner, rows, cols] = True
            return list(parts)
        centres = np.delete(centres, areas.argmin(), axis=0)
    return [region]


def box_of(mask: Mask) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of a mask that is not empty, end exclusive."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1
