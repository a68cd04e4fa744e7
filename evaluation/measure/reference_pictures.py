"""Subjects' references from files: cut out, shown small, and known to the judge."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.images import Picture, encode_png, read_picture
from focusdpo.evaluation.measure.config import MeasureConfig
from focusdpo.evaluation.measure.picture_rows import Asked, Problem
from focusdpo.evaluation.measure.sight import Sight
from focusdpo.evaluation.run import tile
from focusdpo.pipeline.parts import Image, ReferenceImage
from focusdpo.pipeline.subjects.cutouts import find_subject
from focusdpo.pipeline.subjects.ingest import with_mask
from focusdpo.store.local import write_whole


@dataclass(frozen=True, slots=True)
class CutOut:
    """A reference, and the photograph that it is from."""

    subject: ReferenceImage
    photograph: Image
    """(H, W, 3) as it was brought, background and all."""


def cut_outs(
    subject: Asked, sight: Sight, config: MeasureConfig, problems: list[Problem], notes: list[str]
) -> list[CutOut]:
    """The usable references of a subject; what is wrong with the others goes to `problems`, what
    its owner should know to `notes`."""
    return list(_read_all(subject, sight, config, problems, notes))


def _read_all(
    subject: Asked, sight: Sight, config: MeasureConfig, problems: list[Problem], notes: list[str]
) -> Iterator[CutOut]:
    for file, mask in zip(subject.references, subject.masks, strict=True):
        try:
            picture = read_picture(file)
            if mask is not None:
                picture = _masked(picture, file, mask)
            yield CutOut(_cut_out(subject, picture, file, sight, config, notes), picture.image)
        except UserError as error:
            problems.append(Problem(f"subject '{subject.name}'", str(error)))


def _cut_out(
    subject: Asked, picture: Picture, file: Path, sight: Sight, config: MeasureConfig,
    notes: list[str],
) -> ReferenceImage:  # fmt: skip
    side = max(16, config.reference_side // 4)  # `find_subject` works at four times this
    crop, opacity, note = find_subject(
        picture, side, config.tolerance, lambda image: sight.find(image, subject.class_name)
    )
    solid = opacity > 127
    if not solid.any():
        raise UserError(f"{file}: nothing of the subject is visible; replace or remove it")
    if note:
        notes.append(f"{file}: {note}")
    white = np.where(solid[..., None], crop.image, np.uint8(255))
    return ReferenceImage(image=white, mask=solid)


def _masked(picture: Picture, file: Path, mask: Path) -> Picture:
    masked = with_mask(picture, file, read_picture(mask), mask)
    if masked.alpha is None or not (masked.alpha > 127).any():
        raise UserError(f"{mask}: the mask is empty; it is white where the subject is")
    return masked


def show_references(out: Path, name: str, pictures: list[ReferenceImage]) -> list[str]:
    """The references small, below the results; their names."""
    folder = out / "references" / name
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, picture in enumerate(pictures):
        write_whole(folder / f"{number}.png", encode_png(tile(picture.image)))
        files.append(f"references/{name}/{number}.png")
    return files
