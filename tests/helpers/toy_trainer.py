"""The toy suite with a generator that can be trained: what a LoRA changes in a tiny backbone turns
the hue of all that it paints. It paints the pocket world's individuals too, as discs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
import toy_suite
import toy_world
from tiny_backbone import tiny_backbone

from focusdpo.flows import wiring
from focusdpo.flows.ablation import cells as ablation_cells
from focusdpo.model.adapter import reference_policy
from focusdpo.model.backbone import References
from focusdpo.model.backbones.flux import FluxBackbone
from focusdpo.pipeline.parts import Detection, Image, ReferenceImage, Seen
from focusdpo.pocket.world.identities import class_names

DEGREES = 1e4
"""Hue by which a mean change of the velocity turns what is painted."""


class Painter(toy_world.Generator):
    """Paints with whatever policy lies on the backbone."""

    def __init__(self, backbone: FluxBackbone) -> None:
        super().__init__(faults=0.3)
        self.backbone = backbone
        with reference_policy(backbone.transformer):
            self.base = self.velocity()

    @torch.no_grad()
    def velocity(self) -> torch.Tensor:
        noise = torch.linspace(-1, 1, 36 * 16).view(1, 36, 16)
        prompts = self.backbone.encode_prompts(["a cat"])
        nobody = References((), (), ())
        return self.backbone.predict(noise, torch.tensor([0.5]), prompts, nobody).output_BNC

    def one(self, prompt: str, references: Sequence[ReferenceImage], seed: int) -> Image:
        turn = DEGREES * (self.velocity() - self.base).mean().item()
        if not toy_world.words_of(prompt):
            prompt = " ".join(["disc"] * len(references))
        return super().one(prompt, [turned(one, turn) for one in references], seed)


def turned(shown: ReferenceImage, degrees: float) -> ReferenceImage:
    """A reference of one flat colour, some degrees away from its own."""
    hue = toy_world.mean_hue(shown.image, shown.mask) + degrees
    image = np.full_like(shown.image, 255)
    image[shown.mask] = toy_world.colour_of(hue % 360)
    return ReferenceImage(image, shown.mask)


class Segmenter(toy_world.Segmenter):
    """Takes every coloured thing for whatever it is asked for, where it was not taught the word."""

    def segment(
        self, images: Sequence[Image], class_names: Sequence[Sequence[str]]
    ) -> list[list[Detection]]:
        if all(word in toy_world.WORDS for words in class_names for word in words):
            return super().segment(images, class_names)
        return [
            [Detection(w, mask, box, 0.9) for mask, box, _ in toy_world.blobs(image) for w in words]
            for image, words in zip(images, class_names, strict=True)
        ]


class Judge(toy_world.Judge):
    """Knows the pocket world's words, and takes a colour for each."""

    class_names = class_names()

    def see(self, image: Image, *blob: Any) -> Seen:
        seen = super().see(image, *blob)
        scores = np.zeros(len(self.class_names), np.float32)
        scores[int(seen.hue) % len(scores)] = 1
        return dataclasses.replace(seen, class_scores=scores)


def vocabulary() -> tuple[tuple[str, ...], frozenset[str]]:
    return toy_suite.vocabulary()


def fingerprint(role: str, *, adapter: str | None = None) -> str:
    if role == "backbone":
        return backbone().fingerprint
    return toy_suite.fingerprint(role, adapter=adapter)


@cache
def backbone() -> FluxBackbone:
    return tiny_backbone(image_size=(toy_world.SIDE, toy_world.SIDE))


@cache
def build(role: str, *, adapter: str | None = None) -> Any:
    if role == "backbone":
        return backbone()
    if role in ("generator", "inpainter"):
        return Painter(backbone())
    own = {"segmenter": Segmenter, "judge": Judge}
    return own[role]() if role in own else toy_suite.build(role)


def start_worker() -> None:
    """In place of the product's own: a worker process that knows this suite."""
    wiring.SUITES["pocket"] = "toy_trainer"
    ablation_cells.start_worker()
