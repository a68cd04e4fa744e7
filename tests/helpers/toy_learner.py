"""The toy suite with a generator that really learns: it paints hues the further off, the larger the
error of its policy on pictures of the toy world, which is what training makes smaller."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import toy_suite
import toy_trainer
import toy_world
from tiny_backbone import tiny_backbone

from focusdpo.model.adapter import load_adapter
from focusdpo.model.backbones.flux import FluxBackbone
from focusdpo.pipeline.parts import Image, ReferenceImage

vocabulary = toy_suite.vocabulary
fingerprint = toy_trainer.fingerprint

DEGREES = 50.0
"""By how much the base is off."""


class Painter(toy_world.Generator):
    """Paints with an adapter, or with the base."""

    def __init__(self, adapter: str | None) -> None:
        super().__init__(faults=0.36)
        backbone = tiny_backbone(image_size=(toy_world.SIDE, toy_world.SIDE))
        base = error_of(backbone)
        if adapter is not None:
            load_adapter(backbone, Path(adapter))
        self.fingerprint = fingerprint("generator", adapter=adapter)
        self.turn = min(DEGREES * error_of(backbone) / base, 150.0)

    def one(self, prompt: str, references: Sequence[ReferenceImage], seed: int) -> Image:
        if not toy_world.words_of(prompt):
            prompt = " ".join(["disc"] * len(references))
        shown = [toy_trainer.turned(one, self.turn) for one in references]
        return super().one(prompt, shown, seed)


@torch.no_grad()
def error_of(backbone: FluxBackbone) -> float:
    """Mean squared error of the velocity on pictures that no dataset has."""
    generator = torch.Generator().manual_seed(5)
    pictures, references, masks, sigmas = [], [], [], []
    for number in range(24):
        word, hue = toy_world.WORDS[number % 2], 15.0 * number
        picture = toy_world.picture([(word, hue, number % 3)], seed=9000 + number)
        mask = toy_world.shape_mask(word, 24, 24, radius=10)
        shown = np.full_like(picture, 255)
        shown[mask] = toy_world.colour_of(hue)
        pictures.append(_tensor(picture))
        references.append(_tensor(shown))
        masks.append(torch.from_numpy(mask).float())
        sigmas.append((number + 0.5) / 24)
    clean_BNC = backbone.encode_images(torch.stack(pictures))
    noise_BNC = torch.randn(clean_BNC.shape, generator=generator)
    sigma_B = torch.tensor(sigmas)
    shown_R = backbone.encode_references([torch.stack(references)], [torch.stack(masks)])
    prompts = backbone.encode_prompts(["a disc on grey"] * len(pictures))
    noisy_BNC = backbone.add_noise(clean_BNC, noise_BNC, sigma_B)
    found = backbone.predict(noisy_BNC, sigma_B, prompts, shown_R).output_BNC
    target = backbone.target(clean_BNC, noise_BNC, sigma_B)
    return float((found - target).square().mean())


def _tensor(picture: Image) -> torch.Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1).float() / 127.5 - 1


@cache
def backbone() -> FluxBackbone:
    return toy_trainer.backbone()


def build(role: str, *, adapter: str | None = None) -> Any:
    if role in ("generator", "inpainter"):
        return painter(adapter, _stamp(adapter))
    return toy_trainer.build(role)


def _stamp(adapter: str | None) -> int:
    """Another file in the same folder is another adapter."""
    return 0 if adapter is None else (Path(adapter) / "adapter.json").stat().st_mtime_ns


@cache
def painter(adapter: str | None, stamp: int) -> Painter:
    return Painter(adapter)
