"""The premise's measures against direct calls, simulation and other implementations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pair_samples import make_sample
from scipy import stats

from focusdpo.model.backbone import FeatureConfig
from focusdpo.model.backbones.flux import FluxBackbone
from focusdpo.model.correspondence import alignment, attention_field
from focusdpo.model.focus import FocusPriors, focus_maps
from focusdpo.model.focus_config import FocusConfig, PremiseConfig
from focusdpo.model.focus_levels import (
    METRICS,
    block_names,
    bootstrap_band,
    chance_levels,
    measure_premise,
    noise_of,
    noisy_images,
    rank_correlation,
    rise_of,
    spread,
)
from focusdpo.model.noise import add_noise
from focusdpo.model.training.batches import PairBatch, encode_pairs

SIGMAS = (0.9, 0.5, 0.1)
FOCUS = FocusConfig(features=FeatureConfig(kind="queries", blocks=("single.0", "double.0")))


@pytest.fixture
def batches(backbone: FluxBackbone) -> list[PairBatch]:
    two = encode_pairs(backbone, [make_sample(i, 2) for i in range(3)])
    return [encode_pairs(backbone, [make_sample(0, 1)]), two]


def direct(backbone: FluxBackbone, batch: PairBatch, sigma: float, config: FocusConfig):
    """Maps of winners and of losers, from a pass of their own."""
    noise = noise_of(batch, seed=3)
    found = []
    for clean in (batch.win_BNC, batch.lose_BNC):
        level = clean.new_full((len(batch),), sigma)
        noisy = add_noise(clean, noise, level)
        args = (noisy, level, batch.prompts, batch.references)
        prediction = backbone.predict(*args, capture=config.features)
        found.append(focus_maps(prediction, batch.references.masks, batch.priors, config, level))
    return found


def test_values_are_those_of_focus_maps(backbone: FluxBackbone, batches: list[PairBatch]) -> None:
    premise = PremiseConfig(sigmas=SIGMAS)
    measured = measure_premise(backbone, batches, FOCUS, premise, seed=3)
    assert block_names(backbone.transformer) == ("double.0", "single.0")
    kinds = ("keys", "queries", "block_output", "attention")
    assert list(measured.places) == [(k, b) for k in kinds for b in ("double.0", "single.0")]
    configs = {None: FOCUS} | {
        place: FocusConfig(features=FeatureConfig(kind=place[0], blocks=(place[1],)))
        for place in measured.places
    }
    for place, config in configs.items():
        values = measured.places[place] if place else measured.configured
        assert set(values) == set(METRICS)
        for at, sigma in enumerate(SIGMAS):
            for rows, batch in ((slice(0, 1), batches[0]), (slice(1, 4), batches[1])):
                for branch, maps in enumerate(direct(backbone, batch, sigma, config)):
                    share = maps.structure_BN.sum(1) / batch.priors.prior_BN.sum(1)
                    for name, wanted in (
                        ("alignment", maps.alignment_B),
                        ("structure_share", share),
                        ("confusion", maps.confusion_B),
                    ):
                        found = values[name][rows, at, branch]
                        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-6)


def test_a_batch_does_not_change_a_pair(backbone: FluxBackbone, batches: list[PairBatch]) -> None:
    premise = PremiseConfig(sigmas=SIGMAS, kinds=("keys",))
    together = measure_premise(backbone, batches[1:], FOCUS, premise, seed=3)
    alone = [batches[1].take(slice(i, i + 1)) for i in (2, 0, 1)]
    apart = measure_premise(backbone, alone, FOCUS, premise, seed=3)
    for name in METRICS:
        np.testing.assert_allclose(
            together.configured[name][[2, 0, 1]], apart.configured[name], atol=1e-6
        )


@pytest.mark.parametrize("domain", ["image", "prior"])
@pytest.mark.parametrize("kappa", [0.5, 1.0, 1.6])
def test_chance_is_the_mean_of_random_choices(domain: str, kappa: float) -> None:
    g = torch.Generator().manual_seed(0)
    subjects_BRN = torch.zeros(1, 2, 36)
    subjects_BRN[0, 0, :5], subjects_BRN[0, 1, 10:14] = 1, 1
    prior_BN = torch.zeros(1, 36)
    prior_BN[0, :20] = 1
    priors = FocusPriors(prior_BN, subjects_BRN, torch.zeros(1, 36))
    config = FocusConfig(domain=domain, kappa=kappa)  # type: ignore[arg-type]
    draws = 4000
    many = priors.repeat(draws)
    scores = torch.rand(draws, 2, 36, generator=g)
    matches, k_BR = attention_field(scores, many.prior_BN, many.subjects_BRN, config)
    overlap = alignment(matches, many.subjects_BRN, k_BR).mean()
    left = ((1 - matches.amax(1)) * many.prior_BN).sum(1).div(many.prior_BN.sum(1)).mean()
    chance, share = chance_levels(matches[:1], priors, config)
    assert float(chance) == pytest.approx(float(overlap), abs=0.01)
    assert float(share) == pytest.approx(float(left), abs=0.01)
    if domain == "image":
        assert float(chance) == pytest.approx((5 + 4) / 2 / 36)


def test_floor_is_the_share_of_the_prior_outside_subjects(
    backbone: FluxBackbone, batches: list[PairBatch]
) -> None:
    batch = batches[0]
    wider = replace(batch, priors=replace(batch.priors, prior_BN=torch.ones(1, 64)))
    premise = PremiseConfig(sigmas=SIGMAS, kinds=("keys",))
    floor = measure_premise(backbone, [wider], FOCUS, premise, seed=0)
    area = float(batch.priors.subjects_BRN.sum())
    assert floor.configured["structure_floor"] == pytest.approx(1 - area / 64)
    assert np.isnan(floor.configured["confusion_chance"]).all()


def test_noisy_images_are_the_pair_at_low_noise(
    backbone: FluxBackbone, batches: list[PairBatch]
) -> None:
    batch = batches[0]
    pictures = noisy_images(backbone, batch, (0.9, 1e-6), noise_of(batch, 0))
    assert pictures.shape == (2, 2, 64, 64, 3) and pictures.dtype == np.uint8
    clean = backbone.decode(batch.lose_BNC)[0].permute(1, 2, 0).numpy()
    assert np.abs(pictures[1, 1] - (clean + 1) * 127.5).max() <= 1


def test_rank_correlation_is_spearmans() -> None:
    rng = np.random.default_rng(1)
    values = rng.integers(0, 4, (20, 6)).astype(float)
    values[0] = 2.0  # no change: 0, where Spearman is undefined
    sigmas = (0.9, 0.7, 0.5, 0.3, 0.2, 0.1)
    found = rank_correlation(values, sigmas)
    wanted = [stats.spearmanr(row, -np.array(sigmas)).statistic for row in values[1:]]
    np.testing.assert_allclose(found, [0.0, *wanted], atol=1e-12)


def test_band_holds_the_mean_and_leaves_out_missing_pairs() -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(0.5, 0.1, (200, 3)) + [0.0, 0.1, 0.3]
    with_missing = np.concatenate([values, np.full((5, 3), np.nan)])
    band = bootstrap_band(with_missing, resamples=500, level=0.95)
    assert band.pairs == 200
    np.testing.assert_allclose(band.mean, values.mean(0))
    half = 1.96 * values.std(0) / np.sqrt(200)
    np.testing.assert_allclose(band.high - band.mean, half, rtol=0.2)
    np.testing.assert_allclose(band.mean - band.low, half, rtol=0.2)
    rise = rise_of(with_missing, (0.9, 0.5, 0.1), resamples=500, level=0.95)
    assert rise.rise.low[0] < 0.3 < rise.rise.high[0] and rise.peak_sigma == 0.1
    nothing = bootstrap_band(np.full((4, 2), np.nan), resamples=10, level=0.95)
    assert nothing.pairs == 0 and np.isnan(nothing.mean).all()


def test_pairs_are_spread_over_groups_and_within_them() -> None:
    groups = {1: list("abcdefgh"), 2: list("xy"), 3: list("123456")}
    chosen = spread(groups, 8)
    assert len(chosen) == len(set(chosen)) == 8
    assert [sum(c in items for c in chosen) for items in groups.values()] == [3, 2, 3]
    assert spread(groups, 100) == [*"abcdefgh", *"xy", *"123456"]
    assert spread({2: list(range(10))}, 2) == [2, 7]


@pytest.mark.parametrize("sigmas", [(0.5,), (0.5, 0.5), (1.0, 0.5), (0.5, 0.0)])
def test_wrong_noise_levels_are_refused(sigmas: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="noise levels"):
        PremiseConfig(sigmas=sigmas)


def test_noise_levels_are_kept_from_most_to_least() -> None:
    assert PremiseConfig(sigmas=(0.1, 0.9, 0.5)).sigmas == (0.9, 0.5, 0.1)
