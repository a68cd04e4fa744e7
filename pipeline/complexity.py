"""The complexity map M_d: how much a patch has to tell (design 4, step 6; method 3.3, step 8).

Luma is taken as locally Gaussian; its differential entropy 0.5 * log(2 pi e (var + eps)) under a
Gaussian window says how much detail lies there. The alternative reads "Gaussian, then entropy" as a
blur and the entropy of a local histogram. M_d depends on an image and the prior alone, so it is
computed once, in the data flow, and travels in the shard.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy import ndimage, special

from focusdpo.data_schemas.strict import StrictModel
from focusdpo.pipeline.parts import Image, Mask

VERSION = 1
LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601 weights of red, green, blue."""

Map = NDArray[np.float32]


class ComplexityConfig(StrictModel):
    """The estimator, its window and the scaling of M_d."""

    estimator: Literal["gaussian", "histogram"] = Field(
        default="gaussian",
        description="Entropy of the local Gaussian, or of the local histogram of a blurred image.",
    )
    sigma: float = Field(
        default=1 / 64,
        gt=0,
        le=0.5,
        description="Standard deviation of the Gaussian window (histogram: of the blur before it), "
        "as a share of the image's height (1 px at 64, 8 px at 512).",
    )
    window: Literal["disk", "square"] = Field(
        default="disk", description="Shape of the histogram's window."
    )
    radius: float = Field(
        default=1 / 32,
        gt=0,
        le=0.5,
        description="The histogram's window reaches so far from its centre, as a share of the "
        "image's height, at least 1 px.",
    )
    bins: int = Field(default=32, ge=2, le=256, description="Bins of the histogram over [0, 1].")
    eps: float = Field(
        default=1e-4,
        gt=0,
        description="Added to the variance of luma in [0, 1]: the floor of detail.",
    )
    low: float = Field(
        default=0.02, ge=0, lt=1, description="Quantile inside the prior that becomes 0."
    )
    high: float = Field(
        default=0.98, gt=0, le=1, description="Quantile inside the prior that becomes 1."
    )

    @model_validator(mode="after")
    def _ordered(self) -> ComplexityConfig:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low}, it must lie below high ({self.high})")
        return self


def map_settings(config: ComplexityConfig) -> dict[str, Any]:
    """All that a map depends on besides its image and prior: the settings, and the version of this
    code. The first version goes unnamed, as in the digests of datasets that it made."""
    settings = config.model_dump(mode="json")
    return settings if VERSION == 1 else {**settings, "version": VERSION}


def luma(image: Image) -> NDArray[np.float64]:
    """Luma (H, W) in [0, 1] of an RGB image."""
    weighted: NDArray[np.float64] = image.astype(np.float64) @ np.array(LUMA) / 255
    return weighted


def local_entropy(luma_HW: NDArray[np.float64], sigma: float, eps: float) -> NDArray[np.float64]:
    """Entropy (H, W) in nats of the local Gaussian; `sigma` in pixels, edges mirrored."""
    mean = ndimage.gaussian_filter(luma_HW, sigma, mode="reflect")
    square = ndimage.gaussian_filter(luma_HW**2, sigma, mode="reflect")
    variance = np.maximum(square - mean**2, 0)
    entropy: NDArray[np.float64] = 0.5 * np.log(2 * np.pi * np.e * (variance + eps))
    return entropy


def _half_widths(radius: int, window: Literal["disk", "square"]) -> NDArray[np.intp]:
    """How far each row of a window reaches to either side, rows -radius to radius."""
    rows = np.arange(-radius, radius + 1)
    if window == "square":
        return np.full_like(rows, radius)
    return np.sqrt(radius**2 - rows**2).astype(np.intp)


def window_counts(
    inside_HW: NDArray[np.bool_], radius: int, window: Literal["disk", "square"]
) -> NDArray[np.int64]:
    """How many pixels of the window about each pixel are inside, edges mirrored. Rows of a window
    are runs, so a running sum along x gives each at once."""
    height, width = inside_HW.shape
    padded = np.pad(inside_HW, radius, mode="symmetric").astype(np.int64)
    sums = np.pad(padded.cumsum(axis=1), ((0, 0), (1, 0)))
    counts = np.zeros((height, width), np.int64)
    for row, half in enumerate(_half_widths(radius, window)):
        first, last = radius - half, radius + half + 1
        line = sums[row : row + height]
        counts += line[:, last : last + width] - line[:, first : first + width]
    return counts


def histogram_entropy(
    luma_HW: NDArray[np.float64],
    sigma: float,
    radius: int,
    bins: int,
    window: Literal["disk", "square"],
) -> NDArray[np.float64]:
    """Entropy (H, W) in nats of the histogram of the blurred luma about each pixel; `sigma` and
    `radius` in pixels, edges mirrored."""
    blurred = ndimage.gaussian_filter(luma_HW, sigma, mode="reflect")
    bin_HW = np.clip((blurred * bins).astype(np.intp), 0, bins - 1)
    size = int((2 * _half_widths(radius, window) + 1).sum())
    entropy = np.full(luma_HW.shape, np.log(size))
    for level in np.unique(bin_HW):  # log(size) - sum of n log(n) / size
        count = window_counts(bin_HW == level, radius, window)
        entropy -= special.xlogy(count, count) / size
    return entropy


def scale_inside(values: NDArray[np.float64], prior: Mask, low: float, high: float) -> Map:
    """`values` min-max scaled between two quantiles inside `prior`, clipped to [0, 1]; 0 outside.

    A region without variation (or an empty one) has nothing to tell: 0 everywhere.
    """
    scaled = np.zeros(values.shape, dtype=np.float32)
    if not prior.any():
        return scaled
    bottom, top = np.quantile(values[prior], [low, high])
    if top - bottom < 1e-9:
        return scaled
    scaled[prior] = np.clip((values[prior] - bottom) / (top - bottom), 0, 1)
    return scaled


def complexity_map(image: Image, prior: Mask, config: ComplexityConfig | None = None) -> Map:
    """M_d (H, W) in [0, 1] at pixel resolution; `prior` is the region of the pair."""
    config = config or ComplexityConfig()
    if image.shape[:2] != prior.shape:
        raise ValueError(f"prior is {prior.shape}, expected {image.shape[:2]} (height, width)")
    height = image.shape[0]
    if config.estimator == "histogram":
        radius = max(1, round(config.radius * height))
        entropy = histogram_entropy(
            luma(image), config.sigma * height, radius, config.bins, config.window
        )
    else:
        entropy = local_entropy(luma(image), config.sigma * height, config.eps)
    return scale_inside(entropy, prior, config.low, config.high)
