"""Where and when the loss looks: FocusDPO's maps and the weight per token.

Our reconstruction of arXiv 2509.01181, section "Dynamic semantic guidance" (design.md section 4).
All maps are float32 and carry no gradient.
Shapes: B images, R subjects (= references), N target tokens, n_r tokens of reference r, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from focusdpo.model.backbone import Grid, Prediction
from focusdpo.model.focus_config import FocusConfig

__all__ = [
    "FocusConfig",
    "FocusMaps",
    "FocusPriors",
    "focus_maps",
    "pool_to_grid",
    "prior_weight",
]


@dataclass(frozen=True)
class FocusPriors:
    """What is known of an image before any forward pass."""

    prior_BN: Tensor
    """M_prior in {0, 1}: the subjects' tokens that the loss is about."""
    subjects_BRN: Tensor
    """m_r in {0, 1}: where each subject stands."""
    detail_BN: Tensor
    """Complexity in [0, 1], before it is cut to M_prior."""

    def repeat(self, times: int) -> FocusPriors:
        """The batch laid end to end `times` times."""
        return FocusPriors(
            self.prior_BN.repeat(times, 1),
            self.subjects_BRN.repeat(times, 1, 1),
            self.detail_BN.repeat(times, 1),
        )


@dataclass(frozen=True)
class FocusMaps:
    """The maps of one forward pass at one noise level per image."""

    similarity_BRN: Tensor
    """s: cosine of target tokens to each reference's vector, mean over blocks."""
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
    """g in {0, 1}: whether M_d is on."""
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


def reference_vectors(
    features: Sequence[Tensor], masks: Sequence[Tensor], pool: str = "mean"
) -> Tensor:
    """p_r: each reference's features pooled under its mask, (B, R, D).

    A reference whose mask is empty is pooled whole: no subject is invisible."""
    vectors = []
    for tokens_BnD, mask_Bn in zip(features, masks, strict=True):
        inside_Bn1 = mask_Bn.float().unsqueeze(2)
        inside_Bn1 = torch.where(inside_Bn1.sum(1, keepdim=True) > 0, inside_Bn1, 1.0)
        if pool == "max":
            vectors.append(tokens_BnD.float().masked_fill(inside_Bn1 == 0, -torch.inf).amax(1))
        else:
            vectors.append((tokens_BnD.float() * inside_Bn1).sum(1) / inside_Bn1.sum(1))
    return torch.stack(vectors, dim=1)


def similarity(prediction: Prediction, masks: Sequence[Tensor], pool: str = "mean") -> Tensor:
    """s (B, R, N): cosine of every target token to every reference's vector, mean over blocks."""
    if not prediction.target_features:
        raise ValueError("the prediction holds no token features; call predict with `capture`")
    total = torch.zeros(())
    blocks = zip(prediction.target_features, prediction.reference_features, strict=True)
    for target_BND, references in blocks:
        vector_BRD = F.normalize(reference_vectors(references, masks, pool), dim=2)
        target_BND = F.normalize(target_BND.float(), dim=2)
        total = total.to(target_BND.device) + torch.einsum("brd,bnd->brn", vector_BRD, target_BND)
    return total / len(prediction.target_features)


def top_k(similarity_BRN: Tensor, k_BR: Tensor) -> Tensor:
    """{0, 1}: the k_BR largest along N, k differing per row. Ties go to the lower index."""
    order_BRN = similarity_BRN.argsort(dim=2, descending=True, stable=True)
    places = torch.arange(similarity_BRN.shape[2], device=order_BRN.device)
    rank_BRN = torch.empty_like(order_BRN).scatter_(2, order_BRN, places.expand_as(order_BRN))
    return (rank_BRN < k_BR.unsqueeze(2)).float()


def attention_field(
    similarity_BRN: Tensor, priors: FocusPriors, config: FocusConfig
) -> tuple[Tensor, Tensor]:
    """M'_r (B, R, N) and k_r (B, R)."""
    scores_BRN = similarity_BRN
    if config.overlap == "argmax":  # a token speaks only for the reference it is nearest to
        nearest_BN = similarity_BRN.argmax(dim=1, keepdim=True)
        own_BRN = torch.zeros_like(scores_BRN).scatter_(1, nearest_BN, 1.0)
        scores_BRN = scores_BRN.masked_fill(own_BRN == 0, -torch.inf)
    if config.domain == "prior":
        scores_BRN = scores_BRN.masked_fill(priors.prior_BN.unsqueeze(1) == 0, -torch.inf)
    num_tokens = scores_BRN.shape[2]
    area_BR = priors.subjects_BRN.sum(2)
    k_BR = (config.kappa * area_BR + 0.5).floor().clamp(max=num_tokens)
    # -inf marks tokens that may not be chosen even where k exceeds the ones that may.
    matches_BRN = top_k(scores_BRN, k_BR) * scores_BRN.isfinite()
    return matches_BRN, k_BR


def alignment(matches_BRN: Tensor, subjects_BRN: Tensor, k_BR: Tensor) -> Tensor:
    """A (B,): mean over the subjects with k_r > 0 of |M'_r and m_r| / k_r; 0 if there are none."""
    overlap_BR = (matches_BRN * subjects_BRN).sum(2) / k_BR.clamp(min=1)
    counted_BR = (k_BR > 0).float()
    return (overlap_BR * counted_BR).sum(1) / counted_BR.sum(1).clamp(min=1)


def token_confusion(similarity_BRN: Tensor, subjects_BRN: Tensor) -> Tensor:
    """Share (B,) of subject tokens whose nearest reference is another subject's; NaN for R = 1.
    Where subjects overlap a token counts once for each."""
    if similarity_BRN.shape[1] < 2:
        return similarity_BRN.new_full((similarity_BRN.shape[0],), torch.nan)
    nearest_BN = similarity_BRN.argmax(dim=1, keepdim=True)
    right_BRN = torch.zeros_like(subjects_BRN).scatter_(1, nearest_BN, 1.0) * subjects_BRN
    return 1 - right_BRN.sum((1, 2)) / subjects_BRN.sum((1, 2))


def normalise(weight_BN: Tensor, config: FocusConfig) -> Tensor:
    """W divided by its mean; an image that would weigh nothing weighs 1 everywhere."""
    mean_B1 = weight_BN.mean(dim=1, keepdim=True)
    weight_BN = torch.where(mean_B1 > 0, weight_BN, 1.0)
    if config.normalise == "none":
        return weight_BN
    return weight_BN / torch.where(mean_B1 > 0, mean_B1, 1.0)


def focus_weight(
    prior_BN: Tensor, matched_BN: Tensor, detail_BN: Tensor, gate_B: Tensor, config: FocusConfig
) -> Tensor:
    """W = w_bg (1 - M_prior) + M_prior (w_low M' + w_high (1 - M')) + g lambda_d M_d, normalised.

    The parts that the config switches off are left out: without M_s every subject token has
    w_high, without M_d the last term is zero."""
    if not config.use_structure:
        matched_BN = torch.zeros_like(matched_BN)
    subject_BN = config.w_low * matched_BN + config.w_high * (1 - matched_BN)
    weight_BN = config.w_bg * (1 - prior_BN) + prior_BN * subject_BN
    if config.use_detail:
        gain_BN = config.lambda_d * gate_B.unsqueeze(1) * detail_BN
        if config.combine == "multiply":
            weight_BN = weight_BN * (1 + gain_BN)
        else:
            weight_BN = weight_BN + gain_BN
    return normalise(weight_BN, config)


def prior_weight(priors: FocusPriors, config: FocusConfig) -> Tensor:
    """W (B, N) without features: M_prior against the background (masked DPO), and M_d where the
    config has it on without a gate."""
    nothing_BN = torch.zeros_like(priors.prior_BN)
    gate_B = torch.full_like(nothing_BN[:, 0], float(config.gate == "always"))
    detail_BN = priors.detail_BN * priors.prior_BN
    return focus_weight(priors.prior_BN, nothing_BN, detail_BN, gate_B, config)


@torch.no_grad()
def focus_maps(
    prediction: Prediction,
    reference_masks: Sequence[Tensor],
    priors: FocusPriors,
    config: FocusConfig,
) -> FocusMaps:
    """All maps from the features of one forward pass."""
    similarity_BRN = similarity(prediction, reference_masks, config.pool)
    if similarity_BRN.shape != priors.subjects_BRN.shape:
        raise ValueError(
            f"features give {tuple(similarity_BRN.shape)} (images, references, tokens), "
            f"masks {tuple(priors.subjects_BRN.shape)}"
        )
    matches_BRN, k_BR = attention_field(similarity_BRN, priors, config)
    matched_BN = matches_BRN.amax(dim=1)
    alignment_B = alignment(matches_BRN, priors.subjects_BRN, k_BR)
    gate_B = {
        "overlap": (alignment_B >= config.tau).float(),
        "always": torch.ones_like(alignment_B),
        "never": torch.zeros_like(alignment_B),
    }[config.gate]
    detail_BN = priors.detail_BN * priors.prior_BN
    return FocusMaps(
        similarity_BRN=similarity_BRN,
        matches_BRN=matches_BRN,
        matched_BN=matched_BN,
        structure_BN=priors.prior_BN * (1 - matched_BN),
        detail_BN=detail_BN,
        alignment_B=alignment_B,
        gate_B=gate_B,
        confusion_B=token_confusion(similarity_BRN, priors.subjects_BRN),
        weight_BN=focus_weight(priors.prior_BN, matched_BN, detail_BN, gate_B, config),
    )
