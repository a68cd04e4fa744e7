"""Judged pictures as pages show them: exact where they are small, else scaled down as JPEG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage

from focusdpo.data_schemas.images import encode_jpeg, encode_png
from focusdpo.pipeline.parts import Image
from focusdpo.store.local import write_whole

PNG, JPEG = ".png", ".jpg"


def suffix_of(picture: Image, side: int) -> str:
    """Of the file in which a picture is shown with at most `side` pixels a side."""
    return PNG if max(picture.shape[:2]) <= side else JPEG


def show(picture: Image, side: int, place: Path) -> None:
    """Lay a picture at `place`, a path without suffix. UserError where that cannot be written."""
    suffix = suffix_of(picture, side)
    data = encode_png(picture, effort=1) if suffix == PNG else encode_jpeg(scaled(picture, side))
    write_whole(place.with_name(place.name + suffix), data)


def scaled(image: Image, side: int) -> Image:
    """A picture of at most `side` pixels a side, for eyes."""
    height, width = image.shape[:2]
    factor = side / max(height, width)
    if factor >= 1:
        return image
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    # First by a whole factor, which takes a fifth of the time.
    small = PillowImage.fromarray(image).resize(
        size, PillowImage.Resampling.HAMMING, reducing_gap=1.0
    )
    return np.asarray(small)


def scaled_boxes(
    boxes: Sequence[tuple[int, ...]], picture: Image, side: int
) -> tuple[tuple[int, ...], ...]:
    """Boxes of the picture in the pixels in which it is shown."""
    factor = min(1.0, side / max(picture.shape[:2]))
    return tuple(tuple(round(value * factor) for value in box) for box in boxes)
