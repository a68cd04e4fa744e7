"""What is minimised: errors per token, per image, per pair. Pure functions in float32 (in float64
where a model computes in it).

Diffusion-DPO (arXiv 2311.12908, equation 14) in flow-matching form, its weighted forms (masked DPO,
FocusDPO, PatchDPO), SFT, and SDPO's safeguard, from the same parts. Shapes: B pairs, N tokens, C
channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from focusdpo.model.training.config import ObjectiveConfig


@dataclass(frozen=True)
class PairErrors:
    """Errors per image (B,), or per token (B, N), of the policy and of the reference policy; the
    latter's are 0 where an objective does without it."""

    win_B: Tensor
    lose_B: Tensor
    ref_win_B: Tensor
    ref_lose_B: Tensor


@dataclass(frozen=True)
class RegionErrors:
    """Errors (B, R), means over each subject's region, of the image that shows the subject better
    (`win`) and of the other; `signed_BR` in {0, 1}: the regions that count."""

    win_BR: Tensor
    lose_BR: Tensor
    ref_win_BR: Tensor
    ref_lose_BR: Tensor
    signed_BR: Tensor


@dataclass(frozen=True)
class Loss:
    """A scalar to minimise and the pairs' logits, -beta/2 Delta (B,): above 0 the policy prefers
    the winner more than the reference policy does."""

    value: Tensor
    logit_B: Tensor


def token_error(output_BNC: Tensor, target_BNC: Tensor) -> Tensor:
    """e (B, N): squared error, mean over channels. In float32: squaring in half precision loses
    more than the differences that DPO lives on."""
    return (_full(output_BNC) - _full(target_BNC)).square().mean(dim=2)


def _full(values: Tensor) -> Tensor:
    """In float32, or in float64 where they are."""
    return values if values.dtype == torch.float64 else values.float()


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
    """Delta = (l_w - l_w^ref) - (l_l - l_l^ref), of the errors' shape: negative where the policy
    gained more on the winner than on the loser."""
    return (errors.win_B - errors.ref_win_B) - (errors.lose_B - errors.ref_lose_B)


def preference_penalty(logit: Tensor, form: str) -> Tensor:
    """Elementwise, of h = -beta/2 Delta. Each form's slope at a fresh policy (h = 0) is -1/2, -1
    (hinge) or -1 (ipo, arXiv 2310.12036 with its margin absorbed in beta)."""
    if form == "hinge":
        return (1 - logit).clamp(min=0)
    if form == "ipo":
        return (logit - 0.5).square()
    return -F.logsigmoid(logit)


def preference_loss(errors: PairErrors, config: ObjectiveConfig) -> Loss:
    """mean of -log sigmoid(-beta/2 Delta), or of another form, + the anchor on l_w."""
    logit_B = -0.5 * config.beta * preference_delta(errors)
    value = preference_penalty(logit_B, config.form).mean()
    return Loss(_anchored(value, errors.win_B, config), logit_B.detach())


def token_preference_loss(
    errors: PairErrors, weight_BN: Tensor | None, config: ObjectiveConfig
) -> Loss:
    """A sigmoid per token, for pairs whose tokens correspond (method 3.5, row 18): mean over
    tokens of W (-log sigmoid(-beta/2 Delta_j)) + the anchor on l_w. `errors` are per token,
    (B, N); the logit that is told is their weighted mean."""
    if weight_BN is None:
        weight_BN = torch.ones_like(errors.win_B)
    logit_BN = -0.5 * config.beta * preference_delta(errors)
    value = (weight_BN * preference_penalty(logit_BN, "sigmoid")).mean()
    win_B = image_error(errors.win_B, weight_BN)
    logit_B = (weight_BN * logit_BN).mean(dim=1).detach()
    return Loss(_anchored(value, win_B, config), logit_B)


def region_means(values_BN: Tensor, region_BRN: Tensor) -> Tensor:
    """(B, R): mean over each region's tokens; 0 of an empty region."""
    size_BR = region_BRN.sum(dim=2)
    sums_BR = torch.einsum("brn,bn->br", region_BRN.to(values_BN), values_BN)
    return sums_BR / size_BR.clamp(min=1).to(values_BN)


def better_first(win_BR: Tensor, lose_BR: Tensor, signs_BR: Tensor) -> tuple[Tensor, Tensor]:
    """Both, exchanged where the loser shows the subject better (sign -1)."""
    turned_BR = signs_BR < 0
    return torch.where(turned_BR, lose_BR, win_BR), torch.where(turned_BR, win_BR, lose_BR)


def instance_loss(errors: RegionErrors, config: ObjectiveConfig) -> Loss:
    """A preference per subject, as IAPO asks for it: with Delta_r of region r, whose errors are
    means over that region (masked DPO with a mask of mean 1), the mean over the pair's regions with
    a sign of -log sigmoid(-beta/2 Delta_r) + eta l_r of the better image, then over pairs. A pair
    without such a region adds nothing. The logit that is told is the mean over its regions."""
    pair = PairErrors(errors.win_BR, errors.lose_BR, errors.ref_win_BR, errors.ref_lose_BR)
    logit_BR = -0.5 * config.beta * preference_delta(pair)
    value_BR = preference_penalty(logit_BR, config.form) + config.eta * errors.win_BR
    share_BR = errors.signed_BR.to(value_BR) / errors.signed_BR.sum(1, keepdim=True).clamp(min=1)
    return Loss((share_BR * value_BR).sum(1).mean(), (share_BR * logit_BR).sum(1).detach())


def sft_loss(win_B: Tensor) -> Loss:
    """The winner's error: plain fine-tuning."""
    return Loss(win_B.mean(), win_B.detach().new_zeros(win_B.shape))


def patch_loss(errors: PairErrors, config: ObjectiveConfig) -> Loss:
    """PatchDPO in either of its forms."""
    if config.is_released_patch:
        return released_patch_loss(errors.win_B, errors.lose_B, config)
    return preference_loss(errors, config)


def released_patch_loss(win_B: Tensor, lose_B: Tensor, config: ObjectiveConfig) -> Loss:
    """PatchDPO as its authors released it: both weighted errors are minimised, (l_w + l_l) / 2,
    the weights saying which patches of each image are worth it. No sigmoid, no reference."""
    value = 0.5 * (win_B + lose_B).mean()
    return Loss(_anchored(value, win_B, config), win_B.detach().new_zeros(win_B.shape))


def safeguard_scale(win_slope_BNC: Tensor, lose_slope_BNC: Tensor, mu: float, scope: str) -> Tensor:
    """lambda (B,) of SDPO (arXiv 2511.03317) from the slopes of both errors in output space:
    clip((1 - mu) |g_w|^2 / <g_l, g_w>, 0, 1) where the slopes agree, else 1.

    A step that lowers l_w - lambda l_l then lowers l_w by at least mu |g_w|^2 per unit."""
    dims = (1, 2) if scope == "pair" else (0, 1, 2)
    product = (win_slope_BNC * lose_slope_BNC).sum(dims)
    scale = _safe_share(product, win_slope_BNC.square().sum(dims), mu)
    return scale.expand(win_slope_BNC.shape[0])


def _safe_share(product: Tensor, norm: Tensor, mu: float) -> Tensor:
    safe = torch.where(product > 0, product, 1.0)
    return torch.where(product > 0, ((1 - mu) * norm / safe).clamp(0, 1), 1.0)


def region_safeguard(
    win_slope_BNC: Tensor,
    lose_slope_BNC: Tensor,
    region_BRN: Tensor,
    signs_BR: Tensor,
    mu: float,
    scope: str,
) -> Tensor:
    """`safeguard_scale` per region (B, R), of the slopes of errors that are means over tokens."""
    product_BR = region_means((win_slope_BNC * lose_slope_BNC).sum(2), region_BRN)
    win_norm_BR = region_means(win_slope_BNC.square().sum(2), region_BRN)
    lose_norm_BR = region_means(lose_slope_BNC.square().sum(2), region_BRN)
    norm_BR, _ = better_first(win_norm_BR, lose_norm_BR, signs_BR)
    if scope == "pair":
        return _safe_share(product_BR, norm_BR, mu)
    signed_BR = (signs_BR != 0).to(norm_BR)
    product, norm = ((signed_BR * values).sum() for values in (product_BR, norm_BR))
    return _safe_share(product, norm, mu).expand_as(product_BR)


def error_slope(output_BNC: Tensor, target_BNC: Tensor, weight_BN: Tensor | None) -> Tensor:
    """d l / d velocity (B, N, C) of `image_error` of `token_error`."""
    slope_BNC = 2 * (_full(output_BNC.detach()) - _full(target_BNC))
    if weight_BN is not None:
        slope_BNC = slope_BNC * weight_BN.unsqueeze(2)
    return slope_BNC / (slope_BNC.shape[1] * slope_BNC.shape[2])


def scale_gradient(value: Tensor, scale: Tensor) -> Tensor:
    """The same value, its gradient times `scale`."""
    return value.detach() + scale * (value - value.detach())


def implicit_accuracy(logit_B: Tensor) -> Tensor:
    """Per pair 1 where the policy prefers the winner, 0 the loser, 0.5 on a tie (step 0)."""
    return (logit_B > 0).float() + 0.5 * (logit_B == 0).float()


def _anchored(value: Tensor, win_B: Tensor, config: ObjectiveConfig) -> Tensor:
    weight = config.anchor_weight
    return value + weight * win_B.mean() if weight > 0 else value
