"""What the evaluation asks of a judge: a protocol, so that any independent models can serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from focusdpo.pipeline.parts import Image, Mask, Part, Vectors


@dataclass(frozen=True, slots=True)
class Seen:
    """One thing that the judge sees in a picture, whatever its class."""

    mask: Mask
    box: tuple[int, int, int, int]
    """x0, y0, x1, y1 in pixels, end exclusive."""
    confidence: float
    """In [0, 1]: it is a painted subject and not background."""
    class_scores: Vectors
    """(K,) probabilities over the judge's class names."""
    embedding: Vectors
    """(D,) unit length: the individual."""
    hue: float
    """Degrees [0, 360) of the body; NaN when too grey to tell."""


class Judge(Part, Protocol):
    """Looks at pictures without knowing what was asked for."""

    @property
    def class_names(self) -> tuple[str, ...]: ...

    def look(self, images: Sequence[Image]) -> list[list[Seen]]:
        """All instances in each image, best first; possibly none."""
        ...

    def embed_references(self, images: Sequence[Image], masks: Sequence[Mask]) -> Vectors:
        """(B, D), unit length, in the space of `Seen.embedding`."""
        ...

    def hue(self, images: Sequence[Image], masks: Sequence[Mask]) -> Vectors:
        """(B,) degrees [0, 360), NaN when too grey."""
        ...

    def pattern(self, images: Sequence[Image], masks: Sequence[Mask]) -> Vectors:
        """(B, 2, S, S): the structure of each body's light without its shading, wherever and
        however large it stands, and where it is known (1) or not (0); NaN for too few pixels.
        `pipeline.patterns` compares them."""
        ...
