"""`python -m benchmarks --gpu` in small: both architectures with few weights, on the CPU."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.gpu_config import GpuBenchConfig

SMALL: dict[str, Any] = {
    "device": "cpu",
    "scale": "tiny",
    "image_size": 64,
    "reference_size": 32,
    "sdxl_reference_size": 64,
    "text_tokens": 8,
    "rank": 4,
    "pairs": (1,),
    "repeats": 2,
    "warmup": 1,
}


def tiny_bench(**changes: Any) -> GpuBenchConfig:
    """Settings that take seconds."""
    return GpuBenchConfig(**(SMALL | changes))
