"""Measures training steps of full-size models: time, peak memory, forward passes.

A step is all that `train` does for one: forward passes, backward pass, what is logged, clipping and
AdamW. Running out of memory is a result like any other. `straightforward_dpo` is what it is
compared with.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.device import (
    Flops,
    Step,
    Trace,
    attempt,
    free,
    limited,
    peaks,
    require_device,
    step_flops,
    synchronised,
    timed,
)
from benchmarks.gpu.full_size_models import (
    image_flops,
    lora_config,
    random_backbone,
    random_batch,
)
from benchmarks.gpu.gpu_config import (
    STATE,
    STRAIGHTFORWARD,
    Base,
    GpuBenchConfig,
    ModelName,
    Row,
    Setting,
)
from benchmarks.step_cost import noise_of, take_step, update
from focusdpo.model.adapter import remove_policy
from focusdpo.model.backbone import Backbone
from focusdpo.model.step import Autocast, autocast
from focusdpo.model.training.batches import PairBatch
from focusdpo.model.training.config import ObjectiveConfig, TrainConfig
from focusdpo.model.training.run_state import RunState


def bench_rows(config: GpuBenchConfig) -> Iterator[Row]:
    """Measures everything that the config asks for, one model in memory at a time."""
    require_device(config.device)
    for model in config.models:
        flops = image_flops(model, config)
        for base in config.bases(model):
            yield from _model_rows(model, base, config, flops)
            free(config.device)


def _model_rows(
    model: ModelName, base: Base, config: GpuBenchConfig, flops: tuple[Flops, Flops]
) -> Iterator[Row]:
    backbone, failure = attempt(
        lambda: random_backbone(model, config, base), Trace("loading the model")
    )
    for setting in config.settings(model, base):
        free(config.device)
        if backbone is None:
            yield from _failed(setting, failure or "")
        else:
            yield from measure(backbone, setting, config, flops)


def measure(
    backbone: Backbone, setting: Setting, config: GpuBenchConfig, flops: tuple[Flops, Flops]
) -> list[Row]:
    """One row per method. The backbone is left as it was, whatever happens."""
    trace = Trace("adding the adapter")
    frozen: Backbone | None = None
    with _prepared(backbone, setting, config.device):
        if STRAIGHTFORWARD in setting.methods:
            frozen, failure = attempt(lambda: frozen_copy(backbone), Trace("copying the model"))
            if frozen is None:
                return _failed(setting, failure or "")
            trace.watch(frozen.transformer)
        trace.watch(backbone.transformer)
        try:
            steps, failure = attempt(lambda: _steps(backbone, frozen, setting, config), trace)
            if steps is None:
                return _failed(setting, failure or "")
            rows = {name: _first(name, step, setting, config, trace) for name, step in steps}
            return _timed_rows(rows, dict(steps), config, flops, trace)
        finally:
            trace.stop()


def _first(name: str, step: Step, setting: Setting, config: GpuBenchConfig, trace: Trace) -> Row:
    """Warms up and measures memory; the row has no time yet."""
    row = _row(setting, name)
    free(config.device, reset_peak=True)
    for _ in range(config.warmup):
        trace.passes = 0
        _, failure = attempt(lambda: synchronised(step, config.device), trace)
        if failure is not None:
            return replace(row, failure=failure)
    peak, reserved = peaks(config.device)
    return replace(row, passes=trace.passes, peak_bytes=peak, reserved_bytes=reserved)


def _timed_rows(
    rows: dict[str, Row],
    steps: dict[str, Step],
    config: GpuBenchConfig,
    flops: tuple[Flops, Flops],
    trace: Trace,
) -> list[Row]:
    """Adds times, from rounds in which each method takes a step, forwards and backwards in turn, so
    that a change of clock meets all alike."""
    times: dict[str, list[float]] = {name: [] for name, row in rows.items() if row.failure is None}
    for i in range(config.repeats):
        for name in list(times) if i % 2 == 0 else list(reversed(times)):
            trace.passes = 0
            seconds, failure = attempt(lambda name=name: timed(steps[name], config.device), trace)  # type: ignore[misc]
            if seconds is None:
                rows[name] = _row_failed(rows[name], failure or "")
                del times[name]
            else:
                times[name].append(seconds)
    for name, taken in times.items():
        to_dpo = None
        if "dpo" in times:
            to_dpo = statistics.median(a / b for a, b in zip(taken, times["dpo"], strict=True))
        work = step_flops("dpo" if name == STRAIGHTFORWARD else name, rows[name].pairs, *flops)
        rows[name] = replace(
            rows[name], seconds=statistics.median(taken), to_dpo=to_dpo, step_flops=work
        )
    return list(rows.values())


def _steps(
    backbone: Backbone, frozen: Backbone | None, setting: Setting, config: GpuBenchConfig
) -> list[tuple[str, Step]]:
    """A fresh adapter and, per method, what takes a step with it."""
    train = TrainConfig(
        lora=lora_config(backbone, config),
        gradient_checkpointing=setting.checkpointing,
        memory=setting.memory,
    )
    batch = random_batch(backbone, config, setting.pairs)
    state = RunState(backbone, train)

    def step(name: str) -> Step:
        if frozen is not None:
            return lambda: _plain_step(backbone, frozen, batch, train, state)
        objective = ObjectiveConfig(name=cast("Any", name))
        with_objective = train.model_copy(update={"objective": objective})
        return lambda: take_step(backbone, batch, with_objective, state)

    return [(name, step(name)) for name in setting.methods]


def _plain_step(
    backbone: Backbone,
    frozen: Backbone,
    batch: PairBatch,
    config: TrainConfig,
    state: RunState,
) -> None:
    state.optimizer.zero_grad(set_to_none=True)
    noise_BNC, sigma_B = noise_of(batch, config)
    cast_to = autocast(noise_BNC.device, config.mixed_precision)
    beta = config.objective.beta
    straightforward_dpo(backbone, frozen, batch, noise_BNC, sigma_B, beta, cast_to).backward()
    update(state, config)


@contextmanager
def _prepared(backbone: Backbone, setting: Setting, device: str) -> Iterator[None]:
    """Gradient checkpointing and the limit of memory as the setting says; all undone after."""
    transformer = cast("Any", backbone.transformer)
    remove_policy(transformer)
    if setting.checkpointing:
        transformer.enable_gradient_checkpointing()
    try:
        with limited(setting.limit_gib, device):
            yield
    finally:
        transformer.disable_gradient_checkpointing()
        remove_policy(transformer)


def _row(setting: Setting, name: str) -> Row:
    shared = {field: getattr(setting, field) for field in STATE}
    return Row(method=name, **shared)


def _row_failed(row: Row, failure: str) -> Row:
    return replace(row, failure=failure, passes=None, peak_bytes=None, reserved_bytes=None)


def _failed(setting: Setting, failure: str) -> list[Row]:
    names: Sequence[str] = setting.methods
    return [_row_failed(_row(setting, name), failure) for name in names]


def frozen_copy(backbone: Backbone) -> Backbone:
    """The same backbone on weights of its own. Take it before the policy's adapter is added."""
    copied = copy.copy(backbone)
    copied.transformer = copy.deepcopy(backbone.transformer).requires_grad_(False)
    return copied


def straightforward_dpo(
    policy: Backbone,
    frozen: Backbone,
    batch: PairBatch,
    noise_BNC: Tensor,
    sigma_B: Tensor,
    beta: float,
    cast: Autocast = nullcontext,
) -> Tensor:
    """Diffusion-DPO as one writes it down first: what our step is compared with, in speed, memory
    and gradients. The loss, with a graph through two forward passes of the policy.

    The reference policy is a frozen copy of the whole model, and each of the four images' errors
    (policy and reference policy, winner and loser) comes from a forward pass of its own. Nothing is
    shared but the pair's noise and noise level, which the loss demands. Source: arXiv 2311.12908,
    equation 14; the sums are written out here, apart from `model.objectives`.
    """

    def error(backbone: Backbone, clean_BNC: Tensor) -> Tensor:
        noisy_BNC = backbone.add_noise(clean_BNC, noise_BNC, sigma_B)
        target_BNC = backbone.target(clean_BNC, noise_BNC, sigma_B)
        with cast():
            output = backbone.predict(noisy_BNC, sigma_B, batch.prompts, batch.references)
        return (output.output_BNC.float() - target_BNC.float()).pow(2).mean(dim=(1, 2))

    win_B, lose_B = error(policy, batch.win_BNC), error(policy, batch.lose_BNC)
    with torch.no_grad():
        ref_win_B, ref_lose_B = error(frozen, batch.win_BNC), error(frozen, batch.lose_BNC)
    gain_B = (ref_win_B - win_B) - (ref_lose_B - lose_B)
    return -F.logsigmoid(beta / 2 * gain_B).mean()
