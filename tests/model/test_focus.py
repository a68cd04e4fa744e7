"""Facts about the focus maps; an independent version in numpy loops, in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from focus_cases import Case, N, make_case, prior_weight
from hypothesis import given, settings
from hypothesis import strategies as st

from focusdpo.model.backbone import Prediction
from focusdpo.model.correspondence import top_k
from focusdpo.model.focus import (
    FocusPriors,
    focus_maps,
    pool_to_grid,
)
from focusdpo.model.focus_config import FocusConfig


def slow_maps(case: Case, config: FocusConfig) -> dict[str, Any]:
    """Design section 4, steps 2 to 7, one image and one token at a time."""
    prediction, masks, priors = case
    subjects = priors.subjects_BRN.double().numpy()
    prior, detail = priors.prior_BN.double().numpy(), priors.detail_BN.double().numpy()
    images, num, _ = subjects.shape
    out: dict[str, Any] = {"similarity": np.zeros_like(subjects), "weight": np.zeros_like(prior)}
    out["matched"], out["alignment"] = np.zeros_like(prior), np.zeros(images)
    for b in range(images):
        ratios = []
        for r in range(num):
            for target, references in zip(
                prediction.target_features, prediction.reference_features, strict=True
            ):
                inside = masks[r][b].numpy() > 0
                tokens = references[r][b].double().numpy()
                p = tokens[inside].mean(0) if inside.any() else tokens.mean(0)
                h = target[b].double().numpy()
                cosine = h @ p / (np.linalg.norm(h, axis=1) * np.linalg.norm(p))
                out["similarity"][b, r] += cosine / len(prediction.target_features)
            k = min(N, int(np.floor(config.kappa * subjects[b, r].sum() + 0.5)))
            chosen = np.argsort(-out["similarity"][b, r], kind="stable")[:k]
            out["matched"][b, chosen] = 1
            if k:
                ratios.append(subjects[b, r, chosen].sum() / k)
        out["alignment"][b] = np.mean(ratios) if ratios else 0.0
        gate = float(out["alignment"][b] >= config.tau)
        for j in range(N):
            low = config.w_low if out["matched"][b, j] else config.w_high
            out["weight"][b, j] = low if prior[b, j] else config.w_bg
            out["weight"][b, j] += gate * config.lambda_d * detail[b, j] * prior[b, j]
        out["weight"][b] /= out["weight"][b].mean()
    return out


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    kappa=st.floats(0, 3),
    # Never a share of small counts, which float32 and float64 may round to either side.
    tau=st.integers(0, 40).map(lambda n: (n + 0.37) / 41.3),
)
def test_maps_equal_an_independent_version(seed: int, kappa: float, tau: float) -> None:
    config = FocusConfig(kappa=kappa, tau=tau)
    case = make_case(seed, subjects=1 + seed % 3)
    want, got = slow_maps(case, config), focus_maps(*case, config)
    np.testing.assert_allclose(got.similarity_BRN.numpy(), want["similarity"], atol=1e-6)
    np.testing.assert_array_equal(got.matched_BN.numpy(), want["matched"])
    np.testing.assert_allclose(got.alignment_B.numpy(), want["alignment"], atol=1e-6)
    np.testing.assert_allclose(got.weight_BN.numpy(), want["weight"], atol=1e-5)


def test_perfect_correspondence_empties_m_s_and_opens_the_gate() -> None:
    """Target tokens of subject r carry reference r's own vector; the background another one."""
    axes = torch.eye(3)
    subjects_BRN = torch.zeros(1, 2, N)
    subjects_BRN[0, 0, :4], subjects_BRN[0, 1, 8:12] = 1, 1
    target = axes[2].repeat(1, N, 1)
    target[0, :4], target[0, 8:12] = axes[0], axes[1]
    references = (axes[0].repeat(1, 5, 1), axes[1].repeat(1, 5, 1))
    masks = (torch.ones(1, 5), torch.ones(1, 5))
    priors = FocusPriors(subjects_BRN.amax(1), subjects_BRN, torch.full((1, N), 0.5))
    prediction = Prediction(torch.zeros(1, N, 2), (target,), (references,))
    maps = focus_maps(prediction, masks, priors, FocusConfig())
    assert maps.alignment_B.item() == 1
    assert maps.structure_BN.sum() == 0
    assert maps.gate_B.item() == 1
    assert maps.confusion_B.item() == 0
    crossed = Prediction(torch.zeros(1, N, 2), (target,), (references[::-1],))
    maps = focus_maps(crossed, masks, priors, FocusConfig())
    assert maps.alignment_B.item() == 0
    assert maps.confusion_B.item() == 1
    # The union is covered all the same: which of two subjects is where, only A and confusion see.
    assert maps.structure_BN.sum() == 0


def test_an_image_that_weighs_nothing_weighs_one_everywhere() -> None:
    nothing = torch.zeros(2, N)
    priors = FocusPriors(nothing, torch.zeros(2, 1, N), nothing)
    torch.testing.assert_close(prior_weight(priors, FocusConfig(w_bg=0)), torch.ones(2, N))


def test_detached_even_when_features_carry_gradients() -> None:
    prediction, masks, priors = make_case(1)
    live = tuple(t.requires_grad_() for t in prediction.target_features)
    maps = focus_maps(
        Prediction(prediction.output_BNC, live, prediction.reference_features),
        masks,
        priors,
        FocusConfig(),
    )
    assert not maps.similarity_BRN.requires_grad


@given(k=st.lists(st.integers(0, 7), min_size=2, max_size=2), seed=st.integers(0, 99))
def test_top_k_takes_k_per_row_and_breaks_ties_downwards(k: list[int], seed: int) -> None:
    scores = torch.randint(0, 3, (1, 2, 7), generator=torch.Generator().manual_seed(seed)).float()
    chosen = top_k(scores, torch.tensor([k]).float())
    assert chosen.sum(2).tolist() == [k]
    for r in range(2):
        want = sorted(range(7), key=lambda j: (-scores[0, r, j].item(), j))[: k[r]]
        assert chosen[0, r].nonzero().flatten().tolist() == sorted(want)


def test_pooling_means_each_tokens_pixels_row_by_row() -> None:
    mask = torch.zeros(1, 4, 6)
    mask[0, :2, 4:] = 1  # the top right token of a 2 x 3 grid
    mask[0, 2, 0] = 1  # a quarter of the lower left one
    assert pool_to_grid(mask, (2, 3)).tolist() == [[0, 0, 1, 0.25, 0, 0]]
    with pytest.raises(ValueError, match="4x6 pixels does not divide into 3x3"):
        pool_to_grid(mask, (3, 3))


def test_features_and_masks_must_agree() -> None:
    prediction, masks, priors = make_case(0)
    with pytest.raises(ValueError, match="masks"):
        focus_maps(
            prediction,
            masks,
            FocusPriors(priors.prior_BN, priors.subjects_BRN[:, :1], priors.detail_BN),
            FocusConfig(),
        )
    with pytest.raises(ValueError, match="capture"):
        focus_maps(Prediction(prediction.output_BNC), masks, priors, FocusConfig())
