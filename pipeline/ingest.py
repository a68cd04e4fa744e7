"""Stage ingest: a team's folders of pictures (subject_folders.py) -> subjects in the store."""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.images import Picture, encode_png, read_picture
from focusdpo.data_schemas.subjects import Reference, Subject
from focusdpo.pipeline.cutout import Finder, cut_out
from focusdpo.pipeline.keys import content_key, digest, image_key
from focusdpo.pipeline.store import Store
from focusdpo.pipeline.subject_folders import (
    NAME,
    card_of,
    class_name_of,
    doubles,
    pictures_of,
    stay_inside,
    subject_folders,
)

VERSION = 2
STAGE = "subjects"

log = logging.getLogger(__name__)

Cutout = tuple[NDArray[np.uint8], NDArray[np.bool_]]
"""A reference's image (S, S, 3), white outside the mask, and its mask (S, S)."""


class FindSubject(Protocol):
    """Where a photograph's subject is."""

    def __call__(self, image: NDArray[np.uint8], *, class_name: str) -> NDArray[np.bool_] | None:
        """Mask (H, W) of the best instance in a picture (H, W, 3); None when there is none."""
        ...


class IngestConfig(BaseModel):
    """How pictures become references."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(64, ge=8, le=4096, description="side of a stored reference in pixels")
    min_side: int = Field(16, ge=2, description="pictures narrower than this are refused")
    max_pixels: int = Field(
        50_000_000, ge=1, description="pictures with more pixels are refused before decoding"
    )
    tolerance: int = Field(
        24, ge=0, le=255, description="largest channel difference to the corner colour that still "
        "counts as background, in a picture without alpha",
    )  # fmt: skip
    max_references: int = Field(16, ge=1, description="pictures used per subject, by file name")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something about a subject that its owner should know."""

    subject: str
    message: str
    fatal: bool
    """The subject was left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingested:
    """The usable subjects by name, and all problems."""

    subjects: list[Subject]
    problems: list[Problem]


class _Found(NamedTuple):
    """A subject that was read and is not yet stored."""

    id: str
    class_name: str
    licence: str
    pictures: list[Cutout]


def ingest(
    folder: str | Path,
    store: Store,
    config: IngestConfig,
    *,
    known_classes: Collection[str] | None = None,
    find: FindSubject | None = None,
    strict: bool = False,
    only: Collection[str] | None = None,
) -> Ingested:
    """Read every subject below `folder` into the store, or `only` those of these names.

    A bad subject is left out and reported as a fatal problem, or with `strict` raised as UserError.
    Also raises UserError when the folder is absent or no subject is usable. `known_classes`: the
    words that the generator was taught; None accepts any. `find` is asked for the mask of a picture
    without alpha and without a uniform background.
    """
    problems: list[Problem] = []
    subjects: list[Subject] = []
    folders = [path for path in subject_folders(Path(folder)) if only is None or path.name in only]
    twice = doubles(folders)
    for path in folders:
        notes: list[str] = []
        try:
            if path.name in twice:
                raise UserError(twice[path.name])
            found = _read_subject(path, config, known_classes, find, notes)
        except UserError as error:
            if strict:
                raise
            log.warning("subject '%s' is left out: %s", path.name, error)
            problems.append(Problem(subject=path.name, message=str(error), fatal=True))
        else:
            # Outside the try: what goes wrong in the store is not this subject's fault.
            subjects.append(_put(store, found))
        problems += [Problem(subject=path.name, message=note, fatal=False) for note in notes]
    if not subjects:
        raise UserError(
            f"{folder}: none of {len(folders)} subjects is usable. "
            + " | ".join(problem.message for problem in problems[:3])
        )
    log.info("%s: %d subjects, %d left out", folder, len(subjects), len(folders) - len(subjects))
    return Ingested(subjects=subjects, problems=problems)


def put_subject(
    store: Store,
    *,
    id: str,
    class_name: str,
    pictures: Sequence[Cutout],
    licence: str = "",
) -> Subject:
    """Store a subject whose references are ready: images (S, S, 3) uint8, masks (S, S) bool."""
    return _put(store, _Found(id, class_name, licence, list(pictures)))


def _put(store: Store, found: _Found) -> Subject:
    id, class_name, licence, pictures = found
    if not NAME.fullmatch(id):
        raise UserError(f"subject '{id}': a name has letters, digits, '-' and '_' only")
    if not pictures:
        raise UserError(f"subject '{id}': no picture; bring at least one")
    images: dict[str, bytes] = {}
    for i, (image, mask) in enumerate(pictures):
        if image.shape[:2] != mask.shape:
            raise ValueError(f"subject '{id}': picture {image.shape}, mask {mask.shape}")
        images[f"ref{i}.png"] = encode_png(np.where(mask[..., None], image, np.uint8(255)))
        images[f"refmask{i}.png"] = encode_png(mask)
    content = digest(b"\0".join([class_name.encode(), *images.values()]))[:16]
    # The licence is in the record, so it must be in the key, though no picture depends on it.
    key = content_key(STAGE, VERSION, {"id": id, "licence": licence}, inputs=[content])
    references = tuple(
        Reference(
            image=image_key(STAGE, key, f"ref{i}.png"),
            mask=image_key(STAGE, key, f"refmask{i}.png"),
        )
        for i in range(len(pictures))
    )
    subject = Subject(
        id=id, class_name=class_name, references=references, licence=licence, digest=content
    )
    if not store.has(STAGE, key):
        store.commit(STAGE, key, [subject], Subject, images=images, partition=id)
    return subject


def _read_subject(
    path: Path,
    config: IngestConfig,
    known_classes: Collection[str] | None,
    find: FindSubject | None,
    notes: list[str],
) -> _Found:
    if not NAME.fullmatch(path.name):
        raise UserError(f"{path}: a subject's folder is named with letters, digits, '-' and '_'")
    try:
        stay_inside(path, path.parent)
        card = card_of(path)
        files = pictures_of(path)
        class_name = class_name_of(path, card, known_classes)
        if len(files) > config.max_references:
            notes.append(f"{len(files)} pictures, the first {config.max_references} are used")
        finder = functools.partial(find, class_name=class_name) if find else None
        references = []
        for file in files[: config.max_references]:
            stay_inside(file, path)
            picture = read_picture(file, min_side=config.min_side, max_pixels=config.max_pixels)
            notes += [f"{file.name}: {note}" for note in picture.notes]
            references.append(_reference(file, picture, config, finder, notes))
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be read ({error.strerror})") from error
    return _Found(path.name, class_name, card.licence, references)


def _reference(
    file: Path, picture: Picture, config: IngestConfig, find: Finder | None, notes: list[str]
) -> Cutout:
    image, mask, note = cut_out(picture, config.size, config.tolerance, find)
    if note:
        notes.append(f"{file.name}: {note}")
        log.warning("%s: %s", file, note)
    if not mask.any():
        raise UserError(f"{file}: nothing is visible (alpha is 0 everywhere); replace or remove it")
    return image, mask
