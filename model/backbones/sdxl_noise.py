"""SDXL's noise: levels in (0, 1) to diffusion time steps, and painting on the same schedule."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from focusdpo.model.backbone import Grid
from focusdpo.model.backbones.sdxl_config import CHANNELS, SAMPLERS, SdxlIpAdapterConfig


class DiffusionNoise:
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) e, as diffusers' DDPMScheduler has it."""

    def __init__(self, scheduler: Any) -> None:
        from diffusers import DDPMScheduler

        schedule = DDPMScheduler.from_config(scheduler.config)
        self.levels: int = schedule.config.num_train_timesteps
        self.predicts: str = schedule.config.prediction_type
        self._alphas_T: Tensor = schedule.alphas_cumprod

    def timesteps(self, sigma_B: Tensor) -> Tensor:
        """floor(sigma T) in 0 ... T - 1: (B,) integers."""
        return (sigma_B.double() * self.levels).long().clamp(0, self.levels - 1)

    def _signal_and_noise(self, sigma_B: Tensor) -> tuple[Tensor, Tensor]:
        alphas_T = self._alphas_T.to(sigma_B.device)
        alpha_B11 = alphas_T[self.timesteps(sigma_B)][:, None, None]
        return alpha_B11.sqrt(), (1 - alpha_B11).sqrt()

    def add(self, clean_BNC: Tensor, noise_BNC: Tensor, sigma_B: Tensor) -> Tensor:
        """Latents at a noise level."""
        signal_B11, spread_B11 = self._signal_and_noise(sigma_B)
        return signal_B11 * clean_BNC + spread_B11 * noise_BNC

    def target(self, clean_BNC: Tensor, noise_BNC: Tensor, sigma_B: Tensor) -> Tensor:
        """The noise e, or for checkpoints that predict it, v = sqrt(abar) e - sqrt(1 - abar) x_0
        (arXiv 2202.00512)."""
        if self.predicts == "epsilon":
            return noise_BNC
        signal_B11, spread_B11 = self._signal_and_noise(sigma_B)
        return signal_B11 * noise_BNC - spread_B11 * clean_BNC


@lru_cache(maxsize=16)
def reference_noise(slot: int, grid: Grid) -> Tensor:
    """Noise (1, n_r, C) of a reference, the same in every pass: maps should not flicker."""
    generator = torch.Generator().manual_seed(slot)
    return torch.randn((1, grid[0] * grid[1], CHANNELS), generator=generator)


def time_ids(
    original: tuple[int, int], crop_top_left: tuple[int, int], target: tuple[int, int]
) -> Tensor:
    """SDXL's size condition of one image: original height and width, crop's top and left, target
    height and width, in pixels (arXiv 2307.01952, section 2.2)."""
    return torch.tensor([*original, *crop_top_left, *target])


class Painter:
    """A run of a sampler from noise to latents (B, c, h, w), with guidance.

    `denoise` maps latents and time steps (B,) to predictions; with guidance it is given both
    halves of a doubled batch, the unconditional one first."""

    def __init__(
        self,
        denoise: Callable[[Tensor, Tensor], Tensor],
        scheduler: Any,
        config: SdxlIpAdapterConfig,
        device: torch.device,
    ) -> None:
        import diffusers

        from_checkpoint = config.scheduler == "checkpoint"
        kind = (
            type(scheduler) if from_checkpoint else getattr(diffusers, SAMPLERS[config.scheduler])
        )
        self._denoise, self._config, self._device = denoise, config, device
        self._sampler = kind.from_config(scheduler.config)  # fresh: samplers keep state
        self._sampler.set_timesteps(config.steps, device=device)

    def paint(self, noise: Tensor) -> Tensor:
        """From noise of unit variance."""
        self._begin(0)
        latents = noise * self._sampler.init_noise_sigma
        for step in self._sampler.timesteps:
            latents = self._one_step(latents, step)
        return latents

    def repaint(self, clean: Tensor, inside: Tensor, noise: Tensor) -> Tensor:
        """Where `inside` is 1; elsewhere the latents after each step are the clean ones at that
        step's noise, and in the end the clean ones themselves."""
        sampler, config = self._sampler, self._config
        skipped = config.steps - max(1, int(config.steps * config.strength))
        timesteps = sampler.timesteps[skipped * sampler.order :]
        self._begin(skipped * sampler.order)
        latents = noise * sampler.init_noise_sigma
        if skipped:
            latents = sampler.add_noise(clean, noise, timesteps[:1])
        for i, step in enumerate(timesteps):
            latents = self._one_step(latents, step)
            outside = clean
            if i + 1 < len(timesteps):
                outside = sampler.add_noise(clean, noise, timesteps[i + 1 : i + 2])
            latents = inside * latents + (1 - inside) * outside
        return latents

    def _begin(self, index: int) -> None:
        if hasattr(self._sampler, "set_begin_index"):  # DDIM keeps no count of its steps
            self._sampler.set_begin_index(index)

    def _one_step(self, latents: Tensor, step: Tensor) -> Tensor:
        scale = self._config.guidance
        inputs = self._sampler.scale_model_input(latents, step)
        if scale != 1:
            inputs = torch.cat([inputs, inputs])
        output = self._denoise(inputs, step.expand(len(inputs)).to(self._device))
        if scale != 1:
            free, given = output.chunk(2)
            output = free + scale * (given - free)
        stepped: Tensor = self._sampler.step(output, step, latents, return_dict=False)[0]
        return stepped
