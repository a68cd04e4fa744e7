"""The one loop that trains every pocket model, and resumes exactly.

The batch of a step depends on the seed and the step alone, so a resumed run is the run that was
not stopped, and worker processes may draw ahead.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset

from focusdpo.data_schemas.errors import UserError
from focusdpo.pocket.fitting.muon import Muon
from focusdpo.pocket.fitting.resuming import (
    Ema,
    load_checkpoint,
    read_meta,
    save_checkpoint,
)

log = logging.getLogger(__name__)

FREE_SETTINGS = {
    *("device", "precision", "compile", "threads", "workers"),
    *("save_minutes", "log_every", "recalibrate"),
}
"""What may change between two starts of one training."""
Precision = Literal["auto", "fp32", "bf16"]


class Training(BaseModel):
    """How the weights of one stage are found."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(1000, description="optimizer steps", ge=1)
    batch: int = Field(32, description="items per step", ge=1)
    lr: float = Field(1e-3, description="learning rate between warm-up and cool-down", gt=0)
    warmup: int = Field(50, description="steps of linear warm-up", ge=0)
    cooldown: float = Field(
        0.4, description="last share of the steps, in which the rate falls linearly to 1 %", ge=0
    )
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: on the matrices of transformer blocks, AdamW on all else"
    )
    device: str = Field("cpu", description="cpu or cuda")
    precision: Precision = Field(
        "auto",
        description="of the forward pass. auto: bf16 on GPUs and on CPUs with AMX, else fp32, for"
        " AVX-512's bfloat16 alone is slower",
    )
    weight_decay: float = Field(0.02, description="decoupled weight decay", ge=0)
    clip_norm: float = Field(1.0, description="largest gradient norm", gt=0)
    ema: float = Field(0.995, description="decay of the averaged weights", ge=0, lt=1)
    recalibrate: int = Field(
        30, description="batches that batch normalisation is measured on at the end", ge=0
    )
    seed: int = Field(11, description="seed of all samples", ge=0)
    threads: int = Field(1, description="CPU threads of torch", ge=1)
    workers: int = Field(0, description="processes that draw batches ahead; 0: none", ge=0)
    compile: bool = Field(False, description="torch.compile repeated transformer blocks")
    save_minutes: float = Field(4.0, description="minutes between checkpoints", gt=0)
    log_every: int = Field(50, description="steps between lines of the log", ge=1)

    @property
    def batches(self) -> int:
        """The most that are drawn: a step each, then those that normalisation is measured on."""
        return self.steps + self.recalibrate

    def rate(self, step: int) -> float:
        """Learning rate of a step: up, level, down (arXiv 2405.18392), so that a longer run has
        the same beginning."""
        left = (self.steps - step) / max(1.0, self.cooldown * self.steps)
        return self.lr * min(1.0, (step + 1) / (self.warmup + 1), max(0.01, left))

    @property
    def halves(self) -> bool:
        """Whether the forward pass computes in bfloat16."""
        if self.precision == "auto":
            return self.device != "cpu" or torch.cpu._is_amx_tile_supported()
        return self.precision == "bf16"

    def autocast(self) -> AbstractContextManager[Any]:
        """What a stage wraps its forward pass in."""
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.halves)


@dataclass(frozen=True)
class Stage:
    """One training of some of a model's modules."""

    name: str
    module: nn.Module
    draw: Callable[[int], Any]
    """The batch of a step: tensors in tuples and dataclasses, on the CPU."""
    loss: Callable[[Any], Tensor]
    """Of a batch on the training's device."""
    training: Training
    publish: Callable[[dict[str, Tensor]], None] | None = None
    """Given the averaged state of `module` whenever a checkpoint is written."""


@dataclass(frozen=True)
class Trained:
    """What a stage took."""

    steps: int
    items: int
    seconds: float
    """Wall time over all starts of this stage."""


def fit(stage: Stage, folder: Path) -> Trained:
    """Trains the stage's module in place and leaves it with the averaged weights, in evaluation
    mode.

    Resumes from `folder/checkpoint.safetensors`, and does nothing where that holds the last step.
    Raises UserError where it was made with other settings.
    """
    training, module = stage.training, stage.module
    torch.set_num_threads(training.threads)
    torch.set_flush_denormal(True)  # tiny averages would slow some CPUs down tenfold
    module.to(training.device)
    optimizer, average = build_optimizer(module, training), Ema(module, training.ema)
    checkpoint = folder / "checkpoint.safetensors"
    step, seconds = _resume(checkpoint, module, optimizer, average, training)
    run = _Run(stage, folder, optimizer, average, step, seconds)
    with _arithmetic(training):
        for batch in batches(stage, step, training.steps):
            run.advance(batch)
    module.load_state_dict(average.shadow)
    if run.advanced:
        run.save()
    recalibrate(stage)
    module.cpu().eval()
    return Trained(run.step, run.step * training.batch, run.seconds)


def batches(stage: Stage, start: int, end: int) -> Iterator[Any]:
    """The batches of some steps, in order, on the training's device."""
    training = stage.training
    drawn: Iterator[Any] = map(stage.draw, range(start, end))
    if training.workers:
        # Forked: a stage's functions hold models, which must not be sent to each process.
        drawn = iter(
            DataLoader(
                _Steps(stage.draw, start, end),
                batch_size=None,
                num_workers=training.workers,
                prefetch_factor=4,
                multiprocessing_context="fork",
            )
        )
    return (to_device(batch, training.device) for batch in drawn)


class _Steps(Dataset[Any]):
    """Batches by number, for worker processes."""

    def __init__(self, draw: Callable[[int], Any], start: int, end: int) -> None:
        self._draw, self._start, self._end = draw, start, end

    def __len__(self) -> int:
        return self._end - self._start

    def __getitem__(self, number: int) -> Any:
        return self._draw(self._start + number)


def to_device(batch: Any, device: str) -> Any:
    """All tensors of a batch on a device; what is no tensor stays as it is."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {name: to_device(part, device) for name, part in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(to_device(part, device) for part in batch)
    if is_dataclass(batch) and not isinstance(batch, type):
        parts = {f.name: to_device(getattr(batch, f.name), device) for f in fields(batch)}
        return replace(batch, **parts)
    return batch


class _Run:
    """The state of a stage between two steps."""

    def __init__(
        self,
        stage: Stage,
        folder: Path,
        optimizer: torch.optim.Optimizer,
        average: Ema,
        step: int,
        seconds: float,
    ) -> None:
        self.stage, self.folder = stage, folder
        self.optimizer, self.average = optimizer, average
        self.step, self.seconds = step, seconds
        self.advanced = False
        self._losses: list[float] = []
        self._ticked = self._saved = self._logged_at = time.monotonic()
        self._logged = step
        stage.module.train()

    def advance(self, batch: Any) -> None:
        """One step, with what is due after it."""
        training, module = self.stage.training, self.stage.module
        for group in self.optimizer.param_groups:
            group["lr"] = training.rate(self.step)
        loss = self.stage.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), training.clip_norm)
        self.optimizer.step()
        self.average.update(module, self.step)
        self.step, self.advanced = self.step + 1, True
        self._losses.append(float(loss.detach()))
        now = time.monotonic()
        self.seconds, self._ticked = self.seconds + now - self._ticked, now
        if self.step % training.log_every == 0:
            self._log()
        if now - self._saved > 60 * training.save_minutes and self.step < training.steps:
            self.save()
            self._saved = time.monotonic()

    def save(self) -> None:
        """Checkpoint, and the averaged weights to whoever wants them."""
        meta = {
            "config": self.stage.training.model_dump(),
            "step": self.step,
            "seconds": self.seconds,
        }
        save_checkpoint(
            self.folder / "checkpoint.safetensors",
            self.stage.module,
            self.average,
            self.optimizer,
            meta,
        )
        if self.stage.publish is not None:
            self.stage.publish(self.average.shadow)

    def _log(self) -> None:
        training = self.stage.training
        row = {
            "step": self.step,
            "items": self.step * training.batch,
            "seconds": round(self.seconds, 1),
            "loss": round(sum(self._losses) / len(self._losses), 5),
            "rate": training.rate(self.step - 1),
        }
        self._losses.clear()
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row) + "\n")
        pace = (self.step - self._logged) / max(1e-9, time.monotonic() - self._logged_at)
        self._logged, self._logged_at = self.step, time.monotonic()
        hours = (training.steps - self.step) / pace / 3600
        log.info("%s: step %d of %d, loss %.4f, %.0f items/s, %.1f hours to go", self.stage.name,
                 self.step, training.steps, row["loss"], pace * training.batch, hours)  # fmt: skip


def build_optimizer(module: nn.Module, training: Training) -> torch.optim.Optimizer:
    """AdamW on everything, or Muon on the matrices of attention and MLP with AdamW on embeddings,
    modulation, biases and ends."""
    if training.optimizer == "adamw":
        return torch.optim.AdamW(
            [p for p in module.parameters() if p.requires_grad],
            lr=training.lr, weight_decay=training.weight_decay, betas=(0.9, 0.98),
        )  # fmt: skip
    hidden: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        inner = "transformer_blocks" in name and "norm" not in name and parameter.ndim == 2
        (hidden if inner else others).append(parameter)
    dtype = torch.bfloat16 if training.halves else torch.float32
    return Muon(hidden, others, lr=training.lr, weight_decay=training.weight_decay, dtype=dtype)


def _arithmetic(training: Training) -> AbstractContextManager[Any]:
    if not training.halves or training.device != "cpu":
        return nullcontext()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # CPUs heed it too
    # In bfloat16 the fused attention's backward pass is slower on CPUs than plain products are.
    return sdpa_kernel(SDPBackend.MATH)


def recalibrate(stage: Stage) -> None:
    """Measures the statistics of batch normalisation anew: averaged weights do not fit statistics
    that were gathered under other weights (as `torch.optim.swa_utils.update_bn`)."""
    module, training = stage.module, stage.training
    layers = [m for m in module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    if not layers or not training.recalibrate:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over batches
    module.train()
    with torch.no_grad():
        for batch in batches(stage, training.steps, training.batches):
            stage.loss(batch)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


def _resume(
    checkpoint: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Ema,
    training: Training,
) -> tuple[int, float]:
    """Steps taken and seconds spent; nothing without a checkpoint."""
    if not checkpoint.exists():
        return 0, 0.0
    meta = read_meta(checkpoint)
    made_with = meta["config"]
    free = set(FREE_SETTINGS)
    level = min(made_with["steps"], training.steps) * (1 - training.cooldown)
    if meta["step"] <= level:
        free.add("steps")  # Up to the cool-down a longer run is the same run.
    kept = {k: v for k, v in made_with.items() if k not in free}
    if kept != training.model_dump(mode="json", exclude=free):
        raise UserError(
            f"{checkpoint}: made with other settings; delete it to start anew, or choose another"
            f" output folder. It has {made_with}"
        )
    load_checkpoint(checkpoint, module, average, optimizer)
    average.shadow = to_device(average.shadow, training.device)
    log.info("%s: goes on at step %d, after %.0f s", checkpoint, meta["step"], meta["seconds"])
    return int(meta["step"]), float(meta["seconds"])
