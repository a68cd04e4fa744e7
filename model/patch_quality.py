"""PatchDPO's patch quality, estimated from the base's own token features.

PatchDPO (arXiv 2412.03177) weighs an error by how well each patch of a generated image is found
again in the references; the network that its authors measure with was not released. Here the
features are the base's, read once per pair from nearly clean latents.
Shapes: B pairs, 2B images (winners, then losers), R references with n_r tokens, N target tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from focusdpo.model.adapter import reference_policy
from focusdpo.model.backbone import Backbone, Prediction, Prompts, References, TensorRecord
from focusdpo.model.training.config import PatchConfig

_NOISE_SEED = 0


@dataclass(frozen=True)
class PatchQuality(TensorRecord):
    """Quality in [0, 1] per token."""

    win_BN: Tensor
    """How well the loser already shows what the winner has here ("target map")."""
    lose_BN: Tensor
    """How well the loser's patch is found in the references ("generated map")."""


def best_cosine(patches_BND: Tensor, pool_BMD: Tensor, allowed_BM: Tensor) -> Tensor:
    """Quality (B, N) in [0, 1]: each patch's largest cosine to an allowed patch of the pool, less
    what an arbitrary patch has on average: (max - mean) / (1 - mean).

    Raw cosines of a transformer's features crowd near 1; the mean says where nothing matches. A
    pool without an allowed patch counts whole."""
    allowed_BM = torch.where(allowed_BM.sum(1, keepdim=True) > 0, allowed_BM, 1.0)
    cosine_BNM = F.normalize(patches_BND.float(), dim=2) @ F.normalize(
        pool_BMD.float(), dim=2
    ).transpose(1, 2)
    best_BN = cosine_BNM.masked_fill(allowed_BM.unsqueeze(1) == 0, -torch.inf).amax(dim=2)
    count_B = allowed_BM.sum(1) * cosine_BNM.shape[1]
    mean_B1 = ((cosine_BNM * allowed_BM.unsqueeze(1)).sum((1, 2)) / count_B).unsqueeze(1)
    return ((best_BN - mean_B1) / (1 - mean_B1).clamp(min=1e-6)).clamp(0, 1)


def quality_maps(prediction: Prediction, masks: Sequence[Tensor]) -> PatchQuality:
    """From the features of a pass over winners and losers, (2B, ...), mean over blocks; `masks`
    are the references' (2B, n_r)."""
    wins, loses = [], []
    blocks = zip(prediction.target_features, prediction.reference_features, strict=True)
    for target_BND, references in blocks:
        win_BND, lose_BND = target_BND.flatten(2).chunk(2)
        pool_BMD = torch.cat([r.flatten(2) for r in references], 1).chunk(2)[1]
        allowed_BM = torch.cat(list(masks), 1).float().chunk(2)[1]
        wins.append(best_cosine(win_BND, lose_BND, torch.ones_like(lose_BND[..., 0])))
        loses.append(best_cosine(lose_BND, pool_BMD, allowed_BM))
    return PatchQuality(torch.stack(wins).mean(0), torch.stack(loses).mean(0))


@torch.no_grad()
def patch_quality(
    backbone: Backbone,
    win_BNC: Tensor,
    lose_BNC: Tensor,
    prompts: Prompts,
    references: References,
    config: PatchConfig,
) -> PatchQuality:
    """One pass of the base at a low noise level, with one noise for every image."""
    clean_BNC = torch.cat([win_BNC, lose_BNC])
    generator = torch.Generator().manual_seed(_NOISE_SEED)
    noise_NC = torch.randn(clean_BNC.shape[1:], generator=generator).to(clean_BNC)
    sigma_B = clean_BNC.new_full((len(clean_BNC),), config.sigma)
    noisy_BNC = backbone.add_noise(clean_BNC, noise_NC.expand_as(clean_BNC), sigma_B)
    both = references.repeat(2)
    with reference_policy(backbone.transformer):
        prediction = backbone.predict(
            noisy_BNC, sigma_B, prompts.repeat(2), both, capture=config.features
        )
    return quality_maps(prediction, both.masks)


def patch_weights(quality: PatchQuality, prior_BN: Tensor, w_bg: float, released: bool) -> Tensor:
    """W (2B, N), mean 1 per image; background tokens weigh `w_bg`.

    Winner: 1 - quality, what the loser lacks. Loser: 1 - quality, what to be pushed away; in the
    released form quality itself, what is worth learning."""
    lose_BN = quality.lose_BN if released else 1 - quality.lose_BN
    inside_BN = torch.cat([1 - quality.win_BN, lose_BN])
    prior_BN = prior_BN.repeat(2, 1)
    weight_BN = w_bg * (1 - prior_BN) + prior_BN * inside_BN
    mean_B1 = weight_BN.mean(1, keepdim=True)
    return torch.where(mean_B1 > 0, weight_BN / mean_B1.clamp(min=1e-12), 1.0)
