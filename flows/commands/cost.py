"""What a command will compute, and how long that takes here: from steps that a run has taken, else
from how fast this machine multiplies matrices."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from focusdpo.data_schemas.errors import counted
from focusdpo.flows.checkpoint_suite import device_of
from focusdpo.flows.config import EvaluateRun, TrainRun
from focusdpo.flows.fit.demand import evaluate_demand, footprint, train_demand
from focusdpo.flows.fit.supply import this_machine, told
from focusdpo.store.addresses import is_remote

if TYPE_CHECKING:
    from focusdpo.flows.build.run import Build

BACKWARD = 1.12
"""Of a forward pass's operations: towards inputs alone, and to a LoRA's weights; counted for
FLUX.1-dev (docs/gpu_bench.md)."""
SHARE = (0.35, 0.7)
"""Of the speed of bare products that a model's pass reaches: attention, norms and memory take the
rest."""


@dataclass(frozen=True)
class Cost:
    """What is left to compute; without checkpoints' sizes or a measurement some of it is None."""

    what: str
    passes: int
    """Forward passes of one image; backward passes are counted in `flops` alone."""
    flops: float | None
    hours: tuple[float, float] | None
    """At least and at most."""
    by: str
    """What the hours are from."""
    memory: str

    def lines(self) -> Iterator[str]:
        """For people."""
        yield self.what
        operations = "" if self.flops is None else f", {self.flops / 1e12:,.0f} TFLOP"
        yield f"{self.passes:,} forward passes of an image{operations}"
        if self.hours is None:
            yield f"hours: not known ({self.by})"
        else:
            low, high = self.hours
            span = f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}"
            yield f"{span} hours, {self.by}"
        if self.memory:
            yield f"memory: {self.memory}"


def train_cost(run: TrainRun) -> Cost:
    """Of the steps that are left. Encoders are not counted: pictures and prompts are encoded
    once."""
    config, seconds = run.train, _step_seconds(run.out)
    left = max(0, config.steps - len(seconds))
    objective = config.objective
    images = config.batch_pairs * (2 if objective.definition.losers else 1)
    forward = 1 + objective.is_preference + config.gradient_checkpointing
    extra = 0.5 if config.memory == "sequential" and objective.definition.losers else 0.0
    passes = round(left * images * (forward + extra))
    flops, memory = None, ""
    if not isinstance(run.family, str) and (usage := footprint(run.family)) is not None:
        flops = usage.flops * (passes + left * images * BACKWARD)
        machine = this_machine(run.family.device)
        memory = told(train_demand(run.family, config), machine)
    pairs = counted(config.batch_pairs, "pair")
    what = f"{left} of {counted(config.steps, 'step')} of {pairs} ({objective.name})"
    if seconds:
        hours = left * median(seconds) / 3600
        by = f"by the median of {counted(len(seconds), 'step')} of this run"
        return Cost(what, passes, flops, (hours, hours), by, memory)
    return Cost(what, passes, flops, *_hours(run.family, flops), memory)


def evaluate_cost(run: EvaluateRun) -> Cost:
    """Of painting with base and adapter; judging takes little beside it."""
    from focusdpo.evaluation.protocols import plan_of
    from focusdpo.flows.evaluate.run import request_of

    plan = plan_of(request_of(run))
    what, pictures = plan.amount, plan.num_pictures
    usage = None if isinstance(run.family, str) else footprint(run.family)
    if usage is None or isinstance(run.family, str):
        return Cost(what, pictures, None, None, "the embedded generator: seconds", "")
    flops = usage.flops * usage.passes * pictures
    memory = told(evaluate_demand(run.family), this_machine(run.family.device))
    return Cost(what, usage.passes * pictures, flops, *_hours(run.family, flops), memory)


def build_lines(job: Build, *, known: bool) -> Iterator[str]:
    """What painting a build's missing candidates takes; its hours where no earlier build tells
    (`known`). Repaints and scoring come on top."""
    run = job.run
    if isinstance(run.family, str):
        return
    missing = job.builder.plan.missing_partitions("generate")
    scenes = sum(len(job.builder.partitions[name]) for name in missing)
    pictures = scenes * run.generate.candidates
    usage = footprint(run.family)
    if not pictures or usage is None:
        return
    flops = usage.flops * usage.passes * pictures
    yield (
        f"{pictures:,} candidates to paint: {usage.passes * pictures:,} forward passes, "
        f"{flops / 1e12:,.0f} TFLOP"
    )
    if not known:
        hours, by = _hours(run.family, flops)
        span = "" if hours is None else f"{hours[0]:.2f} to {hours[1]:.2f} hours, {by}"
        yield f"painting takes {span}; repaints and scoring come on top"


def _step_seconds(out: str) -> list[float]:
    """Of the steps that a run in `out` has taken."""
    import pyarrow.parquet as pq

    path = Path(out) / "steps.parquet"
    if is_remote(out) or not path.is_file():
        return []
    return [
        float(seconds)
        for seconds in pq.read_table(path, columns=["seconds"])["seconds"].to_pylist()
    ]


def _hours(family: Any, flops: float | None) -> tuple[tuple[float, float] | None, str]:
    if flops is None or isinstance(family, str):
        return None, "no step was taken yet"
    speed = products_per_second(device_of(family.device))
    low, high = (flops / (speed * share) / 3600 for share in reversed(SHARE))
    by = (
        f"at {SHARE[0]:.0%} to {SHARE[1]:.0%} of the {speed / 1e12:.2f} TFLOP/s that bare products "
        "reach here; a run that has begun tells exactly"
    )
    return (low, high), by


def products_per_second(device: str, seconds: float = 1.0) -> float:
    """Operations per second of products of matrices as large as a transformer's, in bfloat16 on a
    GPU, in float32 on a CPU."""
    import torch

    on_cpu = device.startswith("cpu")
    rows, inner, columns = (256, 1024, 1024) if on_cpu else (4096, 3072, 12288)
    kind = torch.float32 if on_cpu else torch.bfloat16
    left = torch.ones(rows, inner, dtype=kind, device=device)
    right = torch.ones(inner, columns, dtype=kind, device=device)

    def wait() -> None:
        if not on_cpu:
            torch.cuda.synchronize(device)

    for _ in range(3):
        left @ right
    wait()
    count, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        for _ in range(8):
            left @ right
        wait()
        count += 8
    return 2.0 * rows * inner * columns * count / passed
