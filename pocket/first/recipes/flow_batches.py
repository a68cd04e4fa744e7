"""Batches of the generator's recipe: what a step sees is a function of its number alone.

Letters: B scenes, R subjects with n tokens per reference, N target tokens, C channels.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from focusdpo.pocket.first.identities import BACKGROUNDS, class_table
from focusdpo.pocket.first.recipes.common import step_generator
from focusdpo.pocket.first.recipes.corpus import Chunk, chunk_path, read_chunk
from focusdpo.pocket.first.vocabulary import OBJECT, UNKNOWN, tokenize
from focusdpo.pocket.first.world import prompt_for

logger = logging.getLogger(__name__)


class BatchConfig(BaseModel):
    """What the generator is shown."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch: int = Field(64, description="scenes per step", ge=1)
    chunks: int = Field(480, description="corpus chunks", ge=1)
    chunk_scenes: int = Field(512, description="scenes per chunk", ge=1)
    first_chunks: int = Field(40, description="chunks in use at step 0", ge=1)
    steps_per_chunk: int = Field(3, description="steps until one more chunk is used", ge=1)
    sigma_mean: float = Field(
        0.8,
        description="mean of logit(sigma); above 0 since places, shapes and colours of these"
        " redundant latents are settled at sigma 0.7 to 0.97",
    )
    sigma_std: float = Field(1.1, gt=0, description="standard deviation of logit(sigma)")
    drop_references: float = Field(0.25, description="share of batches without references", ge=0)
    drop_prompt: float = Field(0.1, description="share of samples without prompt", ge=0)
    drop_both: float = Field(
        0.25, description="share of samples without prompt in batches without references", ge=0
    )
    anonymous: float = Field(0.1, description="share of class words replaced by `object`", ge=0)
    subject_weight: float = Field(
        2.0, description="extra weight of the error on tokens that show a subject", ge=0
    )
    seed: int = Field(0, ge=0, description="seed of weights, corpus and noise")


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


def draw_batch(config: BatchConfig, corpus: Path, step: int) -> Batch:
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
        sigma=torch.sigmoid(
            config.sigma_mean + config.sigma_std * torch.randn(len(rows), generator=rng)
        ),
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


@lru_cache(maxsize=512)  # 6 MiB each
def _cached_chunk(path: Path) -> Chunk:
    return read_chunk(path)
