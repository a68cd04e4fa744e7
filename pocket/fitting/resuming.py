"""Averaged weights and exact checkpoints of a training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from focusdpo.data_schemas.errors import UserError


def step_generator(seed: int, step: int) -> torch.Generator:
    """The random numbers of one training step: a function of seed and step, so that a resumed run
    draws what an unbroken one would."""
    digest = hashlib.blake2b(f"{seed}/{step}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


class Ema:
    """Exponential moving average of a model's state; the decay grows with the step, so that early
    weights are forgotten soon. What is not a floating-point number is copied."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """After `step` steps."""
        decay = min(self.decay, (step + 1) / (step + 10))
        values = model.state_dict()
        floats = [k for k, v in self.shadow.items() if v.is_floating_point()]
        torch._foreach_lerp_(
            [self.shadow[k] for k in floats], [values[k] for k in floats], 1 - decay
        )
        for key in self.shadow.keys() - set(floats):
            self.shadow[key].copy_(values[key])


def save_checkpoint(
    path: Path,
    model: nn.Module,
    ema: Ema,
    optimizer: torch.optim.Optimizer,
    meta: Mapping[str, Any],
) -> None:
    """Everything that an exact resume needs, in one safetensors file, replaced at once; `meta` is
    JSON-able."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in ema.shadow.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in state.items()}
    # Clones: state_dict may hold tied tensors, which safetensors refuses.
    copies = {k: v.detach().clone().contiguous() for k, v in tensors.items()}
    temporary = path.with_suffix(".partial")
    save_file(copies, temporary, {"meta": json.dumps(meta)})
    temporary.replace(path)


def read_meta(path: Path) -> dict[str, Any]:
    """The `meta` of a checkpoint. Raises UserError for a damaged file."""
    try:
        with safe_open(path, "pt") as file:
            meta: dict[str, Any] = json.loads(file.metadata()["meta"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a checkpoint ({error}); delete it to start anew") from error
    return meta


def load_checkpoint(
    path: Path, model: nn.Module, ema: Ema, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Takes up where `save_checkpoint` left; returns its `meta`. Errors as in `read_meta`."""
    meta = read_meta(path)
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimizer": {}}
    for key, value in load_file(path).items():
        kind, _, name = key.partition(".")
        groups[kind][name] = value
    model.load_state_dict(groups["model"])
    ema.shadow = groups["ema"]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in groups["optimizer"].items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return meta
