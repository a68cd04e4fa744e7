"""Which target tokens match which reference: token features of a pass that runs anyway ->
similarity -> M'.

Letters: B images, D feature width, H heads of width d.

Shapes: B images, R subjects (= references), N target tokens, n_r tokens of reference r, D features,
H heads of width d.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.backbone import FeatureConfig, Prediction
from focusdpo.model.focus_config import FocusConfig

_SOURCES = {
    "keys": ("norm_k",),
    "queries": ("norm_q",),
    "block_output": ("",),
    "attention": ("norm_q", "norm_k"),
}
"""Modules of a block's attention whose output is read, "" for the block itself: after QK norm, but
before RoPE, which would bias similarity by place."""


def unwrap(module: nn.Module) -> Any:
    """The model inside DistributedDataParallel and its like."""
    while isinstance(inner := getattr(module, "module", None), nn.Module):
        module = inner
    return module


def unet_blocks(unet: Any, *, with_attention: bool = True) -> tuple[str, ...]:
    """Blocks that features can be read from, in the order of the pass: "down.1", "mid", "up.0"
    and, for one of the attention layers of an up or down block, "up.0.2"."""
    blocks = [(f"down.{i}", block) for i, block in enumerate(unet.down_blocks)]
    blocks += [("mid", unet.mid_block)]
    blocks += [(f"up.{i}", block) for i, block in enumerate(unet.up_blocks)]
    names: list[str] = []
    for name, block in blocks:
        layers = getattr(block, "attentions", ())
        if len(layers) or not with_attention:
            names.append(name)
        if len(layers) > 1:
            names += [f"{name}.{j}" for j in range(len(layers))]
    return tuple(names)


@contextmanager
def capture_features(
    transformer: Any, config: FeatureConfig | None, default_blocks: tuple[str, ...], tokens: int
) -> Iterator[list[Tensor]]:
    """Collects features of the last `tokens` positions (the image tokens; single blocks have the
    text before them) of each block, detached, in the order of the blocks asked for: (B, tokens, D),
    or for attention queries and keys by head, (B, tokens, 2, H, d).

    Hooks read what the pass computes anyway, so its output does not change by a bit.
    """
    if config is None:
        yield []
        return
    names = config.blocks or default_blocks
    sources = _SOURCES[config.kind]
    features: list[Tensor] = []
    read: dict[tuple[str, str], Tensor] = {}
    handles = []
    for key in itertools.product(names, sources):
        block = find_block(transformer, key[0])

        def store(_module: nn.Module, _args: Any, output: Any, key: tuple[str, str] = key) -> None:
            # Blocks return (text, image); norms return (B, tokens, heads, width).
            value = output[1] if isinstance(output, tuple) else output
            read[key] = value[:, -tokens:].detach()

        hooked = getattr(block.attn, key[1]) if key[1] else block
        handles.append(hooked.register_forward_hook(store))
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()
        parts = [[read[name, s] for s in sources if (name, s) in read] for name in names]
        features.extend(_joined(part) for part in parts if part)


def _joined(parts: list[Tensor]) -> Tensor:
    """One feature laid flat, queries and keys side by side."""
    return parts[0].flatten(2) if len(parts) == 1 else torch.stack(parts, dim=2)


def find_block(transformer: Any, name: str) -> Any:
    """The block called "double.i" or "single.i"; raises UserError with the names there are."""
    lists = {
        "double": transformer.transformer_blocks,
        "single": transformer.single_transformer_blocks,
    }
    kind, _, index = name.partition(".")
    if kind not in lists or not index.isdigit() or int(index) >= len(lists[kind]):
        known = ", ".join(f"{k}.0 to {k}.{len(v) - 1}" for k, v in lists.items() if len(v))
        raise UserError(f"features.blocks: no block {name!r} in this model; it has {known}")
    return lists[kind][int(index)]


def _not_empty(mask_Bn: Tensor) -> Tensor:
    """Where a mask is empty all of it counts: no subject is invisible. (B, n) in {0, 1}."""
    return torch.where(mask_Bn.float().sum(1, keepdim=True) > 0, mask_Bn.float(), 1.0)


def reference_vectors(
    features: Sequence[Tensor], masks: Sequence[Tensor], pool: str = "mean"
) -> Tensor:
    """p_r: each reference's features pooled under its mask, (B, R, D)."""
    vectors = []
    for tokens_BnD, mask_Bn in zip(features, masks, strict=True):
        inside_Bn1 = _not_empty(mask_Bn).unsqueeze(2)
        if pool == "max":
            vectors.append(tokens_BnD.float().masked_fill(inside_Bn1 == 0, -torch.inf).amax(1))
        else:
            vectors.append((tokens_BnD.float() * inside_Bn1).sum(1) / inside_Bn1.sum(1))
    return torch.stack(vectors, dim=1)


def _pooled_cosine(
    target_BND: Tensor, references: Sequence[Tensor], masks: Sequence[Tensor], pool: str
) -> Tensor:
    """Cosine (B, R, N) of every target token to every reference's vector."""
    vector_BRD = F.normalize(reference_vectors(references, masks, pool), dim=2)
    target_BND = F.normalize(target_BND.float(), dim=2)
    return torch.einsum("brd,bnd->brn", vector_BRD, target_BND)


def _nearest_cosine(
    target_BND: Tensor, references: Sequence[Tensor], masks: Sequence[Tensor]
) -> Tensor:
    """Cosine (B, R, N) of every target token to each reference's nearest token."""
    target_BND = F.normalize(target_BND.float(), dim=2)
    rows = []
    for tokens_BnD, mask_Bn in zip(references, masks, strict=True):
        cosine_BnN = F.normalize(tokens_BnD.float(), dim=2) @ target_BND.transpose(1, 2)
        outside_Bn1 = _not_empty(mask_Bn).unsqueeze(2) == 0
        rows.append(cosine_BnN.masked_fill(outside_Bn1, -torch.inf).amax(1))
    return torch.stack(rows, dim=1)


def _attention(
    target: Tensor, references: Sequence[Tensor], masks: Sequence[Tensor], pool: str
) -> Tensor:
    """Attention (B, R, N) that references pay to target tokens, softmax over the latter; mean over
    heads, then mean or largest over a reference's tokens. `target` is (B, N, 2, H, d)."""
    key_BHNd = target[:, :, 1].float().transpose(1, 2)
    rows = []
    for tokens, mask_Bn in zip(references, masks, strict=True):
        query_BHnd = tokens[:, :, 0].float().transpose(1, 2)
        logit_BHnN = query_BHnd @ key_BHNd.transpose(2, 3) / key_BHNd.shape[3] ** 0.5
        share_BnN = logit_BHnN.softmax(dim=3).mean(dim=1)
        inside_Bn1 = _not_empty(mask_Bn).unsqueeze(2)
        if pool == "mean":
            rows.append((share_BnN * inside_Bn1).sum(1) / inside_Bn1.sum(1))
        else:
            rows.append((share_BnN * inside_Bn1).amax(1))
    return torch.stack(rows, dim=1)


def similarity(
    prediction: Prediction, masks: Sequence[Tensor], pool: str = "mean", kind: str = "keys"
) -> Tensor:
    """s (B, R, N) of every target token to every reference, mean over blocks: a cosine, or, for
    the kind attention, a share of attention that sums to at least 1 over tokens (1 when pooled by
    the mean)."""
    if not prediction.target_features:
        raise ValueError("the prediction holds no token features; call predict with `capture`")
    total = torch.zeros(())
    blocks = zip(prediction.target_features, prediction.reference_features, strict=True)
    for target, references in blocks:
        if (target.ndim == 5) != (kind == "attention"):
            raise ValueError(f"features of shape {tuple(target.shape)} are not those of '{kind}'")
        if kind == "attention":
            own_BRN = _attention(target, references, masks, pool)
        elif pool == "patches":
            own_BRN = _nearest_cosine(target, references, masks)
        else:
            own_BRN = _pooled_cosine(target, references, masks, pool)
        total = total.to(own_BRN.device) + own_BRN
    return total / len(prediction.target_features)


def top_k(similarity_BRN: Tensor, k_BR: Tensor) -> Tensor:
    """{0, 1}: the k_BR largest along N, k differing per row. Ties go to the lower index."""
    order_BRN = similarity_BRN.argsort(dim=2, descending=True, stable=True)
    places = torch.arange(similarity_BRN.shape[2], device=order_BRN.device)
    rank_BRN = torch.empty_like(order_BRN).scatter_(2, order_BRN, places.expand_as(order_BRN))
    return (rank_BRN < k_BR.unsqueeze(2)).float()


def match_count(subjects_BRN: Tensor, config: FocusConfig, sigma_B: Tensor | None) -> Tensor:
    """k_r (B, R) of every `k_rule` but threshold, at most N."""
    num_subjects, num_tokens = subjects_BRN.shape[1:]
    area_BR = subjects_BRN.sum(2)
    if config.k_rule == "fixed":
        count_BR = torch.full_like(area_BR, config.fixed_k)
    elif config.k_rule == "fraction":
        count_BR = torch.full_like(area_BR, config.kappa * num_tokens / num_subjects)
    elif config.k_rule == "noise":
        left_B = 1 - needed_sigma(sigma_B, "k_rule").to(area_BR)
        count_BR = config.kappa * left_B.unsqueeze(1) * area_BR
    else:
        count_BR = config.kappa * area_BR
    return (count_BR + 0.5).floor().clamp(max=num_tokens)


def needed_sigma(sigma_B: Tensor | None, field: str) -> Tensor:
    """The noise levels; ValueError where they were not given."""
    if sigma_B is None:
        raise ValueError(f"focus.{field} is 'noise': focus_maps needs `sigma_B`")
    return sigma_B


def attention_field(
    similarity_BRN: Tensor,
    prior_BN: Tensor,
    subjects_BRN: Tensor,
    config: FocusConfig,
    sigma_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """M'_r (B, R, N) and k_r (B, R)."""
    scores_BRN = similarity_BRN
    if config.overlap == "argmax":  # a token speaks only for the reference it is nearest to
        nearest_BN = similarity_BRN.argmax(dim=1, keepdim=True)
        own_BRN = torch.zeros_like(scores_BRN).scatter_(1, nearest_BN, 1.0)
        scores_BRN = scores_BRN.masked_fill(own_BRN == 0, -torch.inf)
    if config.domain == "prior":
        scores_BRN = scores_BRN.masked_fill(prior_BN.unsqueeze(1) == 0, -torch.inf)
    if config.k_rule == "threshold":
        matches_BRN = (scores_BRN >= config.match_threshold).float()
        return matches_BRN, matches_BRN.sum(2)
    k_BR = match_count(subjects_BRN, config, sigma_B)
    # -inf marks tokens that may not be chosen even where k exceeds the ones that may.
    matches_BRN = top_k(scores_BRN, k_BR) * scores_BRN.isfinite()
    return matches_BRN, k_BR


def alignment(matches_BRN: Tensor, subjects_BRN: Tensor, k_BR: Tensor) -> Tensor:
    """A (B,): mean over the subjects with k_r > 0 of |M'_r and m_r| / k_r; 0 if there are none."""
    overlap_BR = (matches_BRN * subjects_BRN).sum(2) / k_BR.clamp(min=1)
    return _mean_where(overlap_BR, k_BR > 0)


def matched_similarity(similarity_BRN: Tensor, matches_BRN: Tensor) -> Tensor:
    """(B,): mean over the subjects with matched tokens of those tokens' mean similarity; 0 if there
    are none."""
    count_BR = matches_BRN.sum(2)
    mean_BR = (similarity_BRN * matches_BRN).sum(2) / count_BR.clamp(min=1)
    return _mean_where(mean_BR, count_BR > 0)


def _mean_where(values_BR: Tensor, counted_BR: Tensor) -> Tensor:
    counted_BR = counted_BR.float()
    return (values_BR * counted_BR).sum(1) / counted_BR.sum(1).clamp(min=1)


def token_confusion(similarity_BRN: Tensor, subjects_BRN: Tensor) -> Tensor:
    """Share (B,) of subject tokens whose nearest reference is another subject's; NaN for R = 1.
    Where subjects overlap a token counts once for each."""
    if similarity_BRN.shape[1] < 2:
        return similarity_BRN.new_full((similarity_BRN.shape[0],), torch.nan)
    nearest_BN = similarity_BRN.argmax(dim=1, keepdim=True)
    right_BRN = torch.zeros_like(subjects_BRN).scatter_(1, nearest_BN, 1.0) * subjects_BRN
    return 1 - right_BRN.sum((1, 2)) / subjects_BRN.sum((1, 2))
