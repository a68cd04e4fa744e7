"""A policy that differs from its base, and one step with it."""

from __future__ import annotations

from typing import Any

import torch

from focusdpo.model.adapter import add_policy, policy_parameters
from focusdpo.model.backbone import Backbone
from focusdpo.model.noise import draw_noise
from focusdpo.model.step import StepOutput, autocast, pair_step
from focusdpo.model.training.batches import PairBatch
from focusdpo.model.training.config import LoraConfig, TrainConfig


def give_policy(
    backbone: Backbone, lora: LoraConfig | None = None, *, seed: int = 0, by: float = 0.2
) -> None:
    """A LoRA that changes something, by `by` times normal noise; everywhere the same."""
    lora = lora or LoraConfig(rank=4, targets=("to_q", "to_v"))
    add_policy(backbone.transformer, lora, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy_parameters(backbone.transformer).values():
        parameter.data += by * torch.randn(parameter.shape, generator=generator)


def step(backbone: Backbone, batch: PairBatch, config: TrainConfig) -> StepOutput:
    """A run's first step on these pairs."""
    slots = range(len(batch))
    noise, sigma = draw_noise(batch.win_BNC, slots, seed=0, step=0, config=config.noise)
    cast = autocast(noise.device, config.mixed_precision)
    return pair_step(backbone, batch, noise, sigma, config, cast)


def gradients(backbone: Backbone, output: StepOutput) -> torch.Tensor:
    """Of all parameters of the policy, end to end."""
    parameters: list[Any] = list(policy_parameters(backbone.transformer).values())
    return torch.cat([g.flatten() for g in torch.autograd.grad(output.loss.value, parameters)])
