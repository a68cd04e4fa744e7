"""Optimisers by name, from packages that keep them well, and their state as tensors and numbers."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.training.config import TrainConfig

_PACKAGES = {
    "adamw8bit": ("bitsandbytes", "'focusdpo[quantise]'"),
    "prodigy": ("prodigyopt", "prodigyopt"),
}
"""Optimiser -> module that has it, and what to install."""


def require_optimiser(name: str) -> None:
    """UserError for an optimiser that is not installed."""
    module, install = _PACKAGES.get(name, ("torch", ""))
    if importlib.util.find_spec(module) is None:
        raise UserError(
            f"train.optimiser: {name} needs {module}: pip install {install}, or choose adamw"
        )
    if name == "muon" and not hasattr(torch.optim, "Muon"):
        raise UserError("train.optimiser: muon needs torch 2.9 or newer: pip install -U torch")


def build_optimiser(config: TrainConfig, parameters: Mapping[str, nn.Parameter]) -> Any:
    """The optimiser that `config` names, over all parameters. UserError where it is not installed
    or does not take them."""
    require_optimiser(config.optimiser)
    values: list[Any] = list(parameters.values())
    common: dict[str, Any] = {"weight_decay": config.weight_decay}
    if config.optimiser == "adamw":
        fused = values[0].device.type in ("cpu", "cuda")
        return torch.optim.AdamW(values, lr=config.lr, fused=fused, **common)
    if config.optimiser == "adamw8bit":
        return importlib.import_module("bitsandbytes").optim.AdamW8bit(
            values, lr=config.lr, **common
        )
    if config.optimiser == "adafactor":
        from transformers.optimization import Adafactor

        rate: dict[str, Any] = {"relative_step": False, "scale_parameter": False}
        return Adafactor(values, lr=config.lr, **rate, **common)
    if config.optimiser == "prodigy":
        prodigy = importlib.import_module("prodigyopt").Prodigy
        with contextlib.redirect_stdout(io.StringIO()):  # it greets
            return prodigy(
                values, lr=config.lr, use_bias_correction=True, safeguard_warmup=True, **common
            )
    flat = [name for name, parameter in parameters.items() if parameter.ndim != 2]
    if flat:
        raise UserError(
            f"train.optimiser: muon takes matrices alone, and {flat[0]} is none; choose adamw"
        )
    # As large a step as AdamW's, so that its learning rates hold.
    return torch.optim.Muon(values, lr=config.lr, adjust_lr_fn="match_rms_adamw", **common)


def state_tensors(optimiser: Any, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """`key/parameter` -> tensor of all that it remembers."""
    return {
        f"{key}/{name}": value
        for name, parameter in parameters.items()
        for key, value in optimiser.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def state_numbers(optimiser: Any, parameters: Mapping[str, nn.Parameter]) -> dict[str, Any]:
    """What it remembers beside tensors, for JSON: numbers of each parameter, and those of the whole
    that differ from the start's."""
    per_parameter = {
        name: {key: value for key, value in state.items() if not isinstance(value, Tensor)}
        for name, parameter in parameters.items()
        if (state := optimiser.state.get(parameter))
    }
    (group,) = optimiser.param_groups
    whole = {
        key: value
        for key, value in group.items()
        if key not in ("params", "lr")
        and isinstance(value, int | float)
        and math.isfinite(value)
        and value != optimiser.defaults.get(key)
    }
    numbers = {
        "own": {name: values for name, values in per_parameter.items() if values},
        "whole": whole,
    }
    return {name: part for name, part in numbers.items() if part}


def restore_state(
    optimiser: Any,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
    numbers: Mapping[str, Any],
) -> None:
    """Becomes what `state_tensors` and `state_numbers` told of. KeyError for unknown parameters."""
    states: dict[str, dict[str, Any]] = {
        name: dict(values) for name, values in numbers.get("own", {}).items()
    }
    for place, tensor in tensors.items():
        key, _, name = place.partition("/")
        states.setdefault(name, {})[key] = tensor.to(parameters[name].device)
    for name, state in states.items():
        optimiser.state[parameters[name]] = state
    (group,) = optimiser.param_groups
    group.update(numbers.get("whole", {}))
