"""Noise and noise levels of a step: functions of (seed, step, slot) alone, and, where levels are
stratified, of how many pairs a step has.

One noise and one sigma per pair serve both branches and both models. Because no generator lives on
between steps, a resumed run, another micro-batch size or number of processes draws the same.
Flow matching: x_t = (1 - sigma) x_0 + sigma e, target velocity e - x_0.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from scipy import special
from torch import Tensor

from focusdpo.data_schemas.scenes import stable_hash
from focusdpo.model.focus_config import NoiseConfig


def sigma_from_uniform(u_B: Tensor, config: NoiseConfig) -> Tensor:
    """Uniform numbers in (0, 1) -> noise levels in (0, 1), by the inverse of their distribution."""
    sigma_B = u_B
    if config.distribution == "logit_normal":
        sigma_B = torch.sigmoid(config.mean + config.std * torch.special.ndtri(u_B))
    elif config.distribution == "beta":
        inverse = special.betaincinv(config.bump, config.bump, u_B.cpu().numpy())
        sigma_B = torch.from_numpy(inverse).to(u_B)
    return config.shift * sigma_B / (1 + (config.shift - 1) * sigma_B)


def draw_noise(
    clean_BNC: Tensor,
    slots: Iterable[int],
    *,
    seed: int,
    step: int,
    config: NoiseConfig,
    slots_in_step: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Noise (B, N, C) and sigma (B,) for the pairs at `slots` of this step's batch: of the N and C
    of `clean_BNC`, on its device, in its precision. They are drawn on the CPU in float32. Where the
    config is stratified, slot i of the `slots_in_step` pairs of a step (over all processes and
    micro-batches) draws from the i-th of as many strata."""
    slots = list(slots)
    noise, uniform = [], []
    for slot in slots:
        generator = torch.Generator().manual_seed(stable_hash("noise", seed, step, slot) % 2**63)
        uniform.append(torch.rand((), generator=generator, dtype=torch.float64))
        noise.append(torch.randn(clean_BNC.shape[1:], generator=generator))
    u_B = torch.stack(uniform)
    if config.stratified:
        u_B = _inside_strata(u_B, slots, slots_in_step)
    u_B = u_B.clamp(1e-4, 1 - 1e-4)
    noise_BNC, sigma_B = torch.stack(noise), sigma_from_uniform(u_B, config).float()
    return noise_BNC.to(clean_BNC), sigma_B.to(clean_BNC)


def _inside_strata(u_B: Tensor, slots: list[int], slots_in_step: int | None) -> Tensor:
    """Uniform numbers in (0, 1), each moved into its slot's stratum."""
    if slots_in_step is None:
        raise ValueError("noise.stratified: draw_noise needs `slots_in_step`")
    if any(not 0 <= slot < slots_in_step for slot in slots):
        raise ValueError(f"slots {slots} are not all among the {slots_in_step} of a step")
    return (torch.tensor(slots) + u_B) / slots_in_step


def seeded_noise(shape: tuple[int, int], seeds: Iterable[int]) -> Tensor:
    """(B, N, C) for painting, drawn on the CPU, one generator per item, so that no batch and no
    device matters; `shape` is (N, C)."""
    generators = (torch.Generator().manual_seed(seed) for seed in seeds)
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def add_noise(clean_BNC: Tensor, noise_BNC: Tensor, sigma_B: Tensor) -> Tensor:
    """x_t = (1 - sigma) x_0 + sigma e."""
    sigma_B11 = sigma_B[:, None, None]
    return (1 - sigma_B11) * clean_BNC + sigma_B11 * noise_BNC


def velocity_target(clean_BNC: Tensor, noise_BNC: Tensor) -> Tensor:
    """v* = e - x_0."""
    return noise_BNC - clean_BNC
