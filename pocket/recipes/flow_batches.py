"""What the generator is shown: rendered scenes with references, a function of seed and step.

Letters: B scenes, R subjects with n tokens per reference, N target tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from focusdpo.model.tokens import LatentCodec, image_ids, pack
from focusdpo.pocket.classes import class_names
from focusdpo.pocket.fitting.resuming import step_generator
from focusdpo.pocket.models.generator import REFERENCE_SIZE, frame_references
from focusdpo.pocket.models.vocabulary import OBJECT, tokenize
from focusdpo.pocket.world.casting import draw_cast
from focusdpo.pocket.world.grammar import draw_prompt
from focusdpo.pocket.world.world import (
    SCENE_SIZE,
    Scenes,
    SlotConfig,
    render_references,
    render_scenes,
)

TOKEN = 8
"""Pixels of a token's side."""


class FlowConfig(BaseModel):
    """What the pictures of a stage are, and what is left out of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(SCENE_SIZE, description="side of the pictures in pixels", ge=16)
    sides: tuple[float, float] | None = Field(
        None, description="longer side of subjects in pixels; none: the world's"
    )
    subjects: tuple[float, float, float, float] = Field(
        (0.6, 0.25, 0.1, 0.05), description="shares of batches with 1, 2, 3, 4 subjects"
    )
    slots: SlotConfig | None = Field(
        None, description="subjects stand at a few places; else anywhere, and order tells nothing"
    )
    sigma_mean: float = Field(
        0.8,
        description="mean of logit(sigma); above 0 since places, shapes and colours of these"
        " redundant latents are settled at sigma 0.7 to 0.97",
    )
    sigma_std: float = Field(1.1, gt=0, description="standard deviation of logit(sigma)")
    drop_references: float = Field(0.2, description="share of batches without references", ge=0)
    drop_prompt: float = Field(0.1, description="share of samples without prompt", ge=0)
    drop_both: float = Field(
        0.3, description="share of samples without prompt in batches without references", ge=0
    )
    anonymous: float = Field(0.08, description="share of class words replaced by `object`", ge=0)
    subject_weight: float = Field(
        2.0, description="extra weight of the error on tokens that show a subject", ge=0
    )


@dataclass(frozen=True)
class Layout:
    """What stands on the target's tokens, exactly."""

    kind: Tensor
    """(B, N) int64: 0 where no subject takes half of a token, else 1 + its class."""
    offset: Tensor
    """(B, N, 2): from the middle of the subject's box, x then y, in halves of its longer side."""


@dataclass(frozen=True)
class FlowBatch:
    """One step's data."""

    target: Tensor
    """(B, N, C) packed latents."""
    references: Tensor | None
    """(B, R n, C), or none."""
    places: Tensor
    """(N + R n, 3) position ids."""
    weight: Tensor
    """(B, N), mean 1 per scene."""
    layout: Layout
    tokens: Tensor
    """(B, T) prompt."""
    sigma: Tensor
    noise: Tensor


def draw_batch(
    codec: LatentCodec, config: FlowConfig, batch: int, seed: int, step: int
) -> FlowBatch:
    """The batch of a step. Its scenes have equally many subjects, whose references come in no
    order but that of the slots, where there are; all have references or none has."""
    rng, numbers = step_generator(seed, step), np.random.default_rng([seed, step, 0xF1])
    count = 1 + int(numbers.choice(4, p=config.subjects))
    casts = [draw_cast("train", class_names("train"), count, numbers) for _ in range(batch)]
    seeds = numbers.integers(2**31, size=batch).tolist()
    shown = render_scenes(casts, seeds, size=config.size, sides=config.sides, slots=config.slots)
    target = encode(codec, shown.images)
    with_references = numbers.random() >= config.drop_references
    references = None
    if with_references:
        flat = [subject for cast in casts for subject in cast]
        pictures, masks = render_references(flat, numbers.integers(2**31, size=len(flat)).tolist())
        framed, _ = frame_references(pictures * 2 - 1, masks.float())
        references = encode(codec, framed / 2 + 0.5).unflatten(0, (batch, count)).flatten(1, 2)
    cover = F.avg_pool2d(shown.masks.any(1).float(), TOKEN).flatten(1)
    weight = 1 + config.subject_weight * cover
    classes = [[subject.class_name for subject in cast] for cast in casts]
    drop = config.drop_prompt if with_references else config.drop_both
    sigma = config.sigma_mean + config.sigma_std * torch.randn(batch, generator=rng)
    return FlowBatch(
        target=target,
        references=references,
        places=places(config.size, count if with_references else 0, numbers),
        weight=weight / weight.mean(1, keepdim=True),
        layout=layout_of(shown, classes),
        tokens=tokenize(_prompts(classes, shown.backgrounds, drop, config.anonymous, numbers)),
        sigma=torch.sigmoid(sigma),
        noise=torch.randn(target.shape, generator=rng),
    )


def layout_of(scenes: Scenes, classes: Sequence[Sequence[str]]) -> Layout:
    """Which subject has most of each token, and where the token lies in it."""
    cover = F.avg_pool2d(scenes.masks.float(), TOKEN).flatten(2)  # (B, R, N)
    most, owner = cover.max(1)
    known = class_names("train")
    number = torch.tensor([[1 + known.index(word) for word in row] for row in classes])
    low, high = scenes.boxes[..., :2].float(), scenes.boxes[..., 2:].float()
    middle, half = (low + high) / 2, (high - low).amax(-1, keepdim=True) / 2
    of_owner = owner[..., None].expand(-1, -1, 2)
    side = scenes.images.shape[-1] // TOKEN
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    place = (torch.stack([column, row], -1).flatten(0, 1) + 0.5) * TOKEN
    offset = (place - middle.gather(1, of_owner)) / half.gather(1, owner[..., None])
    stands = most > 0.5
    return Layout(number.gather(1, owner) * stands, offset * stands[..., None])


@torch.no_grad()
def encode(codec: LatentCodec, images: Tensor) -> Tensor:
    """Images in [0, 1] -> packed latents (B, N, C)."""
    return pack(codec.encode_latents(images * 2 - 1))


def places(size: int, references: int, rng: np.random.Generator) -> Tensor:
    """Position ids. A small picture stands anywhere in the full grid, so that all places of it are
    trained; references stand where they stand beside a full one."""
    side, full, reference = size // TOKEN, SCENE_SIZE // TOKEN, REFERENCE_SIZE // TOKEN
    target = image_ids((side, side), ()).clone()  # those are remembered
    target[:, 1:] += torch.from_numpy(rng.integers(0, full - side + 1, 2)).float()
    whole = image_ids((full, full), ((reference, reference),) * references)
    return torch.cat([target, whole[full * full :]])


def _prompts(
    classes: Sequence[Sequence[str]],
    backgrounds: Sequence[str],
    drop: float,
    anonymous: float,
    rng: np.random.Generator,
) -> list[str]:
    prompts = []
    for row, background in zip(classes, backgrounds, strict=True):
        named = [OBJECT if rng.random() < anonymous else word for word in row]
        prompt = draw_prompt(named, background, rng)
        prompts.append("" if rng.random() < drop else prompt)
    return prompts
