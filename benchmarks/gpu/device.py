"""The device that a benchmark runs on, and how many operations passes of a model need on it.

Counted are the products of linear layers, convolutions, attention and matmul: two operations per
multiplication and addition. What is not counted: norms, activations, biases, softmax, rotation,
the optimiser (together far below 1 % of a large model's work), and work that is done twice to save
memory (gradient checkpointing, the scores that fused attention computes again going backward): it
is time, but no progress. PaLM (arXiv 2204.02311, appendix B) calls the resulting share of a
device's peak "model FLOPs utilisation", MFU.
"""

from __future__ import annotations

import gc
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.backbone import Backbone, Prompts, References


@dataclass(frozen=True)
class Flops:
    """Operations of a forward pass and of the backward pass that its graph asks for."""

    forward: int = 0
    backward: int = 0

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.forward + other.forward, self.backward + other.backward)


def product_flops(rows: int, inner: int, columns: int, grads: Sequence[bool]) -> Flops:
    """(rows, inner) times (inner, columns). Backward costs as much again for each factor that needs
    a gradient: a frozen weight costs one product (towards its input), a trained one two."""
    once = 2 * rows * inner * columns
    return Flops(once, once * sum(grads))


def attention_flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], grads: Sequence[bool]
) -> Flops:
    """Shapes (..., L, d) of queries, keys and values, `grads`: which of them need a gradient.

    Forward: scores and their mix of values. Backward: one product for dV; one for the scores'
    gradient where queries or keys need theirs, and one for each of these."""
    queries, width = query[-2:]
    keys, out_width = value[-2:]
    if key[-2] != keys or math.prod(query[:-2]) != math.prod(key[:-2]):
        raise ValueError(f"attention of {tuple(query)}, {tuple(key)}, {tuple(value)}")
    once = 2 * math.prod(query[:-1]) * keys
    need_query, need_key, need_value = grads
    widths = (need_query + need_key) * width + (need_query or need_key) * out_width
    return Flops(once * (width + out_width), once * (widths + need_value * out_width))


def _linear(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Flops:
    columns, inner = weight.shape
    return product_flops(out.numel() // columns, inner, columns, _needed(x, weight))


def _conv(out: Tensor, x: Tensor, weight: Tensor, *_: Any, **__: Any) -> Flops:
    columns = weight.shape[0]
    inner = math.prod(weight.shape[1:])  # already divided by the groups
    return product_flops(out.numel() // columns, inner, columns, _needed(x, weight))


def _matmul(out: Tensor, a: Tensor, b: Tensor) -> Flops:
    columns = b.shape[-1] if b.dim() > 1 else 1
    return product_flops(out.numel() // columns, a.shape[-1], columns, _needed(a, b))


def _attention(out: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Flops:
    return attention_flops(query.shape, key.shape, value.shape, _needed(query, key, value))


def _needed(*factors: Tensor) -> list[bool]:
    return [torch.is_grad_enabled() and factor.requires_grad for factor in factors]


_RULES: dict[Any, Callable[..., Flops]] = {
    F.linear: _linear,
    torch.conv2d: _conv,
    torch.matmul: _matmul,
    torch.bmm: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
    Tensor.bmm: _matmul,
    F.scaled_dot_product_attention: _attention,
}
_UNKNOWN = {
    torch.einsum,
    torch.addmm,
    torch.baddbmm,
    Tensor.baddbmm,
    torch.conv1d,
    torch.conv3d,
    torch.conv_transpose2d,
    F.multi_head_attention_forward,
}
"""Products that no rule is written for: better an error than a figure that is too small."""


class FlopCounter(TorchFunctionMode):  # type: ignore[misc, unused-ignore]
    """Adds up, while it is entered, what is computed by calls above autograd: it knows which
    factors will need gradients. Works on the meta device, where nothing is computed at all."""

    def __init__(self) -> None:
        super().__init__()
        self.total = Flops()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _UNKNOWN:
            raise NotImplementedError(f"benchmarks/gpu/device.py has no rule for {func}; write one")
        out = func(*args, **(kwargs or {}))
        if rule := _RULES.get(func):
            self.total += rule(out, *args, **(kwargs or {}))
        return out


def predict_flops(
    backbone: Backbone, prompts: Prompts, references: References, latents_BNC: Tensor
) -> Flops:
    """Of one pass of the backbone over these inputs, with the adapter if there is one."""
    sigma_B = torch.full(
        (len(latents_BNC),), 0.5, device=latents_BNC.device, dtype=latents_BNC.dtype
    )
    with FlopCounter() as counter:
        backbone.predict(latents_BNC, sigma_B, prompts, references)
    return counter.total


def step_flops(objective: str, pairs: int, policy: Flops, reference: Flops) -> int:
    """Of a training step; `policy` and `reference` are of one image. sft sees winners only, the
    preference objectives winners and losers, through both policies. Focus maps add no pass."""
    if objective == "sft":
        return pairs * (policy.forward + policy.backward)
    return 2 * pairs * (policy.forward + policy.backward + reference.forward)


PEAKS = {
    "GB200": 2500.0,
    "B200": 2250.0,
    "H200": 989.4,
    "H100 NVL": 835.5,
    "H100 PCIe": 756.5,
    "H100": 989.4,
    "H20": 148.0,
    "GH200": 989.4,
    "A100": 311.9,
    "A800": 311.9,
    "L40S": 362.1,
    "RTX 6000 Ada": 364.2,
    "RTX A6000": 154.8,
    "RTX 4090": 165.2,
    "A40": 149.7,
    "A30": 165.0,
    "L4": 121.0,
    "A10": 125.0,
}
"""Dense bfloat16 tensor-core peaks in TFLOP/s, without sparsity, from NVIDIA's data sheets."""

_LESSER = {"mig", "laptop", "mobile", "max"}


def peak_flops(device_name: str) -> float | None:
    """FLOP/s of a device by the name that its driver tells; None where the table has none, and for
    a part of a device or a mobile one of the same name."""
    words = device_name.lower().replace("-", " ").split()
    if _LESSER & set(words):
        return None
    # The most words first: "H100 PCIe" before "H100".
    for name in sorted(PEAKS, key=lambda name: -len(name.split())):
        if set(name.lower().split()) <= set(words):
            return PEAKS[name] * 1e12
    return None


CONTEXT_GIB = 1.0
"""What CUDA itself takes of a card; a limit of 48 GiB leaves the allocator this much less."""
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""Messages of errors that are no `torch.OutOfMemoryError` and mean the same."""

Result = TypeVar("Result")
Step = Callable[[], None]


@dataclass
class Trace:
    """Where a step is, and how often the transformers were run."""

    place: str = ""
    passes: int = 0
    handles: list[Any] = field(default_factory=list)

    def watch(self, transformer: torch.nn.Module) -> None:
        """Follows a transformer's passes until `stop`. Recomputation by gradient checkpointing
        runs blocks, not the transformer, and counts as part of the backward pass."""
        self.handles.append(transformer.register_forward_pre_hook(lambda *_: self._enter()))
        self.handles.append(transformer.register_forward_hook(lambda *_: self._leave()))

    def _enter(self) -> None:
        self.passes += 1
        self.place = f"in forward pass {self.passes}"

    def _leave(self) -> None:
        self.place = f"after forward pass {self.passes}, in the loss or going backward"

    def stop(self) -> None:
        """Takes the hooks away."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()


def require_device(device: str) -> None:
    """UserError unless torch can compute there."""
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise UserError(f"device: {device!r} is no device; expected cuda, cuda:1, ...") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--gpu needs a CUDA device, and torch sees none here. Run it on a machine with "
            "an NVIDIA GPU, its driver and a CUDA build of torch "
            f"(this is torch {torch.__version__})"
        )
    if kind == "cuda" and (torch.device(device).index or 0) >= torch.cuda.device_count():
        raise UserError(f"device: no {device}; torch sees {torch.cuda.device_count()} device(s)")
    if kind not in ("cuda", "cpu"):
        raise UserError(f"device: {device}; expected cuda, cuda:1, ..., or cpu to try it out")


def device_facts(device: str) -> dict[str, Any]:
    """Name and memory of the device, versions that speed depends on."""
    facts: dict[str, Any] = {"device": "cpu", "torch": torch.__version__}
    if torch.device(device).type == "cuda":
        about = torch.cuda.get_device_properties(device)
        facts |= {
            "device": about.name,
            "device_gib": round(about.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
        }
    return facts


@contextmanager
def limited(limit_gib: float | None, device: str) -> Iterator[None]:
    """Inside, the allocator gives no more than a card of `limit_gib` would; None: all there is."""
    if limit_gib is None:
        yield
        return
    total = torch.cuda.get_device_properties(device).total_memory
    share = (limit_gib - CONTEXT_GIB) * 2**30 / total
    index = torch.device(device).index or 0
    torch.cuda.set_per_process_memory_fraction(min(share, 1.0), index)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, index)


def attempt(run: Callable[[], Result], trace: Trace) -> tuple[Result | None, str | None]:
    """The result, or why there is none: out of memory, and where. Other errors pass."""
    try:
        return run(), None
    except torch.OutOfMemoryError as error:
        text = str(error)
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _OUT_OF_MEMORY):
            raise
        text = str(error)
    # Only here are the failed step's tensors free: the traceback held them.
    wanted = re.search(r"(?:[Tt]ried|tried) to allocate ([\d.]+ \w+)", text)
    return None, f"out of memory {trace.place}" + (f" ({wanted[1]} more)" if wanted else "")


def free(device: str, *, reset_peak: bool = False) -> None:
    """Gives back what no one holds, so that the next measurement starts from the model alone."""
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
        if reset_peak:
            torch.cuda.reset_peak_memory_stats(device)


def peaks(device: str) -> tuple[int | None, int | None]:
    """Most bytes in tensors, and taken by the allocator; a CPU's are not measured."""
    if torch.device(device).type != "cuda":
        return None, None
    return torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)


def synchronised(step: Step, device: str) -> None:
    step()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def timed(step: Step, device: str) -> float:
    """Seconds until the device is done."""
    synchronised(lambda: None, device)
    started = time.perf_counter()
    synchronised(step, device)
    return time.perf_counter() - started
