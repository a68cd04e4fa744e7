"""Trains the pocket autoencoder on rendered scenes and references.

python -m focusdpo.pocket.first.recipes.autoencoder OUT
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from focusdpo.pocket.cards import Figure, write_card
from focusdpo.pocket.first.identities import Split, class_names, sample_identities
from focusdpo.pocket.first.recipes.common import (
    Clock,
    Ema,
    JsonLines,
    learning_rate,
    load_checkpoint,
    save_checkpoint,
    step_generator,
)
from focusdpo.pocket.first.world import render_references, render_scenes
from focusdpo.pocket.models.autoencoder import ARCHITECTURE, PatchAutoencoder, build_autoencoder
from focusdpo.pocket.weightfiles import save_weights

logger = logging.getLogger(__name__)


class AutoencoderConfig(BaseModel):
    """Recipe of the autoencoder: the encoder is fitted, the decoder trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(6000, description="training steps at most", ge=1)
    minutes: float = Field(10.0, description="training minutes at most; 0 for no limit", ge=0)
    fit_batches: int = Field(
        8, description="batches of 64 + 64 that the encoder is fitted on", ge=1
    )
    scenes: int = Field(16, description="64 px scenes per step", ge=1)
    crops: int = Field(32, description="32 px references per step", ge=1)
    peak: float = Field(2e-3, description="learning rate after warm-up", gt=0)
    noise: float = Field(
        0.12, ge=0, description="noise on the latents, so that painted latents decode well"
    )
    threads: int = Field(1, description="CPU threads", ge=1)
    seed: int = Field(0, ge=0, description="seed of weights and data")
    checkpoint_minutes: float = Field(2.0, gt=0, description="minutes between checkpoints")


def train(config: AutoencoderConfig, out_dir: Path) -> dict[str, float]:
    """Trains (or resumes from `out_dir/checkpoint.safetensors`), writes `autoencoder.*` into
    `out_dir` and returns the figures on held-out identities."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    model = build_autoencoder()
    ema = Ema(model, 0.995)
    optimizer = torch.optim.AdamW(model.parameters(), config.peak, (0.9, 0.99), weight_decay=1e-3)
    clock = Clock(config.steps, config.minutes)
    checkpoint = out_dir / "checkpoint.safetensors"
    if checkpoint.exists():
        clock.restore(load_checkpoint(checkpoint, model, ema, optimizer))
    else:
        fit(model, config)
        ema = Ema(model, 0.995)
        publish(ema, out_dir, clock)  # the encoder is final from here on
    log = JsonLines(out_dir / "log.jsonl")
    saved = time.monotonic()
    while clock.progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.peak, clock.step, 50, clock.progress)
        loss = _step(model, config, clock.step)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.tick()
        ema.update(model, clock.step)
        if clock.step % 25 == 0:
            log.write(step=clock.step, seconds=round(clock.seconds, 1), loss=float(loss))
        if time.monotonic() - saved > 60 * config.checkpoint_minutes:
            save_checkpoint(checkpoint, model, ema, optimizer, clock.meta)
            saved = time.monotonic()
    figures = publish(ema, out_dir, clock)
    write_card(
        "autoencoder",
        out_dir,
        what="a linear patch encoder (principal components) with a residual convolutional decoder",
        data=f"{config.fit_batches} batches for the encoder, {clock.step} steps of "
        f"{config.scenes} scenes and {config.crops} references for the decoder",
        seconds=clock.seconds,
        figures=[
            Figure("autoencoder", "PSNR of scenes in dB", figures["psnr_scenes_held_out"], ">= 30"),
            Figure(
                "autoencoder", "PSNR of 32 px references", figures["psnr_references_held_out"], ""
            ),
        ],
        module=model,
    )
    return figures


@torch.no_grad()
def fit(model: PatchAutoencoder, config: AutoencoderConfig) -> None:
    """The encoder: principal components of scenes and references, rounded to the half precision
    in which weights are stored, so that latents before and after saving are the same."""
    parts = [batch(64, 64, "train", 10**7 + i) for i in range(config.fit_batches)]
    model.fit([images * 2 - 1 for part in parts for images in part])
    for values in model.buffers():
        values.copy_(values.half().float())


def _step(model: PatchAutoencoder, config: AutoencoderConfig, step: int) -> Tensor:
    """Backward pass of one batch; returns the loss."""
    generator = step_generator(config.seed, step)
    scenes, references = batch(config.scenes, config.crops, "train", step)
    total = torch.zeros(())
    for images in (scenes, references):
        target = images * 2 - 1
        latents = model.encode_latents(target)
        noise = torch.randn(latents.shape, generator=generator)
        output = model.decode_latents(latents + config.noise * noise)
        loss = F.mse_loss(output, target) + 0.1 * F.l1_loss(output, target)
        loss.backward()
        total += loss.detach()
    return total


def batch(scenes: int, crops: int, split: Split, seed: int) -> tuple[Tensor, Tensor]:
    """Scenes (scenes, 3, 64, 64) and references (crops, 3, 32, 32) in [0, 1]. Autoencoding needs
    no class to be unseen, so training uses the train classes, tests the others."""
    classes = class_names(split)
    count = 1 + seed % 3
    people = sample_identities(split, classes, scenes * count + crops, seed)
    rows = [people[i * count : (i + 1) * count] for i in range(scenes)]
    seeds = [seed * 4096 + i for i in range(scenes + crops)]
    images = render_scenes(rows, seeds[:scenes]).images
    references, _ = render_references(people[scenes * count :], seeds[scenes:], size=32)
    return images, references


def psnr(output: Tensor, target: Tensor) -> float:
    """Mean over images, in dB, for images in [0, 1]."""
    error = (output.clamp(0, 1) - target).square().flatten(1).mean(1)
    return float((-10 * error.log10()).mean())


@torch.no_grad()
def publish(ema: Ema, out_dir: Path, clock: Clock) -> dict[str, float]:
    """Writes the weights and measures them."""
    model = build_autoencoder()
    model.load_state_dict(ema.shadow)
    model.eval()
    save_weights("autoencoder", model, ARCHITECTURE, out_dir)
    figures = {"steps": float(clock.step), "minutes": clock.seconds / 60}
    for index, name in enumerate(("scenes", "references")):
        target = torch.cat([batch(32, 64, "held_out", 2 * 10**6 + i)[index] for i in range(3)])
        output = model.decode_latents(model.encode_latents(target * 2 - 1)) / 2 + 0.5
        figures[f"psnr_{name}_held_out"] = psnr(output, target)
    logger.info("autoencoder: %s", figures)
    JsonLines(out_dir / "figures.jsonl").write(**figures)
    return figures


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    train(AutoencoderConfig(), Path(sys.argv[1]))
