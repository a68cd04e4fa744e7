"""Of the device that a benchmark runs on: what it is, its clock and memory, and what to make of
running out of it."""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from focusdpo.data_schemas.errors import UserError

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
            "bench --gpu needs a CUDA device, and torch sees none here. Run it on a machine with "
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
