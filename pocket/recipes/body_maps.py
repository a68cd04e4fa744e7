"""What a network that finds bodies learns from. B scenes, R subjects, H, W pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from focusdpo.pocket.models.bodies import REACH

CENTRE_WIDTH = 0.1
"""Standard deviation of a centre's bump, in square roots of the body's area."""
CENTRE_WEIGHT = 8.0
"""Of the centres' squared error, which is small for most pixels are no centre; and by how much more
it counts on a centre."""


def body_loss(
    logits_BHW: Tensor,
    centres_BHW: Tensor,
    offsets_B2HW: Tensor,
    masks_BRHW: Tensor,
    offset_weight: float,
) -> Tensor:
    """Mask loss of the union, squared error of the centres' bumps, and the mean miss of the offsets
    on bodies in units of REACH."""
    body = masks_BRHW.any(1)
    to_centre, bumps = centre_maps(masks_BRHW)
    miss = (offsets_B2HW - to_centre).abs().mean(1) / REACH
    error = (centres_BHW.sigmoid() - bumps).square()
    centres = CENTRE_WEIGHT * ((1 + CENTRE_WEIGHT * bumps) * error).mean()
    return mask_loss(logits_BHW, body.float()) + centres + offset_weight * miss[body].mean()


def mask_loss(logits_BHW: Tensor, target_BHW: Tensor) -> Tensor:
    """Binary cross-entropy plus soft Dice."""
    probability = logits_BHW.sigmoid()
    overlap = (probability * target_BHW).sum((1, 2))
    total = probability.sum((1, 2)) + target_BHW.sum((1, 2))
    dice = 1 - (2 * overlap + 1) / (total + 1)
    return F.binary_cross_entropy_with_logits(logits_BHW, target_BHW) + dice.mean()


def centre_maps(masks_BRHW: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 2, H, W): from each body pixel to the middle of its body as x, y, 0 on background; and
    (B, H, W) in [0, 1]: a bump at each middle. Empty masks have none."""
    height, width = masks_BRHW.shape[-2:]
    place = masks_BRHW.device
    soft = masks_BRHW.float()
    count = soft.sum((2, 3))
    area = count.clamp_min(1)
    x = torch.arange(width, device=place).float()
    y = torch.arange(height, device=place).float()[:, None]
    centre_x = ((soft * x).sum((2, 3)) / area)[..., None, None]
    centre_y = ((soft * y).sum((2, 3)) / area)[..., None, None]
    offsets = torch.stack([((centre_x - x) * soft).sum(1), ((centre_y - y) * soft).sum(1)], 1)
    spread = (CENTRE_WIDTH * area.sqrt()).clamp(2, 6)[..., None, None]
    bumps = torch.exp(-((x - centre_x) ** 2 + (y - centre_y) ** 2) / (2 * spread**2))
    return offsets, (bumps * (count > 0)[..., None, None]).amax(1)
