"""What a training run carries from step to step, and its way into a checkpoint and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.adapter import add_policy, policy_parameters
from focusdpo.model.backbone import Backbone
from focusdpo.model.training.checkpoint import Checkpoint
from focusdpo.model.training.config import LoraConfig, TrainConfig
from focusdpo.model.training.monitor import Guard

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def resolved_lora(backbone: Backbone, config: LoraConfig) -> LoraConfig:
    """The config with the modules that are really covered."""
    return config.model_copy(update={"targets": config.targets or tuple(backbone.lora_targets)})


class RunState:
    """LoRA weights, AdamW's moments, averaged weights, the guard and the number of steps taken."""

    def __init__(self, backbone: Backbone, config: TrainConfig) -> None:
        self.step = 0
        self.guard = Guard(config.guards)
        add_policy(backbone.transformer, resolved_lora(backbone, config.lora), seed=config.seed)
        self.parameters = policy_parameters(backbone.transformer)
        self.optimizer = torch.optim.AdamW(
            list(self.parameters.values()),
            lr=config.lr,
            weight_decay=config.weight_decay,
            fused=next(iter(self.parameters.values())).device.type in ("cpu", "cuda"),
        )
        self._decay = config.ema
        self._config = config
        self._average = {n: p.detach().clone() for n, p in self.parameters.items()}

    def update(self, rate: float) -> None:
        """One optimiser step on the gradients that are there."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        if self._decay:
            for name, average in self._average.items():
                average.lerp_(self.parameters[name].detach(), 1 - self._decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the weights are what `use_average` would leave."""
        before = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.use_average()
        try:
            yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.data.copy_(before[name])

    def use_average(self) -> None:
        """Puts the averaged weights in place, where the config asks for them: training is over."""
        if self._decay:
            for name, parameter in self.parameters.items():
                parameter.data.copy_(self._average[name])

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is a tensor, under flat names."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            tensors[f"lora/{name}"] = parameter
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"adam.{key}/{name}"] = value
            if self._decay:
                tensors[f"ema/{name}"] = self._average[name]
        return tensors

    def restore(self, saved: Checkpoint) -> None:
        """Becomes the state that was saved. UserError if the checkpoint is of another shape."""
        try:
            self.guard = Guard(self._config.guards, saved.meta["guard"])
            for name, parameter in self.parameters.items():
                parameter.data.copy_(saved.tensors[f"lora/{name}"])
                if self._decay:
                    self._average[name].copy_(saved.tensors[f"ema/{name}"])
                self.optimizer.state[parameter] = {
                    key: saved.tensors[f"adam.{key}/{name}"].to(parameter.device)
                    for key in _MOMENTS
                    if f"adam.{key}/{name}" in saved.tensors
                }
        except (KeyError, RuntimeError, TypeError) as error:
            raise UserError(
                f"checkpoint {saved.path} does not fit this run ({error}). Remove the folder, or "
                "train into a new one."
            ) from error
        self.step = saved.step


def require_same(saved: dict[str, Any], now: dict[str, Any], where: Path) -> None:
    """UserError if a folder holds a run of other settings, another base or other pairs."""
    words = {"config": "settings", "base": "base model", "pairs": "training pairs"}
    other = [word for key, word in words.items() if saved.get(key) != now[key]]
    if other:
        raise UserError(
            f"{where} holds a run with other {' and '.join(other)}. Train into a new folder, or "
            "remove this one to start over."
        )


def require_not_past(taken: int, wanted: int, where: Path) -> None:
    """UserError if a folder's run is longer than what is asked for."""
    if taken > wanted:
        raise UserError(
            f"{where} holds a run of {taken} steps, train.steps is {wanted}. Train into a new "
            "folder, or ask for at least as many steps."
        )
