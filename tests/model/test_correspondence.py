"""Similarity of target tokens to references against a version in loops and double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from focus_cases import KINDS, Built, N, alternatives, build, run

from focusdpo.model.backbone import FeatureConfig
from focusdpo.model.focus_config import FocusConfig


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def slow_similarity(built: Built, pool: str, kind: str) -> np.ndarray:
    """One image, reference and token at a time, in double precision."""
    prediction, masks, priors, _ = built
    out = np.zeros(priors.subjects_BRN.shape)
    blocks = zip(prediction.target_features, prediction.reference_features, strict=True)
    for target, references in blocks:
        for b, r in np.ndindex(out.shape[:2]):
            h, tokens = target[b].double().numpy(), references[r][b].double().numpy()
            inside = masks[r][b].numpy() > 0
            tokens = tokens[inside] if inside.any() else tokens
            if kind == "attention":
                shares = np.zeros((len(tokens), N))
                for i, head in np.ndindex(len(tokens), h.shape[2]):
                    logits = h[:, 1, head] @ tokens[i, 0, head] / np.sqrt(h.shape[3])
                    shares[i] += np.exp(logits) / np.exp(logits).sum() / h.shape[2]
                out[b, r] += shares.mean(0) if pool == "mean" else shares.max(0)
            elif pool == "patches":
                out[b, r] += [max(cosine(h[j], t) for t in tokens) for j in range(N)]
            else:
                p = tokens.mean(0) if pool == "mean" else tokens.max(0)
                out[b, r] += [cosine(h[j], p) for j in range(N)]
    return out / len(prediction.target_features)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pool", alternatives(FocusConfig)["pool"])
@pytest.mark.parametrize("seed", range(4))
def test_similarity_equals_an_independent_version(seed: int, pool: str, kind: str) -> None:
    config = FocusConfig(pool=pool, features=FeatureConfig(kind=kind))  # type: ignore[arg-type]
    built = build(seed, config)
    built[1][0][0] = 0  # an empty mask counts whole
    got = run(built, config).similarity_BRN
    np.testing.assert_allclose(got, slow_similarity(built, pool, kind), atol=1e-6)
    if kind == "attention" and pool == "mean":
        torch.testing.assert_close(got.sum(2), torch.ones(got.shape[:2]))


def test_features_of_another_kind_are_refused() -> None:
    config = FocusConfig(features=FeatureConfig(kind="attention"))
    with pytest.raises(ValueError, match="not those of 'attention'"):
        run(build(0, FocusConfig()), config)
    with pytest.raises(ValueError, match="not those of 'keys'"):
        run(build(0, config), FocusConfig())
