"""The memory of a full-size model's training step, counted without a GPU and without its weights.

The step is the real one: forward passes, loss and backward pass of `model.training.steps`, on
torch's fake tensors, which have sizes and no values. What a GPU does otherwise is put in place:
attention keeps no scores (fused), and norms are computed in float32 under autocast.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from benchmarks.gpu import gpu_config
from benchmarks.gpu.full_size_models import random_backbone, random_batch
from benchmarks.gpu.gpu_config import GpuBenchConfig, ModelName
from focusdpo.model.adapter import add_policy
from focusdpo.model.step import autocast
from focusdpo.model.training.batches import PairBatch
from focusdpo.model.training.config import AdapterKind, LoraConfig, TrainConfig
from focusdpo.model.training.steps import backward_step

RANK = 32


class LiveBytes(TorchDispatchMode):
    """Adds up the storages that are alive, from now on, and remembers the most."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in known}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, Tensor):
                self._see(one)
        return made

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._sizes:
            self._sizes[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, storage._cdata)

    def _gone(self, place: int) -> None:
        self.now -= self._sizes.pop(place)


class Fused(torch.autograd.Function):
    """What fused attention keeps: no scores, but their sums."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        query, key, value, *_rest = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts in place what autocast and attention do there, and what values would say."""

    def attend(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
        three = (query, key, value)
        if torch.is_autocast_enabled("cpu"):
            three = tuple(one.to(torch.bfloat16) for one in three)  # type: ignore[assignment]
        return Fused.apply(*three)  # type: ignore[no-untyped-call]

    def in_float32(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def normed(*args: Any, **kwargs: Any) -> Tensor:
            if torch.is_autocast_enabled("cpu"):
                args, kwargs = tree_map_only(Tensor, Tensor.float, (args, kwargs))
            return norm(*args, **kwargs)

        return normed

    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    monkeypatch.setattr(F, "layer_norm", in_float32(F.layer_norm))
    monkeypatch.setattr(F, "group_norm", in_float32(F.group_norm))
    monkeypatch.setattr(torch, "equal", lambda one, other: one.shape == other.shape)


def counted_step(
    monkeypatch: pytest.MonkeyPatch,
    model: ModelName,
    *,
    blocks: tuple[int, int] | None = None,
    kind: AdapterKind = "lora",
    image_size: int = 512,
    **train: Any,
) -> float:
    """The most bytes that a step of one pair with two references takes beside weights, adapter and
    its gradients; `blocks`: of a transformer with so many (double, single) blocks."""
    as_on_a_gpu(monkeypatch)
    if blocks is not None:
        fewer = dict(zip(("num_layers", "num_single_layers"), blocks, strict=True))
        monkeypatch.setitem(gpu_config.FULL, model, gpu_config.FULL[model] | fewer)
    config = GpuBenchConfig(device="cpu", image_size=image_size)
    backbone: Any = random_backbone(model, config, "bf16", "meta")
    lora = LoraConfig(kind=kind, rank=RANK, alpha=RANK, targets=tuple(backbone.lora_targets))
    settings = TrainConfig(lora=lora, mixed_precision="bf16", **train)
    with torch.device("meta"):
        add_policy(backbone.transformer, lora, seed=0)
    if settings.gradient_checkpointing:
        backbone.transformer.enable_gradient_checkpointing()
    batch = _batch_of_values(backbone, config)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _give_sizes(backbone.transformer)
        noise_BNC, sigma_B = torch.empty_like(batch.win_BNC), torch.empty(1)
        cast = autocast(torch.device("cpu"), "bf16")
        with LiveBytes(_weights_and_gradients(backbone.transformer)) as live:
            backward_step(backbone, batch, noise_BNC, sigma_B, settings, cast)
    return float(live.most)


def _batch_of_values(backbone: Any, config: GpuBenchConfig) -> PairBatch:
    """A pair of numbers on the CPU, for masks of references are looked at."""
    text = getattr(backbone, "_text", None)
    prompts = backbone._encode_prompts if text is None else text._prompts
    prompts.device = "cpu"
    whole, backbone.transformer = backbone.transformer, nn.Linear(1, 1)
    batch = random_batch(backbone, config, 1)
    backbone.transformer = whole
    return batch


def _weights_and_gradients(model: nn.Module) -> list[Tensor]:
    """What is there from the second pass of a run on."""
    weights = list(model.parameters())
    for weight in weights:
        weight.grad = torch.empty_like(weight) if weight.requires_grad else None
    return [*weights, *(weight.grad for weight in weights if weight.grad is not None)]


def _give_sizes(model: nn.Module) -> None:
    """Fake tensors in place of those on the meta device."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                value = torch.empty(parameter.shape, dtype=parameter.dtype)
                module._parameters[name] = nn.Parameter(value, parameter.requires_grad)
