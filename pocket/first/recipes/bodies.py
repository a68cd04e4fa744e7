"""What a network that finds bodies learns from. B scenes, R subjects, H, W pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from focusdpo.pocket.first.bodies import REACH


def body_loss(
    logits_BHW: Tensor, offsets_B2HW: Tensor, masks_BRHW: Tensor, offset_weight: float
) -> Tensor:
    """Mask loss of the union plus the mean miss of the offsets on bodies, in units of REACH."""
    body = masks_BRHW.any(1)
    miss = (offsets_B2HW - centre_offsets(masks_BRHW)).abs().mean(1) / REACH
    return mask_loss(logits_BHW, body.float()) + offset_weight * miss[body].mean()


def mask_loss(logits_BHW: Tensor, target_BHW: Tensor) -> Tensor:
    """Binary cross-entropy plus soft Dice."""
    probability = logits_BHW.sigmoid()
    overlap = (probability * target_BHW).sum((1, 2))
    total = probability.sum((1, 2)) + target_BHW.sum((1, 2))
    dice = 1 - (2 * overlap + 1) / (total + 1)
    return F.binary_cross_entropy_with_logits(logits_BHW, target_BHW) + dice.mean()


def centre_offsets(masks_BRHW: Tensor) -> Tensor:
    """(B, 2, H, W): from each body pixel to the middle of its body as x, y; 0 on background."""
    height, width = masks_BRHW.shape[-2:]
    soft = masks_BRHW.float()
    area = soft.sum((2, 3)).clamp_min(1)
    place = masks_BRHW.device
    x = torch.arange(width, device=place).float()
    y = torch.arange(height, device=place).float()[:, None]
    centre_x = (soft * x).sum((2, 3)) / area
    centre_y = (soft * y).sum((2, 3)) / area
    to_x = ((centre_x[..., None, None] - x) * soft).sum(1)
    to_y = ((centre_y[..., None, None] - y) * soft).sum(1)
    return torch.stack([to_x, to_y], 1)
