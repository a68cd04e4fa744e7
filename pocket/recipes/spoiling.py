"""Pictures and masks with the faults of small painters and segmenters.

Everything is a function of a seed. B items, H = W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def spoil(images_BCHW: Tensor, seed: int) -> Tensor:
    """Images with the faults of small painters: soft, noisy, a little bent, a little off in
    light. Hue is left alone; a fifth stays clean."""
    rng = torch.Generator().manual_seed(seed)
    b = len(images_BCHW)

    def draw() -> Tensor:
        return torch.rand(b, 1, 1, 1, generator=rng)

    height, width = images_BCHW.shape[-2:]
    bent = F.grid_sample(
        images_BCHW,
        _bent_grid(b, height, width, rng),
        padding_mode="border",
        align_corners=False,
    )
    out = torch.where(draw() < 0.5, bent, images_BCHW)
    soft = F.avg_pool2d(F.pad(out, (1, 1, 1, 1), mode="replicate"), 3, 1)
    out = torch.lerp(out, soft, draw() * (draw() < 0.6))
    small = F.interpolate(out, scale_factor=0.5, mode="area")
    small = F.interpolate(small, size=(height, width), mode="bilinear", align_corners=False)
    out = torch.lerp(out, small, draw() * (draw() < 0.3))
    grain = torch.randn(out.shape, generator=rng) * 0.5
    grain = grain + F.interpolate(
        torch.randn(b, 3, height // 4, width // 4, generator=rng), size=(height, width),
        mode="bilinear", align_corners=False,
    )  # fmt: skip
    out = out + 0.06 * draw() * grain
    out = (out - 0.5) * (1 + 0.2 * (draw() - 0.5)) + 0.5 + 0.08 * (draw() - 0.5)
    return torch.where(draw() < 0.2, images_BCHW, out.clamp(0, 1))


def _bent_grid(b: int, height: int, width: int, rng: torch.Generator) -> Tensor:
    """A smooth field of shifts of about one pixel."""
    flow = torch.randn(b, 2, 8, 8, generator=rng) * (2.2 / width)
    flow = F.interpolate(flow, size=(height, width), mode="bicubic", align_corners=False)
    identity = torch.eye(2, 3)[None].expand(b, -1, -1)
    base = F.affine_grid(identity, [b, 3, height, width], align_corners=False)
    return base + flow.permute(0, 2, 3, 1)


def ragged(masks_BHW: Tensor, seed: int) -> Tensor:
    """Masks as a segmenter finds them: some grown or shrunk by a pixel, never emptied."""
    rng = torch.Generator().manual_seed(seed)
    soft = masks_BHW.float()[:, None]
    grown = F.max_pool2d(soft, 3, 1, 1)[:, 0] > 0.5
    shrunk = -F.max_pool2d(-soft, 3, 1, 1)[:, 0] > 0.5
    shrunk = torch.where(shrunk.sum((1, 2), keepdim=True) > 40, shrunk, masks_BHW)
    choice = torch.rand(len(masks_BHW), 1, 1, generator=rng)
    return torch.where(choice < 0.2, grown, torch.where(choice < 0.4, shrunk, masks_BHW))
