"""Contact sheets: the first pictures of a long run, and base beside adapter of an evaluation."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from focusdpo.data_schemas.candidates import Sampled
from focusdpo.data_schemas.images import encode_png
from focusdpo.data_schemas.scenes import Scene
from focusdpo.flows.build.builder import Builder
from focusdpo.pipeline.parts import ReferenceImage
from focusdpo.store.addresses import RemoteRoot

log = logging.getLogger(__name__)

FIRST = "first.png"


def first_pictures(builder: Builder, limit: int = 32) -> Path | RemoteRoot | None:
    """Write `first.png` below the root from the partitions generated so far, until it is full."""
    target = builder.store.root / FIRST
    if builder.pictures_shown >= limit:
        return target
    pictures: list[NDArray[np.uint8]] = []
    for partition in builder.partitions:
        key = builder.plan.key("generate", partition)
        if len(pictures) < limit and builder.store.has("generate", key):
            records = builder.store.read("generate", key, Sampled)
            pictures += [builder.store.image(record.image) for record in records]
    if not pictures:
        return None
    builder.pictures_shown = len(pictures)
    sheet = contact_sheet(pictures[:limit], columns=8, scale=2)
    builder.store.files.write(FIRST, encode_png(np.asarray(sheet)))
    log.info("first pictures: %s", target)
    return target


def contact_sheet(
    pictures: Sequence[NDArray[np.uint8]], *, columns: int, scale: int = 1
) -> PillowImage.Image:
    """Pictures of equal size (H, W, 3) in rows, a white line between them."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * (height + 2) + 2, columns * (width + 2) + 2, 3), 255, dtype=np.uint8)
    for at, picture in enumerate(pictures):
        y = 2 + at // columns * (height + 2)
        x = 2 + at % columns * (width + 2)
        sheet[y : y + height, x : x + width] = picture
    image = PillowImage.fromarray(sheet)
    size = (image.width * scale, image.height * scale)
    return image.resize(size, PillowImage.Resampling.NEAREST)


def comparison_sheet(
    scenes: Sequence[Scene],
    references: Mapping[str, Sequence[ReferenceImage]],
    pictures: Mapping[str, Sequence[NDArray[np.uint8]]],
    limit: int = 16,
) -> PillowImage.Image:
    """A column per scene: its references, then what each model painted (`pictures`: model -> a
    picture (H, W, 3) per scene). Scenes of two subjects where there are some, evenly spaced and in
    their order: none is chosen for its looks."""
    twos = [at for at, scene in enumerate(scenes) if len(scene.subject_ids) == 2]
    pool = twos or list(range(len(scenes)))
    count = min(limit, len(pool))
    chosen = [pool[at * len(pool) // count] for at in range(count)]
    height, width = next(iter(pictures.values()))[0].shape[:2]
    blank = np.full((height, width, 3), 255, dtype=np.uint8)
    rows: list[NDArray[np.uint8]] = []
    for place in range(max(len(scenes[at].subject_ids) for at in chosen)):
        for at in chosen:
            names = scenes[at].subject_ids
            shown = references[names[place]][0].image if place < len(names) else blank
            fitted = PillowImage.fromarray(shown).resize((width, height))
            rows.append(np.asarray(fitted, dtype=np.uint8))
    for painted in pictures.values():
        rows += [painted[at] for at in chosen]
    return contact_sheet(rows, columns=len(chosen), scale=1)
