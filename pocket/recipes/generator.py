"""Trains the pocket generator: flow matching on latents of rendered scenes with references.

    python -m focusdpo.pocket.recipes.generator corpus OUT   # writes OUT/corpus, may run beside
    python -m focusdpo.pocket.recipes.generator train OUT    # trains on the chunks as they come

Letters: B scenes, R subjects, N target tokens, C channels.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from focusdpo.model.tokens import image_ids, text_ids
from focusdpo.pocket.autoencoder import load_autoencoder
from focusdpo.pocket.generator import ARCHITECTURE, build_generator
from focusdpo.pocket.identities import class_table
from focusdpo.pocket.recipes.common import (
    Clock,
    Ema,
    JsonLines,
    count_parameters,
    learning_rate,
    load_checkpoint,
    save_checkpoint,
    save_weights,
    step_generator,
)
from focusdpo.pocket.recipes.corpus import Chunk, chunk_path, read_chunk, write_corpus
from focusdpo.pocket.vocabulary import LENGTH, OBJECT, UNKNOWN, tokenize, words
from focusdpo.pocket.world import BACKGROUNDS, prompt_for

logger = logging.getLogger(__name__)


class GeneratorConfig(BaseModel):
    """Recipe of the generator."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(40_000, description="training steps at most", ge=1)
    minutes: float = Field(80.0, description="training minutes at most; 0 for no limit", ge=0)
    batch: int = Field(16, description="scenes per step", ge=1)
    chunks: int = Field(80, description="corpus chunks of 512 scenes", ge=20)
    first_chunks: int = Field(10, description="chunks in use at step 0", ge=10)
    steps_per_chunk: int = Field(20, description="steps until one more chunk is used", ge=1)
    peak: float = Field(1.5e-3, description="learning rate after warm-up", gt=0)
    warmup: int = Field(200, description="warm-up steps", ge=1)
    weight_decay: float = Field(0.01, ge=0, description="AdamW's weight decay")
    ema: float = Field(0.999, description="decay of the averaged weights", ge=0, lt=1)
    drop_references: float = Field(0.2, description="share of batches without references", ge=0)
    drop_prompt: float = Field(0.1, description="share of samples without prompt", ge=0)
    drop_both: float = Field(
        0.25, description="share of samples without prompt in batches without references", ge=0
    )
    anonymous: float = Field(0.1, description="share of class words replaced by `object`", ge=0)
    subject_weight: float = Field(
        2.0, description="extra weight of the error on tokens that show a subject", ge=0
    )
    bfloat16: bool = Field(
        False, description="autocast to bfloat16; only for CPUs that compute in it (AVX512-BF16)"
    )
    compile: bool = Field(False, description="torch.compile the transformer blocks")
    threads: int = Field(1, description="CPU threads", ge=1)
    seed: int = Field(0, ge=0, description="seed of weights, corpus and noise")
    checkpoint_minutes: float = Field(4.0, gt=0, description="minutes between checkpoints")
    snapshot_minutes: float = Field(5.0, gt=0, description="minutes between published weights")


@dataclass(frozen=True)
class Batch:
    """One step's data; references is (B, R, n, C) or None."""

    target: Tensor
    references: Tensor | None
    weight: Tensor
    """(B, N), mean 1 per scene."""
    tokens: Tensor
    sigma: Tensor
    noise: Tensor


def train(
    config: GeneratorConfig, out_dir: Path, autoencoder_dir: Path | None = None
) -> dict[str, float]:
    """Trains (or resumes from `out_dir/checkpoint.safetensors`) on `out_dir/corpus`, which is made
    here unless another process makes it. Writes `generator.*` into `out_dir`."""
    torch.set_num_threads(config.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(config.seed)
    corpus = out_dir / "corpus"
    if not chunk_path(corpus, 0).exists():
        write_corpus(load_autoencoder(autoencoder_dir), corpus, config.seed, config.chunks)
    model = build_generator()
    logger.info("generator: %d parameters", count_parameters([model]))
    ema = Ema(model, config.ema)
    optimizer = torch.optim.AdamW(
        model.parameters(), config.peak, (0.9, 0.99), weight_decay=config.weight_decay
    )
    clock = Clock(config.steps, config.minutes)
    checkpoint = out_dir / "checkpoint.safetensors"
    if checkpoint.exists():
        load_checkpoint(checkpoint, model, ema, optimizer, clock)
    if config.compile:
        compile_blocks: Any = model["transformer"]
        compile_blocks.compile_repeated_blocks(dynamic=True)
    _loop(config, out_dir, model, ema, optimizer, clock)
    save_checkpoint(checkpoint, model, ema, optimizer, clock)
    publish(ema, out_dir)
    return {"steps": float(clock.step), "minutes": clock.seconds / 60}


def _loop(
    config: GeneratorConfig,
    out_dir: Path,
    model: nn.ModuleDict,
    ema: Ema,
    optimizer: torch.optim.Optimizer,
    clock: Clock,
) -> None:
    log = JsonLines(out_dir / "log.jsonl")
    saved = published = time.monotonic()
    losses: list[float] = []
    while clock.progress < 1:
        rate = learning_rate(config.peak, clock.step, config.warmup, clock.progress)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = draw_batch(config, out_dir / "corpus", clock.step)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16):
            velocity = forward(model, batch)
        loss = flow_loss(velocity, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.tick()
        ema.update(model, clock.step)
        losses.append(loss.item())
        if clock.step % 50 == 0:
            log.write(
                step=clock.step,
                samples=clock.step * config.batch,
                seconds=round(clock.seconds, 1),
                loss=round(sum(losses) / len(losses), 4),
                rate=round(rate, 6),
            )
            losses.clear()
        if time.monotonic() - saved > 60 * config.checkpoint_minutes:
            save_checkpoint(out_dir / "checkpoint.safetensors", model, ema, optimizer, clock)
            saved = time.monotonic()
        if time.monotonic() - published > 60 * config.snapshot_minutes:
            publish(ema, out_dir)
            published = time.monotonic()


def forward(model: nn.ModuleDict, batch: Batch) -> Tensor:
    """Velocity of the target tokens (B, N, C)."""
    count = batch.target.shape[1]
    sigma = batch.sigma[:, None, None]
    noisy = (1 - sigma) * batch.target + sigma * batch.noise
    grids: tuple[tuple[int, int], ...] = ()
    if batch.references is not None:
        noisy = torch.cat([noisy, batch.references.flatten(1, 2)], 1)
        side = math.isqrt(batch.references.shape[2])
        grids = ((side, side),) * batch.references.shape[1]
    embeds, pooled = model["prompts"](batch.tokens)
    side = math.isqrt(count)
    output = model["transformer"](
        hidden_states=noisy,
        encoder_hidden_states=embeds,
        pooled_projections=pooled,
        timestep=batch.sigma,
        img_ids=image_ids((side, side), grids),
        txt_ids=text_ids(LENGTH),
        return_dict=False,
    )[0]
    return output[:, :count]


def flow_loss(velocity_BNC: Tensor, batch: Batch) -> Tensor:
    """Weighted squared error to the velocity noise - target."""
    error = (velocity_BNC.float() - (batch.noise - batch.target)).square().mean(-1)
    return (batch.weight * error).mean()


def draw_batch(config: GeneratorConfig, corpus: Path, step: int) -> Batch:
    """The batch of a step: a function of config and step (and the corpus) alone. Scenes of one
    batch have equally many subjects; the batch has references or not."""
    rng = step_generator(config.seed, step)
    window = min(config.chunks, config.first_chunks + step // config.steps_per_chunk)
    chunk = _wait_for(corpus, int(torch.randint(window, (), generator=rng)))
    rows = torch.randperm(len(chunk.target), generator=rng)[: config.batch]
    with_references = float(torch.rand((), generator=rng)) >= config.drop_references
    drop = config.drop_prompt if with_references else config.drop_both
    weight = 1 + config.subject_weight * chunk.coverage[rows].float()
    target = chunk.target[rows].float()
    return Batch(
        target=target,
        references=chunk.references[rows].float() if with_references else None,
        weight=weight / weight.mean(1, keepdim=True),
        tokens=tokenize(_prompts(chunk, rows, rng, drop, config.anonymous)),
        sigma=torch.sigmoid(torch.randn(len(rows), generator=rng)),
        noise=torch.randn(target.shape, generator=rng),
    )


def _prompts(
    chunk: Chunk, rows: Tensor, rng: torch.Generator, drop: float, anonymous: float
) -> list[str]:
    names = list(class_table())
    dropped = (torch.rand(len(rows), generator=rng) < drop).tolist()
    chance = torch.rand((len(rows), chunk.subjects), generator=rng).tolist()
    prompts = []
    for b, row in enumerate(rows.tolist()):
        classes = [names[c] for c in chunk.classes[row].tolist()]
        for r, value in enumerate(chance[b]):
            if value < anonymous:
                # Mostly `object`; sometimes <unk>, as words from outside the world become.
                classes[r] = OBJECT if value > 0.2 * anonymous else UNKNOWN
        prompt = prompt_for(classes, BACKGROUNDS[int(chunk.backgrounds[row])])
        prompts.append("" if dropped[b] else prompt)
    return prompts


def _wait_for(corpus: Path, index: int) -> Chunk:
    path = chunk_path(corpus, index)
    while not path.exists():
        logger.info("waiting for %s", path)
        time.sleep(2)
    return _cached_chunk(path)


@lru_cache(maxsize=200)
def _cached_chunk(path: Path) -> Chunk:
    return read_chunk(path)


def publish(ema: Ema, out_dir: Path) -> None:
    """Writes the averaged weights as `generator.safetensors` and `generator.json`."""
    config: dict[str, Any] = {"transformer": ARCHITECTURE, "words": list(words())}
    save_weights(out_dir / "generator", ema.shadow, config)


def main(command: str, out_dir: Path, overrides: dict[str, Any]) -> None:
    logging.basicConfig(level=logging.INFO)
    config = GeneratorConfig(**overrides)
    if command == "corpus":
        torch.set_num_threads(1)
        write_corpus(load_autoencoder(), out_dir / "corpus", config.seed, config.chunks)
    else:
        train(config, out_dir)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]) if len(sys.argv) > 3 else {})
