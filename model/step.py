"""One step of training up to the loss: pairs in, a scalar and what there is to say about it out.

Winner and loser go through the model as one batch of 2B, first through the reference policy without
gradients, then through the policy; the focus maps read the features of that same policy pass.
Shapes: B pairs, 2B images (winners, then losers), N target tokens, C channels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from focusdpo.model.adapter import reference_policy
from focusdpo.model.backbone import Backbone, Prediction
from focusdpo.model.batches import PairBatch
from focusdpo.model.configs import TrainConfig
from focusdpo.model.focus import FocusMaps, focus_maps, prior_weight
from focusdpo.model.focus_config import FocusConfig
from focusdpo.model.noise import add_noise, velocity_target
from focusdpo.model.objectives import (
    Loss,
    PairErrors,
    image_error,
    preference_loss,
    sft_loss,
    token_error,
)

Precision = Literal["auto", "no", "bf16"]
Autocast = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class StepOutput:
    """A loss with its ingredients; all but `loss.value` carry no gradient."""

    loss: Loss
    sigma_B: Tensor
    error_BN: Tensor
    """Policy's error per token: (2B, N), or (B, N) when there are only winners."""
    ref_error_BN: Tensor | None
    """The reference policy's."""
    weight_BN: Tensor | None
    """W, None where it is 1."""
    maps: FocusMaps | None


def resolve_precision(device: torch.device, precision: Precision) -> Literal["no", "bf16"]:
    """What "auto" means on a device."""
    if precision != "auto":
        return precision
    if device.type == "cpu":
        # Without these a CPU emulates bfloat16: 1 instead of 80 GFLOP/s on one AVX2 core.
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return "bf16" if native else "no"
    return "bf16"


def autocast(device: torch.device, precision: Precision) -> Autocast:
    """What to wrap forward passes in."""
    if resolve_precision(device, precision) == "no":
        return nullcontext
    # Norms keep float32 weights under autocast, as they should; torch says so once per process.
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16)


def pair_step(
    backbone: Backbone,
    batch: PairBatch,
    noise_BNC: Tensor,
    sigma_B: Tensor,
    config: TrainConfig,
    cast: Autocast = nullcontext,
) -> StepOutput:
    """The configured objective on one batch; noise and sigma per pair, shared by the branches."""
    if not config.objective.is_preference:
        return _winner_step(backbone, batch, noise_BNC, sigma_B, cast)
    clean_BNC = torch.cat([batch.win_BNC, batch.lose_BNC])
    noise_BNC, sigmas_B = noise_BNC.repeat(2, 1, 1), sigma_B.repeat(2)
    noisy_BNC = add_noise(clean_BNC, noise_BNC, sigmas_B)
    target_BNC = velocity_target(clean_BNC, noise_BNC)
    focused = config.objective.name == "focus_dpo"
    capture = config.focus.features if focused and config.focus.needs_features else None
    inputs = (noisy_BNC, sigmas_B, batch.prompts.repeat(2), batch.references.repeat(2))
    with torch.no_grad(), cast(), reference_policy(backbone.transformer):
        ref_BNC = backbone.predict(*inputs).velocity_BNC
    with cast():
        prediction = backbone.predict(*inputs, capture=capture)
    maps = _maps(prediction, batch, config.focus) if capture else None
    weight_BN = _weight(maps, batch, config)
    error_BN = token_error(prediction.velocity_BNC, target_BNC)
    ref_error_BN = token_error(ref_BNC, target_BNC)
    win_B, lose_B = image_error(error_BN, weight_BN).chunk(2)
    ref_win_B, ref_lose_B = image_error(ref_error_BN, weight_BN).chunk(2)
    loss = preference_loss(PairErrors(win_B, lose_B, ref_win_B, ref_lose_B), config.objective)
    return StepOutput(loss, sigma_B, error_BN.detach(), ref_error_BN, weight_BN, maps)


def _winner_step(
    backbone: Backbone, batch: PairBatch, noise_BNC: Tensor, sigma_B: Tensor, cast: Autocast
) -> StepOutput:
    noisy_BNC = add_noise(batch.win_BNC, noise_BNC, sigma_B)
    with cast():
        prediction = backbone.predict(noisy_BNC, sigma_B, batch.prompts, batch.references)
    error_BN = token_error(prediction.velocity_BNC, velocity_target(batch.win_BNC, noise_BNC))
    return StepOutput(sft_loss(image_error(error_BN)), sigma_B, error_BN.detach(), None, None, None)


def _maps(prediction: Prediction, batch: PairBatch, config: FocusConfig) -> FocusMaps:
    masks = batch.references.repeat(2).masks
    return focus_maps(prediction, masks, batch.priors.repeat(2), config)


def _weight(maps: FocusMaps | None, batch: PairBatch, config: TrainConfig) -> Tensor | None:
    """W (2B, N), the same for policy and reference policy; None for W = 1."""
    if config.objective.name == "dpo":
        return None
    if config.objective.name == "dpo_prior":
        plain = config.focus.model_copy(update={"use_detail": False})
        return prior_weight(batch.priors, plain).repeat(2, 1)
    if maps is None:
        return prior_weight(batch.priors, config.focus).repeat(2, 1)
    if config.focus.branches == "winner":
        return maps.weight_BN.chunk(2)[0].repeat(2, 1)
    return maps.weight_BN
