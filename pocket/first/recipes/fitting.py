"""The loop that trains the small pocket scorers: AdamW, cosine decay, EMA, exact resume.

The batch of a step depends on the seed and the step alone, so a resumed run is the run that was
not stopped.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from focusdpo.data_schemas.errors import UserError
from focusdpo.pocket.first.recipes.common import Ema, load_checkpoint, read_meta, save_checkpoint

log = logging.getLogger(__name__)


class FitConfig(BaseModel):
    """How a pocket scorer is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(1000, description="optimizer steps", ge=1)
    batch: int = Field(32, description="items per step", ge=2)
    lr: float = Field(1e-3, description="peak learning rate of AdamW", gt=0)
    warmup: int = Field(50, description="steps of linear warm-up", ge=0)
    weight_decay: float = Field(0.02, description="AdamW's decay", ge=0)
    clip_norm: float = Field(1.0, description="largest gradient norm", gt=0)
    ema: float = Field(0.995, description="decay of the averaged weights", ge=0, lt=1)
    recalibrate: int = Field(
        30, description="batches that batch normalisation is measured on at the end", ge=0
    )
    seed: int = Field(11, description="seed of initial weights and of all samples", ge=0)
    save_every: int = Field(100, description="steps between checkpoints", ge=1)
    threads: int = Field(1, description="CPU threads of torch", ge=1)

    @property
    def batches(self) -> int:
        """The most that are drawn: a step each, then those that normalisation is measured on."""
        return self.steps + self.recalibrate


@dataclass(frozen=True)
class Fitted:
    """What a training left."""

    losses: tuple[float, ...]
    seconds: float
    """Wall time over all starts of this training."""


def fit(
    module: nn.Module, loss_of_step: Callable[[int], Tensor], config: FitConfig, out_dir: Path
) -> Fitted:
    """Trains `module` in place and leaves it with the averaged weights, in eval mode.

    `loss_of_step(step)` makes that step's batch and returns its loss. Resumes from a checkpoint
    that lies in `out_dir`. Raises UserError where that was made with another config.
    """
    torch.set_num_threads(config.threads)
    torch.set_flush_denormal(True)  # tiny averages would slow some CPUs down tenfold
    out_dir.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.98)
    )
    average = Ema(module, config.ema)
    checkpoint = out_dir / "checkpoint.safetensors"
    losses, before = _resume(checkpoint, module, optimizer, average, config)
    module.train()
    started = time.monotonic()
    for step in range(len(losses), config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * _schedule(step, config)
        loss = loss_of_step(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), config.clip_norm)
        optimizer.step()
        average.update(module, step)
        losses.append(float(loss.detach()))
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            seconds = before + time.monotonic() - started
            meta = {"config": config.model_dump(), "losses": losses, "seconds": seconds}
            save_checkpoint(checkpoint, module, average, optimizer, meta)
            recent = losses[-config.save_every :]
            log.info(
                "step %d of %d: loss %.4f, %.0f s", step + 1, config.steps,
                sum(recent) / len(recent), seconds,
            )  # fmt: skip
    module.load_state_dict(average.shadow)
    recalibrate(module, loss_of_step, config)
    module.eval()
    return Fitted(tuple(losses), before + time.monotonic() - started)


def recalibrate(
    module: nn.Module, loss_of_step: Callable[[int], Tensor], config: FitConfig
) -> None:
    """Measures the statistics of batch normalisation anew: averaged weights do not fit statistics
    that were gathered under other weights (as `torch.optim.swa_utils.update_bn`)."""
    layers = [m for m in module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    if not layers or not config.recalibrate:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over batches
    module.train()
    with torch.no_grad():
        for extra in range(config.recalibrate):
            loss_of_step(config.steps + extra)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


def _schedule(step: int, config: FitConfig) -> float:
    """Share of the peak learning rate: linear up, cosine down to 1 %."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    position = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * position))


def _resume(
    checkpoint: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Ema,
    config: FitConfig,
) -> tuple[list[float], float]:
    """Losses so far and seconds spent; nothing without a checkpoint."""
    if not checkpoint.exists():
        return [], 0.0
    made_with = read_meta(checkpoint)["config"]
    free = {"threads", "save_every", "recalibrate"}
    if {k: v for k, v in made_with.items() if k not in free} != config.model_dump(exclude=free):
        raise UserError(
            f"{checkpoint}: made with another configuration; delete it to start anew, or choose"
            f" another output folder. It has {made_with}"
        )
    meta = load_checkpoint(checkpoint, module, average, optimizer)
    return list(meta["losses"]), float(meta["seconds"])
