"""The border of every model: what one hands over is looked at once, before anything is made of it.

Weights that diverged, or a dtype too narrow for them, give NaN: as pixels that is black, as a
vector it is a score that no threshold refuses. What is not finite, out of its range or of one
colour is the model's fault; nothing of it is kept, and the model is named.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence, Sized
from typing import Any

import numpy as np
from numpy.typing import NDArray

from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.parts import Detection, Image, Mask, Seen, Vectors

ROUNDING = 0.02
"""How far a length may be from 1 and a share from [0, 1]: half precision is enough for that."""


class Faulty(UserError):
    """A model handed over what none that is whole does."""


def to_uint8(values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Values in [0, 255] rounded to uint8, of any shape. Faulty where one is not finite: a cast
    would make it black."""
    if not np.isfinite(values).all():
        raise Faulty(f"{_share(~np.isfinite(values))} of its pixels are not finite numbers")
    return values.round().clip(0, 255).astype(np.uint8)


class Checked:
    """A part of any kind, whose results are checked as `CHECKS` says; all else is the part's."""

    def __init__(self, name: str, part: Any) -> None:
        self._name = name
        self.part = part
        """The model itself."""

    def __getattr__(self, method: str) -> Any:
        value = getattr(self.part, method)
        check = CHECKS.get(method)
        if check is None:
            return value

        @functools.wraps(value)
        def checked(*args: Any, **kwargs: Any) -> Any:
            inputs = args[0] if args else next(iter(kwargs.values()))
            try:
                result = value(*args, **kwargs)
                check(inputs, result)
            except Faulty as error:
                raise Faulty(
                    f"the {self._name}: {error}. Nothing of it is kept: its weights are damaged or "
                    "have diverged, or its dtype is too narrow; give others and run this again"
                ) from error
            return result

        return checked


def _pictures(inputs: Sequence[Any], painted: Sequence[Image]) -> None:
    _as_many(inputs, painted)
    for picture in painted:
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise Faulty(f"painted {picture.shape} {picture.dtype}, expected uint8 (H, W, 3)")
        if (picture == picture[:1, :1]).all():
            raise Faulty(f"painted a picture of one colour, {tuple(map(int, picture[0, 0]))}")


def _unit_vectors(inputs: Sequence[Any], vectors: Vectors) -> None:
    _as_many(inputs, vectors)
    if not len(vectors):
        return
    _finite("vectors", vectors)
    lengths = np.linalg.norm(np.asarray(vectors, np.float64), axis=1)
    if (np.abs(lengths - 1) > ROUNDING).any():
        worst = lengths[np.abs(lengths - 1).argmax()]
        raise Faulty(f"gave a vector of length {worst:.4g}, expected 1")


def _detections(images: Sequence[Image], rows: Sequence[Sequence[Detection]]) -> None:
    _as_many(images, rows)
    for image, row in zip(images, rows, strict=True):
        for detection in row:
            _region(image, detection.mask, detection.confidence)


def _seen(images: Sequence[Image], rows: Sequence[Sequence[Seen]]) -> None:
    _as_many(images, rows)
    for image, row in zip(images, rows, strict=True):
        for thing in row:
            _region(image, thing.mask, thing.confidence)
            _unit_vectors([thing], thing.embedding[None])
            _finite("class scores", thing.class_scores)
            _nan_or_finite("a hue", np.asarray([thing.hue]))


def _point_mask(image: Image, mask: Mask) -> None:
    _region(image, mask, 1.0)


def _region(image: Image, mask: Mask, confidence: float) -> None:
    if mask.dtype != np.bool_ or mask.shape != image.shape[:2]:
        raise Faulty(
            f"gave a mask {mask.shape} {mask.dtype} of a picture {image.shape[:2]}, expected bool"
        )
    if not -ROUNDING <= confidence <= 1 + ROUNDING:  # not so for NaN
        raise Faulty(f"is sure of a region by {confidence}, expected 0 to 1")


def _measures(inputs: Sequence[Any], values: Vectors) -> None:
    """NaN is an answer here: too grey or too small to tell."""
    _as_many(inputs, values)
    _nan_or_finite("measures", values)


def _shares(inputs: Sequence[Any], values: Vectors) -> None:
    _as_many(inputs, values)
    _finite("shares", np.asarray(values))
    low, high = (np.min(values), np.max(values)) if len(values) else (0.0, 1.0)
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise Faulty(f"gave shares from {low:.4g} to {high:.4g}, expected 0 to 1")


def _captions(inputs: Sequence[Any], captions: Sequence[str]) -> None:
    _as_many(inputs, captions)
    if not all(isinstance(caption, str) and caption.strip() for caption in captions):
        raise Faulty("gave an empty caption")


CHECKS: dict[str, Callable[[Any, Any], None]] = {
    "generate": _pictures,
    "inpaint": _pictures,
    "embed": _unit_vectors,
    "embed_whole": _unit_vectors,
    "embed_images": _unit_vectors,
    "embed_texts": _unit_vectors,
    "embed_references": _unit_vectors,
    "segment": _detections,
    "segment_points": _point_mask,
    "look": _seen,
    "hue": _measures,
    "pattern": _measures,
    "unsafe": _shares,
    "caption": _captions,
}
"""Method of `pipeline.parts` -> what its first argument and its result are put to."""


def _as_many(inputs: Sized, results: Sized) -> None:
    if len(inputs) != len(results):
        raise Faulty(f"gave {len(results)} results for {len(inputs)} inputs")


def _finite(what: str, values: NDArray[Any]) -> None:
    if not np.isfinite(values).all():
        raise Faulty(f"{_share(~np.isfinite(values))} of its {what} are not finite numbers")


def _nan_or_finite(what: str, values: NDArray[Any]) -> None:
    if np.isinf(values).any():
        raise Faulty(f"gave {what} that is not finite")


def _share(bad: NDArray[np.bool_]) -> str:
    return f"{bad.mean():.2g} of 1" if bad.mean() < 0.01 else f"{bad.mean():.0%}"
