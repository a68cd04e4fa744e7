"""What a stage needs from the models, and an evaluation from a judge: protocols fitted by shape.

Images are uint8 arrays (H, W, 3), masks bool arrays (H, W). Each part has a `fingerprint`, a hash
of its weights and settings, which enters the content key of all that it makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypedDict, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from focusdpo.data_schemas.errors import UserError

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Vectors = NDArray[np.float32]
Points = NDArray[np.float64]
"""(N, 2): x, y of pixels, the first of a row or column is 0."""
Labels = NDArray[np.int64]
"""(N,): 1, the point belongs to what is meant; 0, it does not."""


@dataclass(frozen=True, slots=True)
class ReferenceImage:
    """A subject's picture, white outside the mask."""

    image: Image
    mask: Mask


@dataclass(frozen=True, slots=True)
class Detection:
    """One region that a segmenter claims for a word."""

    class_name: str
    mask: Mask
    box: tuple[int, int, int, int]
    confidence: float


class Part(Protocol):
    @property
    def fingerprint(self) -> str: ...


class Generator(Part, Protocol):
    """Paints scenes with references."""

    def generate(
        self,
        prompts: Sequence[str],
        references: Sequence[Sequence[ReferenceImage]],
        seeds: Sequence[int],
        *,
        guidance: float | None = None,
    ) -> list[Image]:
        """One image per prompt; references[b] in the order of the prompt's subjects, possibly
        empty (text alone). All items of a call have equally many references. An image depends on
        its own prompt, references and seed only. `guidance` in place of the generator's own."""
        ...


class Inpainter(Part, Protocol):
    """Repaints a region."""

    def inpaint(
        self,
        images: Sequence[Image],
        masks: Sequence[Mask],
        prompts: Sequence[str],
        references: Sequence[Sequence[ReferenceImage]],
        seeds: Sequence[int],
        *,
        guidance: float | None = None,
    ) -> list[Image]:
        """Each image with its masked region repainted from prompt and references (none: text
        only). Pixels outside the mask may change slightly; the caller pastes back. `guidance` is
        for one that paints with the generator; another has its own."""
        ...


class Guided(TypedDict, total=False):
    """The keyword of a painter's call."""

    guidance: float


def guided(guidance: float | None) -> Guided:
    """Keywords for a painter: none where nothing is asked, so that a part need not know them."""
    return {} if guidance is None else {"guidance": guidance}


def check_calls(
    prompts: Sequence[str],
    references: Sequence[Sequence[ReferenceImage]],
    *others: Sequence[object],
) -> None:
    """UserError unless all have one entry per prompt and all prompts equally many references."""
    counts = [len(other) for other in others]
    if {len(references), *counts} != {len(prompts)} or len({len(row) for row in references}) > 1:
        raise UserError(
            f"painter: {len(prompts)} prompts with {[len(row) for row in references]} references"
            f" and {counts} seeds (images, masks); give one of each per prompt and equally many"
            " references to every prompt of a call"
        )


class Segmenter(Part, Protocol):
    """Finds instances of words."""

    def segment(
        self, images: Sequence[Image], class_names: Sequence[Sequence[str]]
    ) -> list[list[Detection]]:
        """All instances of each of the words in each image, best first; words are distinct."""
        ...


@runtime_checkable
class PointSegmenter(Protocol):
    """Finds what a person points at: what a segmenter may be besides. `isinstance` tells."""

    def segment_points(self, image: Image, points: Points, labels: Labels) -> Mask:
        """One mask for all the points together, possibly empty."""
        ...


class IdentityEncoder(Part, Protocol):
    """Tells individuals apart (DINO class)."""

    def embed(self, images: Sequence[Image], masks: Sequence[Mask]) -> Vectors:
        """(B, D), unit length: the masked subject of each image, whatever surrounds it."""
        ...


class TextImageEncoder(Part, Protocol):
    """Compares images with words (CLIP)."""

    def embed_images(self, images: Sequence[Image]) -> Vectors: ...

    def embed_texts(self, texts: Sequence[str]) -> Vectors: ...


class SafetyFilter(Part, Protocol):
    """Tells which pictures people should not be shown."""

    @property
    def threshold(self) -> float:
        """A picture is refused when it is unsafe by so much or more."""
        ...

    def unsafe(self, images: Sequence[Image]) -> Vectors:
        """(B,) in [0, 1]: how sure it is that each is unsafe."""
        ...


class Captioner(Part, Protocol):
    """Words for an instance."""

    def caption(
        self, images: Sequence[Image], masks: Sequence[Mask], class_names: Sequence[str]
    ) -> list[str]: ...


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
        `evaluation.metrics` compares them."""
        ...
