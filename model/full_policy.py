"""A policy that trains whole matrices of the base instead of a LoRA; the start weights stay beside
them and are the reference policy.

A backbone asks for it by naming the modules on its transformer (`choose`); `model.adapter` then
adds, removes and switches these layers as it does LoRA layers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from focusdpo.data_schemas.errors import UserError

_CHOSEN = "_full_policy_modules"


class TrainedCopy(nn.Module):
    """A linear layer with a trainable copy of itself.

    The copy is float32 and is rounded to the input's type for each product, so that an untrained
    one gives what the base gives, bit for bit. `_disable_adapters` is peft's name for its like."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer.requires_grad_(False)
        self.policy = nn.Linear(
            base_layer.in_features,
            base_layer.out_features,
            bias=base_layer.bias is not None,
            device=base_layer.weight.device,
            dtype=torch.float32,
        )
        self._disable_adapters = False
        self._scale = 1.0
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """The start weights again."""
        for name, parameter in self.policy.named_parameters():
            parameter.copy_(self.base_layer.get_parameter(name))

    def set_scale(self, _name: str, scale: float) -> None:
        """Weights between the start (0) and what was trained (1), or beyond."""
        self._scale = scale

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if self._disable_adapters:
            result: Tensor = self.base_layer(hidden)
            return result
        weight, bias = (self._scaled(name) for name in ("weight", "bias"))
        return F.linear(hidden, weight.to(hidden.dtype), bias if bias is None else bias.to(hidden))

    def _scaled(self, name: str) -> Any:
        trained, start = getattr(self.policy, name), getattr(self.base_layer, name)
        if trained is None or self._scale == 1:
            return trained
        return torch.lerp(start.to(trained.dtype), trained, self._scale)


def choose(transformer: nn.Module, names: tuple[str, ...]) -> None:
    """From now on a policy on this transformer is a trained copy of these modules (suffixes)."""
    setattr(transformer, _CHOSEN, names)


def chosen(transformer: nn.Module) -> tuple[str, ...]:
    """The modules that a policy copies; none: it is a LoRA."""
    names: tuple[str, ...] = getattr(transformer, _CHOSEN, ())
    return names


def add_copies(transformer: nn.Module, targets: tuple[str, ...]) -> None:
    """Puts trainable copies in place. UserError for other targets than the chosen ones: rank and
    targets of a LoRA mean nothing here."""
    names = chosen(transformer)
    if targets and set(targets) != set(names):
        raise UserError(
            f"lora.targets {list(targets)}: this backbone trains {' and '.join(names)} themselves "
            "(models.backbone.policy is adapter_kv); leave lora.targets empty, or set policy: lora"
        )
    for name, module in list(transformer.named_modules()):
        if name.endswith(tuple(f".{suffix}" for suffix in names)):
            transformer.set_submodule(name, TrainedCopy(module))  # type: ignore[arg-type]


def remove_copies(transformer: nn.Module) -> None:
    """Takes the copies away and leaves the base as it was."""
    for name, module in list(transformer.named_modules()):
        if isinstance(module, TrainedCopy):
            transformer.set_submodule(name, module.base_layer)
