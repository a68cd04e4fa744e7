"""Stage ingest: a team's folders of pictures (`folders`) -> subjects in the store."""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.images import Picture, encode_png, read_picture
from focusdpo.data_schemas.strict import StrictModel
from focusdpo.data_schemas.subjects import Origin, Reference, Subject
from focusdpo.pipeline.subjects.cutouts import cut_out
from focusdpo.pipeline.subjects.folders import (
    CARD,
    NAME,
    SubjectCard,
    card_of,
    check_name,
    class_name_of,
    doubles,
    files_of,
    listed,
    stay_inside,
    stray_pictures,
    subject_folders,
)
from focusdpo.pipeline.subjects.picture_checks import has_common_mark, light_of
from focusdpo.store.artefacts import Store
from focusdpo.store.keys import content_key, digest, image_key

VERSION = 2
STAGE = "subjects"
ORIGIN = "origin"
"""The table of a subject's artefact that says where its pictures come from; absent where nothing is
told."""
NOT_TOLD = Origin()

log = logging.getLogger(__name__)

Cutout = tuple[NDArray[np.uint8], NDArray[np.bool_]]
"""A reference's image (S, S, 3), white outside the mask, and its mask (S, S)."""


class FindSubject(Protocol):
    """Where a photograph's subject is."""

    def __call__(self, image: NDArray[np.uint8], *, class_name: str) -> NDArray[np.bool_] | None:
        """Mask (H, W) of the best instance in a picture (H, W, 3); None when there is none."""
        ...


class IngestConfig(StrictModel):
    """How pictures become references."""

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
    origin: Origin


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
    pictured: dict[frozenset[str], str] = {}
    folders = [path for path in subject_folders(Path(folder)) if only is None or path.name in only]
    twice = doubles(folders)
    for path in folders:
        notes: list[str] = []
        try:
            check_name(path)
            if path.name in twice:
                raise UserError(twice[path.name])
            read = _read_subject(path, config, known_classes, find, notes)
            first = pictured.setdefault(_looks(read.pictures), path.name)
            if first != path.name:
                raise UserError(
                    f"{path}: has the same pictures as '{first}'; remove one of the two folders"
                )
        except UserError as error:
            if strict:
                raise
            log.info("subject '%s' is left out: %s", path.name, error)
            problems.append(Problem(subject=path.name, message=str(error), fatal=True))
        else:
            # Outside the try: what goes wrong in the store is not this subject's fault.
            subjects.append(put_subject(store, **read._asdict()))
        problems += [Problem(subject=path.name, message=note, fatal=False) for note in notes]
    if not subjects:
        raise UserError(
            f"{folder}: none of {len(folders)} subjects is usable. "
            + " | ".join(problem.message for problem in problems[:3])
        )
    stray = [] if only is not None else [file.name for file in stray_pictures(Path(folder))]
    if stray:
        log.warning(
            "%s: %s: ignored, beside the subjects' folders; each subject has a folder of its own",
            folder, listed(stray),
        )  # fmt: skip
    log.info("%s: %d subjects, %d left out", folder, len(subjects), len(folders) - len(subjects))
    return Ingested(subjects=subjects, problems=problems)


def put_subject(
    store: Store,
    *,
    id: str,
    class_name: str,
    pictures: Sequence[Cutout],
    licence: str = "",
    origin: Origin = NOT_TOLD,
) -> Subject:
    """Store a subject whose references are ready: images (S, S, 3) uint8, masks (S, S) bool."""
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
    origin_field = {} if origin == NOT_TOLD else {ORIGIN: asdict(origin)}
    key = content_key(
        STAGE, VERSION, {"id": id, "licence": licence, **origin_field}, inputs=[content]
    )
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
        more: dict[str, tuple[type, list[Origin]]] = (
            {ORIGIN: (Origin, [origin])} if origin_field else {}
        )
        store.commit(STAGE, key, [subject], Subject, images=images, more=more, partition=id)
    return subject


def origin_of(store: Store, artefact: str) -> Origin:
    """What is told of the subject whose pictures an artefact holds."""
    if f"{ORIGIN}.parquet" not in store.artefact(STAGE, artefact).files:
        return NOT_TOLD
    (origin,) = store.read(STAGE, artefact, Origin, table=ORIGIN)
    return origin


def _read_subject(
    path: Path,
    config: IngestConfig,
    known_classes: Collection[str] | None,
    find: FindSubject | None,
    notes: list[str],
) -> _Found:
    try:
        stay_inside(path, path.parent)
        files = files_of(path)
        card = card_of(files.card)
        _require_consent(path, card)
        notes += files.notes
        class_name = class_name_of(path, card, known_classes)
        if len(files.pictures) > config.max_references:
            notes.append(
                f"{len(files.pictures)} pictures, the first {config.max_references} are used"
            )
        finder = functools.partial(find, class_name=class_name) if find else None
        references = []
        light: list[NDArray[np.float64]] = []
        files_by_note: dict[str, list[str]] = {}
        for file, mask in list(files.pictures.items())[: config.max_references]:
            picture = _read(file, mask, config)
            image, shape, texts = cut_out(picture, config.size, config.tolerance, finder, file)
            references.append((image, shape))
            light.append(light_of(picture.image))
            for text in [*picture.notes, *texts]:
                files_by_note.setdefault(text, []).append(file.name)
        notes += [f"{listed(names)}: {text}" for text, names in files_by_note.items()]
        if has_common_mark(light):
            notes.append(
                "all pictures share a pattern at one place, as a watermark or logo is: the pairs "
                "would teach it; bring pictures without"
            )
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be read ({error.strerror})") from error
    origin = Origin(source=card.source, person=card.person, consent=card.consent.strip())
    return _Found(path.name, class_name, card.licence, references, origin)


def _require_consent(path: Path, card: SubjectCard) -> None:
    if card.person and not card.consent.strip():
        raise UserError(
            f"{path}: a person, and no consent; write who consented, to what and when, into "
            f"{path / CARD} (consent: ...), or leave the subject out"
        )
    if card.consent and not card.person:
        raise UserError(f"{path / CARD}: consent is for a person; write person: true as well")


def _read(file: Path, mask: Path | None, config: IngestConfig) -> Picture:
    """A picture; its alpha is its mask's lightness where it has a mask."""
    limits = {"min_side": config.min_side, "max_pixels": config.max_pixels}
    stay_inside(file, file.parent)
    picture = read_picture(file, **limits)
    if mask is None:
        return picture
    stay_inside(mask, file.parent)
    return with_mask(picture, file, read_picture(mask, **limits), mask)


def with_mask(picture: Picture, file: Path, drawn: Picture, mask: Path) -> Picture:
    """A picture with a drawn mask's lightness as its alpha. UserError, which names the files, where
    their sizes differ."""
    if drawn.image.shape != picture.image.shape:
        sizes = [f"{one.image.shape[1]} x {one.image.shape[0]}" for one in (drawn, picture)]
        raise UserError(
            f"{mask}: a mask of {sizes[0]} pixels for a picture of {sizes[1]}, {file.name}; save "
            "both with one size, or rename the file if it is no mask"
        )
    # A mask may be drawn in white or cut out.
    light = drawn.image.max(axis=2)
    alpha = light if drawn.alpha is None else np.minimum(light, drawn.alpha)
    return replace(picture, alpha=alpha)


def _looks(pictures: Sequence[Cutout]) -> frozenset[str]:
    """What two subjects with the same pictures have in common, in whatever order."""
    return frozenset(digest(image.tobytes() + mask.tobytes()) for image, mask in pictures)
