"""Diffusion-DPO as one writes it down first: what our training step is compared with, in speed,
memory and gradients.

The reference policy is a frozen copy of the whole model, and each of the four images' errors
(policy and reference policy, winner and loser) comes from a forward pass of its own. Nothing is
shared but the pair's noise and noise level, which the loss demands. Source: arXiv 2311.12908,
equation 14; the sums are written out here, apart from `model.objectives`.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from focusdpo.model.backbone import Backbone
from focusdpo.model.step import Autocast
from focusdpo.model.training.batches import PairBatch


def frozen_copy(backbone: Backbone) -> Backbone:
    """The same backbone on weights of its own. Take it before the policy's adapter is added."""
    copied = copy.copy(backbone)
    copied.transformer = copy.deepcopy(backbone.transformer).requires_grad_(False)
    return copied


def straightforward_dpo(
    policy: Backbone,
    frozen: Backbone,
    batch: PairBatch,
    noise_BNC: Tensor,
    sigma_B: Tensor,
    beta: float,
    cast: Autocast = nullcontext,
) -> Tensor:
    """The loss, with a graph through two forward passes of the policy."""

    def error(backbone: Backbone, clean_BNC: Tensor) -> Tensor:
        noisy_BNC = backbone.add_noise(clean_BNC, noise_BNC, sigma_B)
        target_BNC = backbone.target(clean_BNC, noise_BNC, sigma_B)
        with cast():
            output = backbone.predict(noisy_BNC, sigma_B, batch.prompts, batch.references)
        return (output.output_BNC.float() - target_BNC.float()).pow(2).mean(dim=(1, 2))

    win_B, lose_B = error(policy, batch.win_BNC), error(policy, batch.lose_BNC)
    with torch.no_grad():
        ref_win_B, ref_lose_B = error(frozen, batch.win_BNC), error(frozen, batch.lose_BNC)
    gain_B = (ref_win_B - win_B) - (ref_lose_B - lose_B)
    return -F.logsigmoid(beta / 2 * gain_B).mean()
