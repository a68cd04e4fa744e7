"""The judges of pictures from anywhere, behind one face: the embedded world's, and photographs'.

Letters: n instances, R subjects of a picture, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from focusdpo.data_schemas.errors import UserError
from focusdpo.evaluation.dreambench_metrics import by_size, detect, embed, embed_masked
from focusdpo.evaluation.protocols import EvaluateConfig
from focusdpo.pipeline.parts import (
    Detection,
    IdentityEncoder,
    Image,
    Judge,
    Mask,
    Seen,
    Segmenter,
    TextImageEncoder,
    Vectors,
)

Words = NDArray[np.float64]
Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels."""
SCR = "scr/whole-picture"
PSR = "psrbench/subject-consistency"
"""Protocols as they were published (`published.py`)."""


@dataclass(frozen=True, slots=True)
class Looked:
    """What a judge saw in one picture."""

    seen: Sequence[Seen] | Sequence[Detection]
    vectors: Vectors
    """(n, D) of the instances, unit length."""
    words: Words
    """(R, n): how surely each instance is of each subject's class, in [0, 1]."""
    barred: NDArray[np.bool_]
    """(R, n): this instance was found for another word and cannot be that subject."""


class Sight(Protocol):
    """A judge of pictures."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def side(self) -> int | None:
        """The one size in pixels of what it looks at; None: any."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """What a page says of it, line by line."""
        ...

    @property
    def published(self) -> Sequence[str]:
        """Ids of the public protocols that it can tell as they were published."""
        ...

    def look(self, pictures: Sequence[Image], class_names: Sequence[Sequence[str]]) -> list[Looked]:
        """The instances that count in each picture."""
        ...

    def embed(self, pictures: Sequence[Image], masks: Sequence[Mask]) -> Vectors:
        """(B, D) of subjects, in the space of `Looked.vectors`."""
        ...

    def find(self, picture: Image, class_name: str) -> Mask | None:
        """Where a reference's subject is; None when it finds none."""
        ...

    def fits(self, pictures: Sequence[Image], prompts: Sequence[str]) -> list[float]:
        """How well each picture fits its prompt (CLIP-T); NaN where nothing can tell."""
        ...

    def whole(self, pictures: Sequence[Image]) -> Vectors | None:
        """(B, D) of whole pictures; None where nothing compares them."""
        ...

    def boxes(self, pictures: Sequence[Image], words: Sequence[str]) -> list[list[Box]]:
        """All that the segmenter finds for one word in each picture, surest first."""
        ...


class PhotographSight:
    """A segmenter, an identity encoder, and CLIP where there is one."""

    side = None

    def __init__(
        self,
        segmenter: Segmenter,
        identity: IdentityEncoder,
        clip: TextImageEncoder | None,
        config: EvaluateConfig,
        names: Sequence[str],
        *,
        published: Sequence[str] = (),
    ) -> None:
        self._segmenter, self._identity, self._clip = segmenter, identity, clip
        self._config, self.names, self.published = config, names, published
        parts = (segmenter, identity, *([clip] if clip else []))
        self.fingerprint = " ".join(part.fingerprint for part in parts)

    def look(self, pictures: Sequence[Image], class_names: Sequence[Sequence[str]]) -> list[Looked]:
        """As `Sight.look`."""
        asked = [tuple(dict.fromkeys(words)) for words in class_names]
        detected = detect(pictures, asked, self._segmenter, self._config)
        owners = [at for at, detections in enumerate(detected) for _ in detections]
        masks = [detection.mask for detections in detected for detection in detections]
        vectors = self.embed([pictures[at] for at in owners], masks)
        ends = np.cumsum([len(detections) for detections in detected])
        parts = np.split(vectors, ends[:-1])
        return [
            _looked(detections, part, words)
            for detections, part, words in zip(detected, parts, class_names, strict=True)
        ]

    def embed(self, pictures: Sequence[Image], masks: Sequence[Mask]) -> Vectors:
        """As `Sight.embed`."""
        return embed_masked(self._identity, pictures, masks, self._config.batch)

    def find(self, picture: Image, class_name: str) -> Mask | None:
        """As `Sight.find`."""
        (detections,) = detect([picture], [(class_name,)], self._segmenter, self._config)
        return detections[0].mask if detections else None

    def fits(self, pictures: Sequence[Image], prompts: Sequence[str]) -> list[float]:
        """As `Sight.fits`."""
        if self._clip is None:
            return [float("nan")] * len(pictures)
        shown = embed(self._clip.embed_images, pictures, self._config.batch).astype(np.float64)
        texts = np.asarray(self._clip.embed_texts(list(prompts)), dtype=np.float64)
        return [float(value) for value in (shown * texts).sum(axis=1)]

    def whole(self, pictures: Sequence[Image]) -> Vectors | None:
        """As `Sight.whole`."""
        encode: Any = getattr(self._identity, "embed_whole", None)
        return None if encode is None else embed(encode, pictures, self._config.batch)

    def boxes(self, pictures: Sequence[Image], words: Sequence[str]) -> list[list[Box]]:
        """As `Sight.boxes`."""

        def found(part: list[int]) -> list[list[Box]]:
            made = self._segmenter.segment(
                [pictures[at] for at in part], [(words[at],) for at in part]
            )
            return [[detection.box for detection in detections] for detections in made]

        return by_size(pictures, self._config.batch, found)


def _looked(
    detections: Sequence[Detection], vectors: Vectors, class_names: Sequence[str]
) -> Looked:
    """A detector that reads words bars all others; one that reads none gives ''."""
    words = np.array([detection.class_name for detection in detections], dtype=object)[None]
    asked = np.array(list(class_names), dtype=object)[:, None]
    agree = (words == asked).astype(np.bool_).reshape(len(class_names), len(detections))
    named = (words != "").astype(np.bool_).reshape(1, len(detections))
    return Looked(detections, vectors, agree.astype(np.float64), named & ~agree)


class PocketSight:
    """The embedded world's judge."""

    names = ("the pocket suite's judge",)
    published = ()

    def __init__(self, judge: Judge, clip: TextImageEncoder, config: EvaluateConfig, side: int):
        self._judge, self._clip, self._config, self.side = judge, clip, config, side
        self.fingerprint = f"{judge.fingerprint} {clip.fingerprint}"

    def look(self, pictures: Sequence[Image], class_names: Sequence[Sequence[str]]) -> list[Looked]:
        """As `Sight.look`."""
        return [
            self._looked(seen, words)
            for seen, words in zip(self._judge.look(pictures), class_names, strict=True)
        ]

    def _looked(self, seen: Sequence[Seen], class_names: Sequence[str]) -> Looked:
        config, known = self._config, self._judge.class_names
        instances = [
            instance
            for instance in seen
            if instance.confidence >= config.min_confidence
            and instance.mask.mean() >= config.min_area
        ]
        vectors = (
            np.stack([instance.embedding for instance in instances])
            if instances
            else np.zeros((0, 1), np.float32)
        )
        words = np.zeros((len(class_names), len(instances)))
        for row, word in enumerate(class_names):
            if word in known:
                words[row] = [
                    float(instance.class_scores[known.index(word)]) for instance in instances
                ]
        return Looked(instances, vectors, words, np.zeros(words.shape, np.bool_))

    def embed(self, pictures: Sequence[Image], masks: Sequence[Mask]) -> Vectors:
        """As `Sight.embed`."""
        return self._judge.embed_references(pictures, masks)

    def find(self, picture: Image, class_name: str) -> Mask | None:
        """Nothing: this judge looks at scenes, and references are cut out or on a plain ground."""
        return None

    def fits(self, pictures: Sequence[Image], prompts: Sequence[str]) -> list[float]:
        """As `Sight.fits`."""
        shown = np.asarray(self._clip.embed_images(pictures), dtype=np.float64)
        texts = np.asarray(self._clip.embed_texts(list(prompts)), dtype=np.float64)
        return [float(value) for value in (shown * texts).sum(axis=1)]

    def whole(self, pictures: Sequence[Image]) -> Vectors | None:
        """Nothing: its encoder knows instances alone."""
        return None

    def boxes(self, pictures: Sequence[Image], words: Sequence[str]) -> list[list[Box]]:
        """Nothing: it reads no words."""
        return [[] for _ in pictures]


def require_size(sight: Sight, image: Image) -> None:
    """UserError for a picture that the judge cannot look at."""
    height, width = image.shape[:2]
    if sight.side is not None and (height, width) != (sight.side, sight.side):
        raise UserError(
            f"{width} x {height} pixels; the pocket judge looks at pictures of its own world, "
            f"{sight.side} x {sight.side}. For photographs give a preset with checkpoints, as in "
            "--preset flux-uno, or the small judge, --lite DIR (docs/measure.md)"
        )
