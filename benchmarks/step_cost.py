"""What a FocusDPO step costs beside a plain DPO step, on this machine: time and memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from focusdpo.model.adapter import remove_policy
from focusdpo.model.backbone import Backbone
from focusdpo.model.noise import draw_noise
from focusdpo.model.step import autocast
from focusdpo.model.training.batches import PairBatch
from focusdpo.model.training.config import ObjectiveConfig, TrainConfig
from focusdpo.model.training.monitor import observe
from focusdpo.model.training.run_state import RunState
from focusdpo.model.training.steps import backward_step


@dataclass(frozen=True)
class StepCost:
    """Seconds per step of both objectives, medians over interleaved repeats."""

    focus_seconds: float
    dpo_seconds: float
    ratio: float
    """Median over neighbouring steps of focus / dpo; on a CPU of processor time, which other load
    on the machine disturbs less than the clock."""
    pairs: int
    repeats: int


def step_cost(
    backbone: Backbone, batch: PairBatch, config: TrainConfig | None = None, *, repeats: int = 20
) -> StepCost:
    """Times whole steps (forward, backward, optimiser, diagnostics), in the order A B B A."""
    config = config or TrainConfig()
    remove_policy(backbone.transformer)
    state = RunState(backbone, config)
    steps = {name: _step(backbone, batch, config, state, name) for name in ("focus_dpo", "dpo")}
    on_cpu = batch.win_BNC.device.type == "cpu"
    walls: dict[str, list[float]] = {"focus_dpo": [], "dpo": []}
    works: dict[str, list[float]] = {"focus_dpo": [], "dpo": []}
    try:
        for name in ("focus_dpo", "dpo") * 2:  # warm-up: allocations, kernel choice
            steps[name]()
        for i in range(repeats):
            order = ("focus_dpo", "dpo") if i % 2 == 0 else ("dpo", "focus_dpo")
            for name in order:
                wall, processor = _timed(steps[name])
                walls[name].append(wall)
                works[name].append(processor if on_cpu else wall)
    finally:
        remove_policy(backbone.transformer)
    focus, dpo = (statistics.median(walls[name]) for name in ("focus_dpo", "dpo"))
    ratio = statistics.median(f / d for f, d in zip(*works.values(), strict=True))
    return StepCost(focus, dpo, ratio, len(batch), repeats)


@dataclass(frozen=True)
class StepMemory:
    """Resident memory of steps of one objective, in a process that has taken no step before."""

    before_bytes: int
    """With model, pairs and a fresh adapter in place."""
    peak_bytes: int

    @property
    def growth_bytes(self) -> int:
        """What the steps need: activations, gradients, the optimiser's moments."""
        return self.peak_bytes - self.before_bytes


def step_memory(
    backbone: Backbone, batch: PairBatch, config: TrainConfig, objective: str, *, steps: int = 3
) -> StepMemory | None:
    """Takes a few whole steps; None where the system does not tell of memory as Linux does.

    For a process of its own: memory that was freed before the first step is used again unseen."""
    remove_policy(backbone.transformer)
    run = _step(backbone, batch, config, RunState(backbone, config), objective)
    try:
        _PROC.joinpath("clear_refs").write_text("5")  # the peak starts anew
        before = _resident("VmRSS")
        for _ in range(steps):
            run()
        # The kernel counts both with a small lag of their own.
        return StepMemory(before, max(before, _resident("VmHWM")))
    except OSError:
        return None
    finally:
        remove_policy(backbone.transformer)


_PROC = Path("/proc/self")


def _resident(field: str) -> int:
    """Bytes; VmRSS is now, VmHWM the peak. Not `ru_maxrss`: a child inherits its parent's."""
    for line in _PROC.joinpath("status").read_text("utf-8").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in {_PROC / 'status'}")


def _timed(run: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the clock, and of this process's processor time."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - processor


def _step(
    backbone: Backbone, batch: PairBatch, config: TrainConfig, state: RunState, name: str
) -> Callable[[], None]:
    objective = ObjectiveConfig.model_validate(config.objective.model_dump() | {"name": name})
    config = config.model_copy(update={"objective": objective})
    return lambda: take_step(backbone, batch, config, state)


def take_step(backbone: Backbone, batch: PairBatch, config: TrainConfig, state: RunState) -> None:
    """As `model.training.run` takes it."""
    state.optimizer.zero_grad(set_to_none=True)
    cast = autocast(batch.win_BNC.device, config.mixed_precision)
    output = backward_step(backbone, batch, *noise_of(batch, config), config, cast)
    observe(output, batch, config.focus)
    update(state, config)


def noise_of(batch: PairBatch, config: TrainConfig) -> tuple[Tensor, Tensor]:
    """Noise (B, N, C) and sigma (B,) of a first step, on the batch's device."""
    num = len(batch)
    return draw_noise(
        batch.win_BNC, range(num), seed=0, step=0, config=config.noise, slots_in_step=num
    )


def update(state: RunState, config: TrainConfig) -> None:
    """Clip the gradients and step."""
    torch.nn.utils.clip_grad_norm_(state.parameters.values(), config.grad_clip)
    state.update(config.lr)
