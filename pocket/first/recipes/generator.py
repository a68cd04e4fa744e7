"""Trains the pocket generator: flow matching on latents of rendered scenes with references.

    python -m focusdpo.pocket.first.recipes.generator corpus OUT  # OUT/corpus, may run beside
    python -m focusdpo.pocket.first.recipes.generator train OUT  # trains on the chunks as they come

Letters: B scenes, R subjects, N target tokens, C channels.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from focusdpo.model.step import Precision, autocast, resolve_precision
from focusdpo.model.tokens import image_ids, text_ids
from focusdpo.pocket.cards import Figure, write_card
from focusdpo.pocket.first.generator import (
    ARCHITECTURE,
    SAMPLING,
    as_backbone,
    build_generator,
    load_model,
)
from focusdpo.pocket.first.identities import class_names, class_table
from focusdpo.pocket.first.recipes.common import (
    Clock,
    Ema,
    JsonLines,
    count_parameters,
    learning_rate,
    load_checkpoint,
    save_checkpoint,
)
from focusdpo.pocket.first.recipes.corpus import chunk_path, write_corpus
from focusdpo.pocket.first.recipes.flow_batches import Batch, BatchConfig, draw_batch
from focusdpo.pocket.first.recipes.gallery import save_gallery
from focusdpo.pocket.first.vocabulary import LENGTH, OBJECT, words
from focusdpo.pocket.fitting.muon import Muon
from focusdpo.pocket.models.autoencoder import load_autoencoder
from focusdpo.pocket.weightfiles import save_weights

logger = logging.getLogger(__name__)


class GeneratorConfig(BatchConfig):
    """Recipe of the generator."""

    steps: int = Field(10_000, description="training steps at most", ge=1)
    minutes: float = Field(
        0.0,
        description="training minutes at most, 0 for no limit; the learning rate decays to the end"
        " of whichever comes first",
        ge=0,
    )
    peak: float = Field(2e-3, description="learning rate after warm-up", gt=0)
    warmup: int = Field(200, description="warm-up steps", ge=1)
    weight_decay: float = Field(0.01, ge=0, description="decoupled weight decay")
    ema: float = Field(0.999, description="decay of the averaged weights", ge=0, lt=1)
    precision: Precision = Field("auto", description="bf16 where the CPU computes in it, or not")
    compile: bool = Field(False, description="torch.compile the transformer blocks")
    start: str = Field(
        "", description="folder with `generator.*` to start from; none: random weights"
    )
    threads: int = Field(1, description="CPU threads", ge=1)
    checkpoint_minutes: float = Field(4.0, gt=0, description="minutes between checkpoints")
    snapshot_minutes: float = Field(5.0, gt=0, description="minutes between published weights")


def make_corpus(
    config: GeneratorConfig, out_dir: Path, autoencoder_dir: Path | None = None
) -> None:
    """Writes the chunks of `out_dir/corpus` that are missing."""
    codec = load_autoencoder(autoencoder_dir)
    folder = out_dir / "corpus"
    write_corpus(codec, folder, config.seed, config.chunks, config.chunk_scenes)


def train(
    config: GeneratorConfig, out_dir: Path, autoencoder_dir: Path | None = None
) -> list[Figure]:
    """Trains (or resumes from `out_dir/checkpoint.safetensors`) on `out_dir/corpus`, which is made
    here unless another process makes it. Writes weights, card and sample grid `generator*` into
    `out_dir` and returns what the judge measures on identities that training never saw."""
    clock = fit(config, out_dir, autoencoder_dir)
    return describe(out_dir, clock, config, autoencoder_dir)


def fit(config: GeneratorConfig, out_dir: Path, autoencoder_dir: Path | None = None) -> Clock:
    """The training itself; leaves checkpoint, log and weights in `out_dir`."""
    torch.set_num_threads(config.threads)
    torch.set_flush_denormal(True)
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(halves(config))  # CPUs heed it too
    torch.manual_seed(config.seed)
    corpus = out_dir / "corpus"
    if not chunk_path(corpus, 0).exists():
        make_corpus(config, out_dir, autoencoder_dir)
    model = load_model(Path(config.start)) if config.start else build_generator()
    logger.info("generator: %d parameters", count_parameters([model]))
    ema = Ema(model, config.ema)
    optimizer = build_optimizer(model, config)
    clock = Clock(config.steps, config.minutes)
    checkpoint = out_dir / "checkpoint.safetensors"
    if checkpoint.exists():
        clock.restore(load_checkpoint(checkpoint, model, ema, optimizer))
    if config.compile:
        compile_blocks: Any = model["transformer"]
        compile_blocks.compile_repeated_blocks(dynamic=True)
    # In bfloat16 the fused attention's backward pass is slower on CPUs than plain products are.
    with sdpa_kernel(SDPBackend.MATH) if halves(config) else nullcontext():
        _loop(config, out_dir, model, ema, optimizer, clock)
    save_checkpoint(checkpoint, model, ema, optimizer, clock.meta)
    publish(ema, out_dir)
    return clock


def halves(config: GeneratorConfig) -> bool:
    """Whether this machine trains in bfloat16."""
    return resolve_precision(torch.device("cpu"), config.precision) == "bf16"


def build_optimizer(model: nn.ModuleDict, config: GeneratorConfig) -> Muon:
    """Muon on the matrices of attention and MLP; AdamW on embeddings, modulation, biases, ends."""
    hidden: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inner = "transformer_blocks" in name and "norm" not in name and parameter.ndim == 2
        (hidden if inner else others).append(parameter)
    dtype = torch.bfloat16 if halves(config) else torch.float32
    return Muon(hidden, others, lr=config.peak, weight_decay=config.weight_decay, dtype=dtype)


def _loop(
    config: GeneratorConfig,
    out_dir: Path,
    model: nn.ModuleDict,
    ema: Ema,
    optimizer: torch.optim.Optimizer,
    clock: Clock,
) -> None:
    cast = autocast(torch.device("cpu"), config.precision)
    log, checkpoint = JsonLines(out_dir / "log.jsonl"), out_dir / "checkpoint.safetensors"
    saved = published = time.monotonic()
    losses: list[float] = []
    while clock.progress < 1:
        rate = learning_rate(config.peak, clock.step, config.warmup, clock.progress)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = draw_batch(config, out_dir / "corpus", clock.step)
        with cast():
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
            save_checkpoint(checkpoint, model, ema, optimizer, clock.meta)
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


def publish(ema: Ema, out_dir: Path) -> None:
    """Writes the averaged weights as `generator.safetensors` and `generator.json`. Class words that
    training never showed get the vector of `object`, which it did show in place of class words."""
    model = build_generator()
    model.load_state_dict(ema.shadow)
    embedding = model["prompts"].get_parameter("word.weight").data
    unseen = set(class_table()) - set(class_names("train"))
    embedding[[words().index(word) for word in unseen]] = embedding[words().index(OBJECT)].clone()
    settings = {
        "transformer": ARCHITECTURE,
        "words": list(words()),
        "sampling": SAMPLING.model_dump(),
    }
    save_weights("generator", model, settings, out_dir)


def describe(
    out_dir: Path, clock: Clock, config: GeneratorConfig, autoencoder_dir: Path | None = None
) -> list[Figure]:
    """Measures the published weights with the packaged judge; writes card and sample grid."""
    from focusdpo.pocket.first import parts
    from focusdpo.pocket.first.check import generator_figures
    from focusdpo.pocket.first.parts_generator import PocketGenerator

    model = load_model(out_dir)
    backbone = as_backbone(model, load_autoencoder(autoencoder_dir))
    save_gallery(backbone, out_dir / "generator_samples.png")
    figures = generator_figures(PocketGenerator(backbone), parts.build("judge"))
    write_card(
        "generator",
        out_dir,
        what="a FluxTransformer2DModel (diffusers) with references as further image tokens, and"
        " the word embeddings that are its prompt encoder",
        data=f"{clock.step * config.batch} samples in {clock.step} steps from"
        f" {config.chunks * config.chunk_scenes} scenes of 1 to 3 subjects of the 32 training"
        " classes, with references of 32 pixels",
        seconds=clock.seconds,
        figures=figures,
        module=model,
    )
    return figures


def main(command: str, out_dir: Path, overrides: dict[str, Any]) -> None:
    logging.basicConfig(level=logging.INFO)
    config = GeneratorConfig(**overrides)
    if command == "corpus":
        torch.set_num_threads(1)
        make_corpus(config, out_dir)
    else:
        train(config, out_dir)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]) if len(sys.argv) > 3 else {})
