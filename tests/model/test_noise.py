"""Noise depends on seed, step and slot, and on nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from focusdpo.model.focus_config import NoiseConfig
from focusdpo.model.noise import add_noise, draw_noise, sigma_from_uniform, velocity_target


@given(seed=st.integers(0, 2**31 - 1), step=st.integers(0, 10**6), cut=st.integers(1, 3))
def test_a_slots_noise_does_not_depend_on_its_neighbours(seed: int, step: int, cut: int) -> None:
    config = NoiseConfig()
    noise, sigma = draw_noise((3, 2), range(4), seed=seed, step=step, config=config)
    head = draw_noise((3, 2), range(cut), seed=seed, step=step, config=config)
    tail = draw_noise((3, 2), range(cut, 4), seed=seed, step=step, config=config)
    assert torch.equal(noise, torch.cat([head[0], tail[0]]))
    assert torch.equal(sigma, torch.cat([head[1], tail[1]]))
    assert not torch.equal(noise[0], noise[1])


def test_steps_and_seeds_differ() -> None:
    draws = [
        draw_noise((4, 4), [0], seed=s, step=t, config=NoiseConfig())[0]
        for s, t in ((0, 0), (0, 1), (1, 0))
    ]
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_global_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    draw_noise((4, 4), range(3), seed=0, step=0, config=NoiseConfig())
    assert torch.equal(torch.rand(3), want)


@pytest.mark.parametrize("mean, std", [(0.0, 1.0), (0.7, 0.5)])
def test_logit_normal_has_the_moments_it_names(mean: float, std: float) -> None:
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    logit = torch.logit(sigma_from_uniform(u, NoiseConfig(mean=mean, std=std)))
    assert logit.mean().item() == pytest.approx(mean, abs=1e-3)
    assert logit.std().item() == pytest.approx(std, rel=1e-3)


def test_uniform_and_shift() -> None:
    u = torch.tensor([0.25, 0.5], dtype=torch.float64)
    assert sigma_from_uniform(u, NoiseConfig(distribution="uniform")).tolist() == [0.25, 0.5]
    shifted = sigma_from_uniform(u, NoiseConfig(distribution="uniform", shift=3.0))
    assert shifted.tolist() == pytest.approx([0.75 / 1.5, 1.5 / 2.0])


def test_flow_matching_conventions() -> None:
    clean, noise = torch.randn(2, 2, 3, 4).unbind(0)
    sigma = torch.tensor([0.3, 1.0])
    noisy = add_noise(clean, noise, sigma)
    torch.testing.assert_close(noisy[1], noise[1])
    # Stepping back along the velocity arrives at the clean latents.
    velocity = velocity_target(clean, noise)
    torch.testing.assert_close(noisy - sigma[:, None, None] * velocity, clean)
