"""One step of training up to the loss: pairs in, a scalar and what there is to say about it out.

Winner and loser go through the model as one batch of 2B, first through the reference policy without
gradients, then through the policy; the focus maps read the features of that same policy pass.
Shapes: B pairs, 2B images (winners, then losers), N target tokens, C channels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from focusdpo.data_schemas.errors import UserError, counted
from focusdpo.model.adapter import reference_policy
from focusdpo.model.backbone import Backbone, FeatureConfig, Prediction
from focusdpo.model.focus import FocusMaps, branch_weights, focus_maps
from focusdpo.model.objectives import (
    Loss,
    PairErrors,
    RegionErrors,
    better_first,
    error_slope,
    image_error,
    region_means,
    region_safeguard,
    safeguard_scale,
    scale_gradient,
    sft_loss,
    token_error,
    token_preference_loss,
)
from focusdpo.model.patch_quality import patch_weights
from focusdpo.model.training.batches import PairBatch
from focusdpo.model.training.config import TrainConfig

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
    safeguard_B: Tensor | None = None
    """SDPO's scale on the loser's gradient, None where it is off."""


def resolve_precision(device: torch.device, precision: Precision) -> Literal["no", "bf16"]:
    """What "auto" means on a device."""
    if precision != "auto":
        return precision
    if device.type == "cpu":
        # Without these a CPU emulates bfloat16: 1 instead of 80 GFLOP/s on one AVX2 core.
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return "bf16" if native else "no"
    return "bf16"


def autocast(device: torch.device, precision: Precision, tf32: bool = False) -> Autocast:
    """What to wrap forward passes in. Those in float32 are left as exact as they are asked for, for
    matches are decided by their features; `tf32` is for the products that bf16 leaves out."""
    if resolve_precision(device, precision) == "no":
        return nullcontext
    # Norms keep float32 weights under autocast, as they should; torch says so once per process.
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")

    @contextmanager
    def cast() -> Iterator[None]:
        with torch.autocast(device.type, dtype=torch.bfloat16), tensor_cores(device, tf32):
            yield

    return cast


@contextmanager
def tensor_cores(device: torch.device, tf32: bool) -> Iterator[None]:
    """Inside, float32 products on a GPU may round their factors to TF32."""
    if not tf32 or device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def pair_step(
    backbone: Backbone,
    batch: PairBatch,
    noise_BNC: Tensor,
    sigma_B: Tensor,
    config: TrainConfig,
    cast: Autocast = nullcontext,
    ref_error_BN: Tensor | None = None,
) -> StepOutput:
    """The configured objective on one batch; noise and sigma per pair, shared by the branches.
    With `ref_error_BN`, what the reference policy gave for this very batch and noise, its pass is
    left out, unless token features are read from it."""
    if not config.objective.definition.losers:
        return _winner_step(backbone, batch, noise_BNC, sigma_B, cast)
    clean_BNC = torch.cat([batch.win_BNC, batch.lose_BNC])
    noise_BNC, sigmas_B = noise_BNC.repeat(2, 1, 1), sigma_B.repeat(2)
    noisy_BNC = backbone.add_noise(clean_BNC, noise_BNC, sigmas_B)
    target_BNC = backbone.target(clean_BNC, noise_BNC, sigmas_B)
    inputs = (noisy_BNC, sigmas_B, batch.prompts.repeat(2), batch.references.repeat(2))
    capture = {config.focus.features_from: features(config)}
    reference: Prediction | None = None
    if needs_reference(config, ref_error_BN):
        with torch.no_grad(), cast(), reference_policy(backbone.transformer):
            reference = backbone.predict(*inputs, capture=capture.get("reference"))
    with cast():
        policy = backbone.predict(*inputs, capture=capture.get("policy"))
    error_BN = token_error(policy.output_BNC, target_BNC)
    if reference is not None:
        ref_error_BN = token_error(reference.output_BNC, target_BNC)
    passes = Passes(policy, reference, target_BNC, ref_error_BN)
    return judge(passes, error_BN, batch, sigma_B, config)


def kl_step(
    backbone: Backbone,
    batch: PairBatch,
    noise_BNC: Tensor,
    sigma_B: Tensor,
    cast: Autocast = nullcontext,
) -> Tensor:
    """DPOK's KL term on the winners, a scalar: the mean squared difference of the predictions of
    policy and reference policy, which for Gaussian steps is their KL divergence up to a factor per
    noise level."""
    noisy_BNC = backbone.add_noise(batch.win_BNC, noise_BNC, sigma_B)
    inputs = (noisy_BNC, sigma_B, batch.prompts, batch.references)
    with torch.no_grad(), cast(), reference_policy(backbone.transformer):
        reference = backbone.predict(*inputs)
    with cast():
        policy = backbone.predict(*inputs)
    return token_error(policy.output_BNC, reference.output_BNC).mean()


@dataclass(frozen=True)
class Passes:
    """What the forward passes over 2B images gave."""

    policy: Prediction
    reference: Prediction | None
    """None where its errors were known, or no objective asks for them."""
    target_BNC: Tensor
    ref_error_BN: Tensor | None


def judge(
    passes: Passes, error_BN: Tensor, batch: PairBatch, sigma_B: Tensor, config: TrainConfig
) -> StepOutput:
    """Passes -> the loss, as a function of the policy's errors per token (2B, N) alone: all else
    is taken from the passes without gradient."""
    maps = None
    if features(config):
        source = passes.policy if config.focus.features_from == "policy" else passes.reference
        assert source is not None
        masks = batch.references.repeat(2).masks
        priors = batch.branch_priors(config.focus.detail_image)
        maps = focus_maps(source, masks, priors, config.focus, sigma_B=sigma_B.repeat(2))
    weigh = config.objective.definition.weighing()
    weight_BN = None if weigh is None else weigh(batch, maps, config)
    is_external = ":" in config.objective.name  # from outside this repository
    if is_external:
        require_weight(weight_BN, error_BN, config.objective.name)
    ref_error_BN = passes.ref_error_BN if config.objective.is_preference else None
    if config.objective.definition.instances:
        loss, scale_B = _instance_loss(passes, error_BN, ref_error_BN, batch, config)
    else:
        scale_B = _safeguard(passes.policy.output_BNC, passes.target_BNC, weight_BN, config)
        loss = _pair_loss(error_BN, ref_error_BN, weight_BN, scale_B, config)
    if is_external:
        require_loss(loss, error_BN, config.objective.name)
    return StepOutput(loss, sigma_B, error_BN.detach(), ref_error_BN, weight_BN, maps, scale_B)


def require_weight(weight_BN: object, error_BN: Tensor, name: str) -> None:
    """UserError where an objective's `weight` is not W (2B, N) without gradient, or None."""
    if weight_BN is None:
        return
    wanted = f"expected a tensor {tuple(error_BN.shape)}: two images per pair, their tokens"
    if not isinstance(weight_BN, Tensor):
        raise UserError(f"objective {name}: its weight gave a {type(weight_BN).__name__}; {wanted}")
    if weight_BN.shape != error_BN.shape:
        raise UserError(f"objective {name}: its weight gave {tuple(weight_BN.shape)}; {wanted}")
    if weight_BN.requires_grad:
        raise UserError(f"objective {name}: its weight carries a gradient; detach it")


def require_loss(loss: object, error_BN: Tensor, name: str) -> None:
    """UserError where an objective's `loss` is not a `Loss` that a step can go down."""
    pairs = len(error_BN) // 2
    wanted = f"expected a Loss of a scalar and the logits of {counted(pairs, 'pair')}"
    if not isinstance(loss, Loss):
        raise UserError(f"objective {name}: its loss gave a {type(loss).__name__}; {wanted}")
    value, logit_B = loss.value, loss.logit_B
    if value.ndim or logit_B.shape != (pairs,):
        shapes = f"value {tuple(value.shape)}, logit_B {tuple(logit_B.shape)}"
        raise UserError(f"objective {name}: its loss gave {shapes}; {wanted}")
    if error_BN.requires_grad and not value.requires_grad:
        raise UserError(
            f"objective {name}: its loss carries no gradient, so nothing would be learned; "
            "do not detach `value`"
        )
    if logit_B.requires_grad:
        raise UserError(f"objective {name}: its logit_B carries a gradient; detach it")


def needs_reference(config: TrainConfig, ref_error_BN: Tensor | None) -> bool:
    """Whether the reference policy's pass must run: for its errors, or for its features."""
    read = config.focus.features_from == "reference" and features(config) is not None
    return config.objective.is_preference and (ref_error_BN is None or read)


def features(config: TrainConfig) -> FeatureConfig | None:
    """What to read from a pass, where the objective needs it."""
    focused = config.objective.definition.maps and config.focus.needs_features
    return config.focus.features if focused else None


def _winner_step(
    backbone: Backbone, batch: PairBatch, noise_BNC: Tensor, sigma_B: Tensor, cast: Autocast
) -> StepOutput:
    noisy_BNC = backbone.add_noise(batch.win_BNC, noise_BNC, sigma_B)
    target_BNC = backbone.target(batch.win_BNC, noise_BNC, sigma_B)
    with cast():
        prediction = backbone.predict(noisy_BNC, sigma_B, batch.prompts, batch.references)
    error_BN = token_error(prediction.output_BNC, target_BNC)
    return StepOutput(sft_loss(image_error(error_BN)), sigma_B, error_BN.detach(), None, None, None)


def _pair_loss(
    error_BN: Tensor,
    ref_error_BN: Tensor | None,
    weight_BN: Tensor | None,
    scale_B: Tensor | None,
    config: TrainConfig,
) -> Loss:
    """Errors per token of 2B images -> the configured loss."""
    objective = config.objective
    by_token = objective.form == "tokens" and ref_error_BN is not None
    if ref_error_BN is None:
        ref_error_BN = torch.zeros_like(error_BN)
    if not by_token:
        error_BN, ref_error_BN = (image_error(e, weight_BN) for e in (error_BN, ref_error_BN))
    (win, lose), (ref_win, ref_lose) = error_BN.chunk(2), ref_error_BN.chunk(2)
    if scale_B is not None:
        lose = scale_gradient(lose, scale_B.unsqueeze(1) if by_token else scale_B)
    errors = PairErrors(win, lose, ref_win, ref_lose)
    if not by_token:
        loss: Loss = objective.definition.losing()(errors, objective)
        return loss
    # A token has one weight: what the branches' own maps say of it on average.
    shared_BN = None if weight_BN is None else weight_BN.unflatten(0, (2, -1)).mean(0)
    return token_preference_loss(errors, shared_BN, objective)


def signed_regions(batch: PairBatch) -> tuple[Tensor, Tensor]:
    """Each subject's tokens in M_prior, {0, 1} (B, R, N), and its sign (B, R), 0 where there is no
    such token."""
    region_BRN = batch.priors.subjects_BRN * batch.priors.prior_BN.unsqueeze(1)
    return region_BRN, batch.signs_BR * (region_BRN.sum(2) > 0)


def _instance_loss(
    passes: Passes,
    error_BN: Tensor,
    ref_error_BN: Tensor | None,
    batch: PairBatch,
    config: TrainConfig,
) -> tuple[Loss, Tensor | None]:
    """Errors per token of 2B images -> the loss of subject regions, and the mean scale per pair."""
    objective = config.objective
    region_BRN, signs_BR = signed_regions(batch)
    if ref_error_BN is None:
        ref_error_BN = torch.zeros_like(error_BN)
    win_BR, lose_BR, ref_win_BR, ref_lose_BR = (
        region_means(part, region_BRN)
        for both in (error_BN, ref_error_BN)
        for part in both.chunk(2)
    )
    better_BR, worse_BR = better_first(win_BR, lose_BR, signs_BR)
    ref_better_BR, ref_worse_BR = better_first(ref_win_BR, ref_lose_BR, signs_BR)
    scale_B = None
    if objective.safeguard is not None:
        slope_BNC = error_slope(passes.policy.output_BNC, passes.target_BNC, None)
        win_BNC, lose_BNC = slope_BNC.chunk(2)
        mu, scope = objective.safeguard, objective.safeguard_scope
        scale_BR = region_safeguard(win_BNC, lose_BNC, region_BRN, signs_BR, mu, scope)
        worse_BR, scale_B = scale_gradient(worse_BR, scale_BR), scale_BR.mean(1)
    errors = RegionErrors(better_BR, worse_BR, ref_better_BR, ref_worse_BR, (signs_BR != 0).float())
    loss: Loss = objective.definition.losing()(errors, objective)
    return loss, scale_B


def instance_weight(batch: PairBatch, maps: FocusMaps | None, config: TrainConfig) -> Tensor:
    """W (2B, N) that the regions with a sign come to, each the same in sum; what is told of shares
    is told of it, the loss takes each region by itself."""
    region_BRN, signs_BR = signed_regions(batch)
    counts_BR = (signs_BR != 0).float() / region_BRN.sum(2).clamp(min=1)
    weight_BN = torch.einsum("brn,br->bn", region_BRN, counts_BR)
    mean_B1 = weight_BN.mean(1, keepdim=True)
    weight_BN = torch.where(mean_B1 > 0, weight_BN / mean_B1.clamp(min=1e-12), 1.0)
    return weight_BN.repeat(2, 1)


def _safeguard(
    output_BNC: Tensor, target_BNC: Tensor, weight_BN: Tensor | None, config: TrainConfig
) -> Tensor | None:
    """SDPO's scale on the loser's gradient (B,), None where it is off."""
    objective = config.objective
    if objective.safeguard is None:
        return None
    win_BNC, lose_BNC = error_slope(output_BNC, target_BNC, weight_BN).chunk(2)
    return safeguard_scale(win_BNC, lose_BNC, objective.safeguard, objective.safeguard_scope)


def focus_weight(batch: PairBatch, maps: FocusMaps | None, config: TrainConfig) -> Tensor:
    """W (2B, N) of FocusDPO, the same for policy and reference policy."""
    return branch_weights(maps, batch.branch_priors(config.focus.detail_image), config.focus)


def prior_weight(batch: PairBatch, maps: FocusMaps | None, config: TrainConfig) -> Tensor:
    """W (2B, N) of masked DPO: subjects against the background."""
    focus = config.focus.model_copy(update={"use_detail": False})
    return branch_weights(maps, batch.branch_priors(focus.detail_image), focus)


def quality_weight(batch: PairBatch, maps: FocusMaps | None, config: TrainConfig) -> Tensor:
    """W (2B, N) of PatchDPO. ValueError for pairs that were encoded without their quality."""
    if batch.quality is None:
        raise ValueError(f"{config.objective.name} needs pairs encoded with their patch quality")
    released = config.objective.is_released_patch
    return patch_weights(batch.quality, batch.priors.prior_BN, config.focus.w_bg, released)
