"""Every reading of the focus maps: what all keep, and what each one says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from focus_cases import N, alternatives, build, configs, make_case, prior_weight, run
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from focusdpo.model.focus import (
    branch_parts,
    branch_weights,
    focus_maps,
    focus_weight,
    weight_parts,
)
from focusdpo.model.focus_config import FocusConfig


def assert_weights(weight_BN: Tensor, config: FocusConfig) -> None:
    assert weight_BN.isfinite().all() and (weight_BN >= 0).all()
    assert weight_BN.dtype == torch.float32 and not weight_BN.requires_grad
    if config.normalise != "none":
        torch.testing.assert_close(weight_BN.mean(1), torch.ones(len(weight_BN)))


@settings(max_examples=300)
@given(seed=st.integers(0, 10_000), config=configs())
@pytest.mark.slow
def test_every_reading_gives_maps_in_their_range(seed: int, config: FocusConfig) -> None:
    built = build(seed, config)
    maps, priors = run(built, config), built[2]
    assert_weights(maps.weight_BN, config)
    for name in ("matches_BRN", "matched_BN", "structure_BN"):
        assert set(getattr(maps, name).unique().tolist()) <= {0.0, 1.0}
    for name in ("detail_BN", "alignment_B", "gate_B"):
        value = getattr(maps, name)
        assert value.isfinite().all() and (value >= 0).all() and (value <= 1 + 1e-6).all()
    assert maps.similarity_BRN.isfinite().all() and maps.similarity_BRN.abs().max() <= 1 + 1e-5
    torch.testing.assert_close(maps.structure_BN, priors.prior_BN * (1 - maps.matched_BN))
    assert (maps.detail_BN <= priors.prior_BN).all()
    if config.gate != "soft":
        assert set(maps.gate_B.tolist()) <= {0.0, 1.0}
    if config.domain == "prior":
        assert (maps.matched_BN <= priors.prior_BN).all()
    if config.overlap == "argmax":
        assert maps.matches_BRN.sum(1).max() <= 1
    plain = config.model_copy(update={"use_structure": False, "use_detail": False, "gate": "never"})
    bare = config.model_copy(update={"use_structure": False, "use_detail": False})
    torch.testing.assert_close(run(built, bare).weight_BN, prior_weight(priors, plain))


@settings(max_examples=150)
@given(seed=st.integers(0, 10_000), config=configs())
def test_the_order_of_references_does_not_matter(seed: int, config: FocusConfig) -> None:
    prediction, masks, priors, sigma_B = build(seed, config)
    order = list(range(len(masks)))[::-1]
    turned = replace(
        prediction,
        reference_features=tuple(
            tuple(block[r] for r in order) for block in prediction.reference_features
        ),
    )
    moved = replace(priors, subjects_BRN=priors.subjects_BRN[:, order])
    one = focus_maps(prediction, masks, priors, config, sigma_B)
    other = focus_maps(turned, tuple(masks[r] for r in order), moved, config, sigma_B)
    torch.testing.assert_close(one.similarity_BRN[:, order], other.similarity_BRN)
    torch.testing.assert_close(one.matches_BRN[:, order], other.matches_BRN)
    for name in ("matched_BN", "gate_B", "confusion_B", "weight_BN"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), equal_nan=True)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    config=configs(kappa=0.0, fixed_k=0),
    rule=st.sampled_from(["area", "fraction", "fixed", "noise"]),
)
def test_no_matches_leave_the_whole_prior_to_be_learnt(
    seed: int, config: FocusConfig, rule: str
) -> None:
    config = config.model_copy(update={"k_rule": rule})
    built = build(seed, config)
    maps = run(built, config)
    assert maps.matched_BN.sum() == 0 and maps.alignment_B.sum() == 0
    torch.testing.assert_close(maps.structure_BN, built[2].prior_BN)


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), config=configs())
def test_equal_weights_on_the_whole_image_are_plain_dpo(seed: int, config: FocusConfig) -> None:
    config = config.model_copy(
        update={"w_bg": 0.7, "w_low": 0.7, "w_high": 0.7, "use_detail": False}
    )
    if config.normalise == "none":
        config = config.model_copy(update={"w_bg": 1.0, "w_low": 1.0, "w_high": 1.0})
    if config.normalise == "masks":  # M' and M_s weigh the same whatever their size: leave one
        config = config.model_copy(update={"use_structure": False})
    prediction, masks, priors, sigma_B = build(seed, config)
    priors = replace(priors, prior_BN=torch.ones_like(priors.prior_BN))
    maps = focus_maps(prediction, masks, priors, config, sigma_B)
    torch.testing.assert_close(maps.weight_BN, torch.ones(4, N))
    torch.testing.assert_close(branch_weights(maps, priors, config), torch.ones(4, N))


@settings(max_examples=150)
@given(seed=st.integers(0, 10_000), config=configs())
def test_weights_of_the_branches(seed: int, config: FocusConfig) -> None:
    built = build(seed, config)
    maps, priors = run(built, config), built[2]
    weight_BN = branch_weights(maps, priors, config)
    assert weight_BN.shape == (4, N)
    assert_weights(weight_BN, config)
    win_BN, lose_BN = weight_BN.chunk(2)
    if config.branches == "each":
        assert torch.equal(weight_BN, maps.weight_BN)
    elif config.branches == "winner":
        assert torch.equal(win_BN, maps.weight_BN[:2]) and torch.equal(lose_BN, win_BN)
    else:
        masks = (priors.prior_BN, maps.matched_BN, maps.detail_BN, maps.gate_B)
        reward = config.model_copy(update={"use_structure": False})
        penalty = config.model_copy(update={"use_detail": False})
        assert torch.equal(win_BN, focus_weight(*masks, reward)[:2])
        assert torch.equal(lose_BN, focus_weight(*masks, penalty)[2:])


def test_without_features_the_branches_still_differ() -> None:
    priors = make_case(0, images=4)[2]
    config = FocusConfig(use_structure=False, gate="always", branches="split")
    assert not config.needs_features
    win_BN, lose_BN = branch_weights(None, priors, config).chunk(2)
    assert torch.equal(win_BN, prior_weight(priors, config)[:2])
    assert torch.equal(lose_BN, prior_weight(priors, FocusConfig(gate="never"))[2:])
    each = config.model_copy(update={"branches": "each"})
    assert torch.equal(branch_weights(None, priors, each), prior_weight(priors, config))


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), config=configs(overlap="max", domain="image"))
def test_k_is_what_its_rule_says(seed: int, config: FocusConfig) -> None:
    built = build(seed, config)
    maps, (_, _, priors, sigma_B) = run(built, config), built
    area_BR, num = priors.subjects_BRN.sum(2), priors.subjects_BRN.shape[1]
    wanted_BR = {
        "area": config.kappa * area_BR,
        "fraction": torch.full_like(area_BR, config.kappa * N / num),
        "fixed": torch.full_like(area_BR, config.fixed_k),
        "noise": config.kappa * (1 - sigma_B[:, None]) * area_BR,
        "threshold": (maps.similarity_BRN >= config.match_threshold).float().sum(2),
    }[config.k_rule]
    assert torch.equal(maps.matches_BRN.sum(2), (wanted_BR + 0.5).floor().clamp(max=N))
    if config.k_rule != "threshold":  # those that match are the best
        inside = maps.matches_BRN == 1
        worst = maps.similarity_BRN.masked_fill(~inside, torch.inf).amin(2)
        best_left = maps.similarity_BRN.masked_fill(inside, -torch.inf).amax(2)
        assert (worst >= best_left).all()


def test_matches_fade_in_as_noise_goes() -> None:
    config = FocusConfig(k_rule="noise", kappa=1.0)
    prediction, masks, priors, _ = build(1, config)
    clean, noisy = (
        focus_maps(prediction, masks, priors, config, torch.full((4,), sigma))
        for sigma in (0.0, 1.0)
    )
    assert torch.equal(clean.matches_BRN, run(build(1, config), FocusConfig()).matches_BRN)
    assert noisy.matches_BRN.sum() == 0


@settings(max_examples=80)
@given(seed=st.integers(0, 10_000), config=configs())
def test_the_gate_opens_when_its_rule_says(seed: int, config: FocusConfig) -> None:
    built = build(seed, config)
    maps = run(built, config)
    count_BR = maps.matches_BRN.sum(2)
    mean_BR = (maps.similarity_BRN * maps.matches_BRN).sum(2) / count_BR
    seen_B = torch.stack([row[row.isfinite()].mean().nan_to_num(0.0) for row in mean_BR])
    soft = (maps.alignment_B.double() - config.tau) / config.gate_temperature
    wanted_B = {
        "overlap": maps.alignment_B >= config.tau,
        "always": torch.ones(4),
        "never": torch.zeros(4),
        "noise": built[3] <= config.gate_sigma,
        "similarity": seen_B >= config.tau,
        "soft": 1 / (1 + torch.exp(-soft)),
    }[config.gate]
    torch.testing.assert_close(maps.gate_B, wanted_B.float())


@pytest.mark.parametrize("field", ["gate", "k_rule"])
def test_noise_levels_must_be_given_where_they_count(field: str) -> None:
    config = FocusConfig(**{field: "noise"})  # type: ignore[arg-type]
    prediction, masks, priors, _ = build(0, config)
    with pytest.raises(ValueError, match=f"focus.{field} is 'noise'"):
        focus_maps(prediction, masks, priors, config)


@settings(max_examples=80)
@given(seed=st.integers(0, 10_000), config=configs(normalise="none", use_detail=True))
def test_how_detail_joins_the_rest(seed: int, config: FocusConfig) -> None:
    """Token by token; parts add up to the whole."""
    built = build(seed, config)
    maps, prior_BN = run(built, config), built[2].prior_BN
    got = weight_parts(prior_BN, maps.matched_BN, maps.detail_BN, maps.gate_B, config)
    for b, j in np.ndindex(4, N):
        high = not (config.use_structure and maps.matched_BN[b, j])
        subject = config.w_high if high else config.w_low
        gate, gain = maps.gate_B[b].item(), config.lambda_d * maps.detail_BN[b, j].item()
        plain = subject if prior_BN[b, j] else config.w_bg
        want = {
            "add": plain + gate * gain,
            "multiply": plain * (1 + gate * gain),
            "replace": (1 - gate) * plain + gate * (config.w_low + gain)
            if prior_BN[b, j]
            else plain,
        }[config.combine]
        assert got.total()[b, j].item() == pytest.approx(want, abs=1e-5)


@settings(max_examples=80)
@given(seed=st.integers(0, 10_000), config=configs(normalise="masks", combine="add"))
def test_masks_weigh_the_same_however_large(seed: int, config: FocusConfig) -> None:
    """W e averaged over tokens is the weighted mean of the masks' own means of e."""
    built = build(seed, config)
    maps, prior_BN = run(built, config), built[2].prior_BN
    error_BN = torch.rand(4, N, generator=torch.Generator().manual_seed(seed)).double()
    for b in range(4):
        prior, matched = prior_BN[b].double(), maps.matched_BN[b].double()
        matched = matched * config.use_structure
        gate = maps.gate_B[b].item() * config.use_detail
        parts = [
            (config.w_bg, 1 - prior),
            (config.w_low, prior * matched),
            (config.w_high, prior * (1 - matched)),
            (config.lambda_d * gate, maps.detail_BN[b].double()),
        ]
        parts = [(weight, mask) for weight, mask in parts if mask.sum() > 0]
        total = sum(weight for weight, _ in parts)
        if total == 0:
            continue
        want = sum(w * (m * error_BN[b]).sum() / m.sum() for w, m in parts) / total
        got = (maps.weight_BN[b].double() * error_BN[b]).mean()
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_parts_of_the_branches_are_those_of_their_weights() -> None:
    for branches in alternatives(FocusConfig)["branches"]:
        config = FocusConfig(branches=branches, normalise="none", gate="always")
        built = build(3, config)
        maps, priors = run(built, config), built[2]
        masks = (priors.prior_BN, maps.matched_BN, maps.detail_BN, maps.gate_B)
        parts = branch_parts(*masks, config)
        assert torch.equal(parts.total(), branch_weights(maps, priors, config))
        assert (parts.detail[2:].sum() == 0) == (branches == "split")
        assert (parts.matched[:2].sum() == 0) == (branches == "split")
