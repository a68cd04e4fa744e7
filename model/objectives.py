"""What is minimised: errors per token, per image, per pair. Pure functions in float32.

Diffusion-DPO (arXiv 2311.12908, equation 14) in flow-matching form, its weighted form (FocusDPO),
and SFT, from the same parts. Shapes: B pairs, N tokens, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from focusdpo.model.configs import ObjectiveConfig

__all__ = [
    "Loss",
    "ObjectiveConfig",
    "PairErrors",
    "image_error",
    "implicit_accuracy",
    "preference_delta",
    "preference_loss",
    "sft_loss",
    "token_error",
]


@dataclass(frozen=True)
class PairErrors:
    """Errors per image (B,) of the policy and of the reference policy."""

    win_B: Tensor
    lose_B: Tensor
    ref_win_B: Tensor
    ref_lose_B: Tensor


@dataclass(frozen=True)
class Loss:
    """A scalar to minimise and the pairs' logits, -beta/2 Delta (B,): above 0 the policy prefers
    the winner more than the reference policy does."""

    value: Tensor
    logit_B: Tensor


def token_error(velocity_BNC: Tensor, target_BNC: Tensor) -> Tensor:
    """e (B, N): squared error, mean over channels. In float32: squaring in half precision loses
    more than the differences that DPO lives on."""
    return (velocity_BNC.float() - target_BNC.float()).square().mean(dim=2)


def image_error(error_BN: Tensor, weight_BN: Tensor | None = None) -> Tensor:
    """l (B,): mean over tokens of W e; W = 1 when there is none."""
    if weight_BN is None:
        return error_BN.mean(dim=1)
    if weight_BN.shape != error_BN.shape:
        raise ValueError(
            f"weight is {tuple(weight_BN.shape)}, error {tuple(error_BN.shape)} (images, tokens)"
        )
    return (weight_BN.detach() * error_BN).mean(dim=1)


def preference_delta(errors: PairErrors) -> Tensor:
    """Delta (B,) = (l_w - l_w^ref) - (l_l - l_l^ref): negative where the policy gained more on the
    winner than on the loser."""
    return (errors.win_B - errors.ref_win_B) - (errors.lose_B - errors.ref_lose_B)


def preference_loss(errors: PairErrors, config: ObjectiveConfig) -> Loss:
    """mean of -log sigmoid(-beta/2 Delta) + eta l_w."""
    logit_B = -0.5 * config.beta * preference_delta(errors)
    value = -F.logsigmoid(logit_B).mean()
    if config.eta > 0:
        value = value + config.eta * errors.win_B.mean()
    return Loss(value, logit_B.detach())


def sft_loss(win_B: Tensor) -> Loss:
    """The winner's error: plain fine-tuning."""
    return Loss(win_B.mean(), win_B.detach().new_zeros(win_B.shape))


def implicit_accuracy(logit_B: Tensor) -> Tensor:
    """Per pair 1 where the policy prefers the winner, 0 the loser, 0.5 on a tie (step 0)."""
    return (logit_B > 0).float() + 0.5 * (logit_B == 0).float()
