"""Square crops of masked subjects: what the scorers of individuals look at.

Letters: B crops, S pixels of a crop's side, H and W of the image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from focusdpo.pipeline.parts import Image, Mask

MARGIN = 0.06
"""White border on each side, as a share of the longer side of the mask's box."""


def crop_subjects(
    images_BCHW: Tensor, masks_BHW: Tensor, size: int, margin: float = MARGIN
) -> Tensor:
    """(B, 3, S, S) in [0, 1]: the masked subject on white, its box centred and as large as fits.

    An empty mask gives a white crop.
    """
    height, width = masks_BHW.shape[-2:]
    soft = masks_BHW.float()
    # Ink instead of paper: the zero padding of grid_sample is then white.
    ink = (1 - images_BCHW) * soft[:, None]
    rows, cols = masks_BHW.any(-1), masks_BHW.any(-2)
    y0, y1 = _span(rows)
    x0, x1 = _span(cols)
    half = torch.maximum(y1 - y0, x1 - x0).clamp_min(1) / 2 * (1 + 2 * margin)
    steps = (torch.arange(size, device=soft.device) + 0.5) / size * 2 - 1
    x = ((x0 + x1) / 2)[:, None] + half[:, None] * steps
    y = ((y0 + y1) / 2)[:, None] + half[:, None] * steps
    grid = torch.stack(
        [
            (x / width * 2 - 1)[:, None, :].expand(-1, size, -1),
            (y / height * 2 - 1)[:, :, None].expand(-1, -1, size),
        ],
        -1,
    )
    return 1 - F.grid_sample(ink, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def crops_of(
    images: Sequence[Image], masks: Sequence[Mask], size: int, margin: float = MARGIN
) -> Tensor:
    """`crop_subjects` for uint8 pictures that may differ in size: (B, 3, S, S)."""
    if len(images) != len(masks):
        raise ValueError(f"{len(images)} images and {len(masks)} masks; need one mask per image")
    crops = []
    for image, mask in zip(images, masks, strict=True):
        if image.shape[:2] != mask.shape:
            raise ValueError(f"image {image.shape} and mask {mask.shape} differ in size")
        alone = np.where(
            mask[..., None], image, np.uint8(255)
        )  # or shrinking mixes in what is around
        pixels = torch.from_numpy(alone).permute(2, 0, 1)[None].float() / 255
        crops.append(
            crop_subjects(_reduce(pixels, mask, size), _reduce_mask(mask, size), size, margin)
        )
    return torch.cat(crops) if crops else torch.zeros(0, 3, size, size)


def _factor(mask: Mask, size: int) -> int:
    """By how much a picture may shrink before the crop would lose detail."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        return 1
    side = max(rows[-1] - rows[0], cols[-1] - cols[0]) + 1
    return max(1, int(side // (2 * size)))


def _reduce(pixels: Tensor, mask: Mask, size: int) -> Tensor:
    factor = _factor(mask, size)
    return F.avg_pool2d(pixels, factor, ceil_mode=True, count_include_pad=False)


def _reduce_mask(mask: Mask, size: int) -> Tensor:
    soft = torch.from_numpy(np.ascontiguousarray(mask))[None, None].float()
    return _reduce(soft, mask, size)[:, 0] > 0.5


def _span(line_BL: Tensor) -> tuple[Tensor, Tensor]:
    """First and one past the last true position, as floats."""
    first = line_BL.int().argmax(-1)
    last = line_BL.shape[-1] - line_BL.flip(-1).int().argmax(-1)
    return first.float(), last.float()
