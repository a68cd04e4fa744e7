"""Where and when the loss looks: FocusDPO's maps and the weight per token.

Our reconstruction of arXiv 2509.01181, section "Dynamic semantic guidance" (design.md section 4).
All maps are float32 and carry no gradient.
Shapes: B images, R subjects (= references), N target tokens, n_r tokens of reference r, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from focusdpo.model.backbone import Grid, Prediction, TensorRecord
from focusdpo.model.correspondence import (
    alignment,
    attention_field,
    matched_similarity,
    needed_sigma,
    similarity,
    token_confusion,
)
from focusdpo.model.focus_config import FocusConfig


@dataclass(frozen=True)
class FocusPriors(TensorRecord):
    """What is known of an image before any forward pass."""

    prior_BN: Tensor
    """M_prior in {0, 1}: the subjects' tokens that the loss is about."""
    subjects_BRN: Tensor
    """m_r in {0, 1}: where each subject stands."""
    detail_BN: Tensor
    """Complexity in [0, 1], before it is cut to M_prior; of the image that `detail_image` names."""


@dataclass(frozen=True)
class FocusMaps:
    """The maps of one forward pass at one noise level per image."""

    similarity_BRN: Tensor
    """s: cosine of target tokens to each reference (or its attention to them), mean over blocks."""
    matches_BRN: Tensor
    """M'_r in {0, 1}: the k_r tokens that match reference r best."""
    matched_BN: Tensor
    """M' = max over r: low priority."""
    structure_BN: Tensor
    """M_s = M_prior (1 - M'): high priority."""
    detail_BN: Tensor
    """M_d in [0, 1], inside M_prior."""
    alignment_B: Tensor
    """A in [0, 1]: mean over subjects of |M'_r and m_r| / k_r."""
    gate_B: Tensor
    """g in [0, 1]: how far M_d is on; 0 or 1 but for the soft gate."""
    confusion_B: Tensor
    """Share of the subjects' tokens that are nearer to another subject's reference; NaN when there
    is a single subject."""
    weight_BN: Tensor
    """W, with mean 1 unless the config says otherwise."""


def pool_to_grid(mask_BHW: Tensor, grid: Grid) -> Tensor:
    """Mean of a map in [0, 1] over each token's pixels: (B, H, W) -> (B, N), N row by row."""
    height, width = mask_BHW.shape[1:]
    rows, columns = grid
    if height % rows or width % columns:
        raise ValueError(f"map of {height}x{width} pixels does not divide into {rows}x{columns}")
    cells = mask_BHW.float().unflatten(2, (columns, -1)).unflatten(1, (rows, -1))
    return cells.mean(dim=(2, 4)).flatten(1)


@dataclass(frozen=True)
class WeightParts:
    """What W is the sum of, before it is divided by its mean; each (B, N)."""

    background: Tensor
    matched: Tensor
    structure: Tensor
    detail: Tensor

    def total(self) -> Tensor:
        """Their sum."""
        return self.background + self.matched + self.structure + self.detail


def normalise(weight_BN: Tensor, config: FocusConfig) -> Tensor:
    """W divided by its mean; an image that would weigh nothing weighs 1 everywhere."""
    mean_B1 = weight_BN.mean(dim=1, keepdim=True)
    weight_BN = torch.where(mean_B1 > 0, weight_BN, 1.0)
    if config.normalise == "none":
        return weight_BN
    return weight_BN / torch.where(mean_B1 > 0, mean_B1, 1.0)


def weight_parts(
    prior_BN: Tensor, matched_BN: Tensor, detail_BN: Tensor, gate_B: Tensor, config: FocusConfig
) -> WeightParts:
    """Each part is a weight times a mask. By `combine`, with S = w_low M' + w_high (1 - M'):

    add       w_bg (1 - M_prior) + M_prior S + g lambda_d M_d
    multiply  the same, with M_d times the weight that is there: W (1 + g lambda_d M_d)
    replace   w_bg (1 - M_prior) + M_prior ((1 - g) S + g (w_low + lambda_d M_d))

    With `normalise` masks every mask is first divided by its mean over the tokens, so that a part
    of W sums to its weight times N however small its mask; an empty mask stays empty.
    The parts that the config switches off are left out: without M_s every subject token has
    w_high, without M_d there is no detail and g is 0."""
    if not config.use_structure:
        matched_BN = torch.zeros_like(matched_BN)
    gate_B1 = gate_B.unsqueeze(1) if config.use_detail else torch.zeros_like(gate_B).unsqueeze(1)
    masks = WeightParts(1 - prior_BN, prior_BN * matched_BN, prior_BN * (1 - matched_BN), detail_BN)
    w_structure: float | Tensor = config.w_high
    if config.combine == "multiply":
        plain_BN = config.w_low * masks.matched + config.w_high * masks.structure
        masks = replace(masks, detail=(config.w_bg * masks.background + plain_BN) * detail_BN)
    elif config.combine == "replace":
        matched_BN = (1 - gate_B1) * masks.matched + gate_B1 * prior_BN
        masks = replace(masks, matched=matched_BN)
        w_structure = config.w_high * (1 - gate_B1)

    def spread(mask_BN: Tensor) -> Tensor:
        mean_B1 = mask_BN.mean(dim=1, keepdim=True)
        by_size = config.normalise == "masks"
        return mask_BN / torch.where(mean_B1 > 0, mean_B1, 1.0) if by_size else mask_BN

    return WeightParts(
        background=config.w_bg * spread(masks.background),
        matched=config.w_low * spread(masks.matched),
        structure=w_structure * spread(masks.structure),
        detail=config.lambda_d * gate_B1 * spread(masks.detail),
    )


def focus_weight(
    prior_BN: Tensor, matched_BN: Tensor, detail_BN: Tensor, gate_B: Tensor, config: FocusConfig
) -> Tensor:
    """W (B, N): the sum of its parts, normalised."""
    parts = weight_parts(prior_BN, matched_BN, detail_BN, gate_B, config)
    return normalise(parts.total(), config)


def branch_parts(
    prior_BN: Tensor, matched_BN: Tensor, detail_BN: Tensor, gate_B: Tensor, config: FocusConfig
) -> WeightParts:
    """The parts of W for 2B images, winners, then losers, as `branches` says:

    each    every image's own.
    winner  the winner's for both.
    split   the winner's without M_s, the loser's without M_d: to reward detail that is right and
            to penalise structure that is wrong."""

    def parts(**changes: bool) -> WeightParts:
        changed = config.model_copy(update=changes)
        return weight_parts(prior_BN, matched_BN, detail_BN, gate_B, changed)

    if config.branches == "each":
        return parts()
    num = len(prior_BN) // 2
    if config.branches == "winner":
        return _joined(parts(), slice(num), parts(), slice(num))
    return _joined(
        parts(use_structure=False), slice(num), parts(use_detail=False), slice(num, None)
    )


def _joined(one: WeightParts, rows: slice, other: WeightParts, other_rows: slice) -> WeightParts:
    """Some rows of one, then some of another."""
    names = [field.name for field in fields(WeightParts)]
    return WeightParts(
        *(torch.cat([getattr(one, n)[rows], getattr(other, n)[other_rows]]) for n in names)
    )


def branch_weights(maps: FocusMaps | None, priors: FocusPriors, config: FocusConfig) -> Tensor:
    """W (2B, N) of winners, then losers, as `branches` says. `maps` and `priors` hold the 2B
    images in that order; without maps (None) W is M_prior against the
    background (masked DPO), and M_d where the config has it on without a gate."""
    if maps is None:
        nothing_BN = torch.zeros_like(priors.prior_BN)
        gate_B = torch.full_like(nothing_BN[:, 0], float(config.gate == "always"))
        masks = (priors.prior_BN, nothing_BN, priors.detail_BN * priors.prior_BN, gate_B)
    else:
        masks = (priors.prior_BN, maps.matched_BN, maps.detail_BN, maps.gate_B)
    return normalise(branch_parts(*masks, config).total(), config)


def detail_gate(
    similarity_BRN: Tensor,
    matches_BRN: Tensor,
    alignment_B: Tensor,
    config: FocusConfig,
    sigma_B: Tensor | None = None,
) -> Tensor:
    """g (B,) in [0, 1]: how far M_d is on."""
    if config.gate == "overlap":
        return (alignment_B >= config.tau).float()
    if config.gate == "soft":
        return torch.sigmoid((alignment_B - config.tau) / config.gate_temperature)
    if config.gate == "similarity":
        return (matched_similarity(similarity_BRN, matches_BRN) >= config.tau).float()
    if config.gate == "noise":
        return (needed_sigma(sigma_B, "gate") <= config.gate_sigma).to(alignment_B)
    return torch.full_like(alignment_B, float(config.gate == "always"))


@torch.no_grad()
def focus_maps(
    prediction: Prediction,
    reference_masks: Sequence[Tensor],
    priors: FocusPriors,
    config: FocusConfig,
    sigma_B: Tensor | None = None,
) -> FocusMaps:
    """All maps from the features of one forward pass; `sigma_B`, its noise levels, where the config
    looks at them."""
    similarity_BRN = similarity(prediction, reference_masks, config.pool, config.features.kind)
    if similarity_BRN.shape != priors.subjects_BRN.shape:
        raise ValueError(
            f"features give {tuple(similarity_BRN.shape)} (images, references, tokens), "
            f"masks {tuple(priors.subjects_BRN.shape)}"
        )
    prior_BN, subjects_BRN = priors.prior_BN, priors.subjects_BRN
    matches_BRN, k_BR = attention_field(similarity_BRN, prior_BN, subjects_BRN, config, sigma_B)
    matched_BN = matches_BRN.amax(dim=1)
    alignment_B = alignment(matches_BRN, subjects_BRN, k_BR)
    gate_B = detail_gate(similarity_BRN, matches_BRN, alignment_B, config, sigma_B)
    detail_BN = priors.detail_BN * prior_BN
    return FocusMaps(
        similarity_BRN=similarity_BRN,
        matches_BRN=matches_BRN,
        matched_BN=matched_BN,
        structure_BN=prior_BN * (1 - matched_BN),
        detail_BN=detail_BN,
        alignment_B=alignment_B,
        gate_B=gate_B,
        confusion_B=token_confusion(similarity_BRN, subjects_BRN),
        weight_BN=focus_weight(prior_BN, matched_BN, detail_BN, gate_B, config),
    )
