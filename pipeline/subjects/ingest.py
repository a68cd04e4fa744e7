"""Stage ingest: a team's folders of pictures -> subjects in the store.

DIR/<subject>/*.png|jpg|jpeg|webp     pictures of one subject; alpha is its mask
DIR/<subject>/subject.yaml            optional: class_name, licence
"""

from __future__ import annotations

import difflib
import functools
import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.images import Picture, encode_png, read_picture
from focusdpo.data_schemas.strict import StrictModel, first_problem
from focusdpo.data_schemas.subjects import Reference, Subject
from focusdpo.pipeline.subjects.cutouts import Finder, cut_out
from focusdpo.store.artefacts import Store
from focusdpo.store.keys import content_key, digest, image_key

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
CARD = "subject.yaml"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class SubjectCard(StrictModel):
    """What subject.yaml may say."""

    class_name: str | None = Field(None, min_length=1, description="the word for it in prompts")
    licence: str = Field("", description="licence or owner of the pictures")


def clean_name(folder: str) -> str:
    """The class word that a folder's name suggests: "Teddy_bear-02" -> "teddy bear"."""
    return " ".join(re.sub(r"[^a-z]+", " ", folder.lower()).split())


def subject_folders(folder: Path) -> list[Path]:
    """Folders that may be subjects', by name; UserError when there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a folder with one folder per subject")
    folders = sorted(path for path in folder.iterdir() if _may_be_subject(path))
    if not folders:
        raise UserError(
            f"{folder}: no subject folders; expected {folder}/<subject>/*.png, .jpg or .webp"
        )
    return folders


def _may_be_subject(path: Path) -> bool:
    return not path.name.startswith((".", "__")) and (path.is_dir() or path.is_symlink())


def doubles(folders: Sequence[Path]) -> dict[str, str]:
    """Folder name -> what is wrong, for names that differ in case or separators only."""
    same: dict[str, list[str]] = {}
    for path in folders:
        same.setdefault(re.sub(r"[^a-z0-9]", "", path.name.lower()), []).append(path.name)
    return {
        name: f"subjects {names} have the same name but for case and separators; rename one"
        for names in same.values()
        if len(names) > 1
        for name in names
    }


def stay_inside(path: Path, folder: Path) -> None:
    """UserError when a link leads out of the folder."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{path}: a link that leads out of {folder}; copy the file there instead")


def pictures_of(path: Path) -> list[Path]:
    """A subject's pictures by name; UserError when there is none."""
    files = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    pictures = [file for file in files if file.suffix.lower() in SUFFIXES]
    if not pictures:
        others = sorted(file.name for file in files if file.name != CARD)[:3]
        raise UserError(
            f"{path}: no picture{f' (only {others})' if others else ''}; put at least one "
            ".png, .jpg or .webp there"
        )
    return pictures


def card_of(path: Path) -> SubjectCard:
    """What its subject.yaml says, nothing when there is none; UserError when it is not readable."""
    file = path / CARD
    if not file.exists():
        return SubjectCard()
    stay_inside(file, path)
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        if not isinstance(values, dict):
            raise UserError(f"{file}: expected lines such as 'class_name: cat'")
        return SubjectCard.model_validate(values)
    except ValidationError as error:
        raise UserError(
            f"{file}: {first_problem(error)}; allowed are {', '.join(SubjectCard.model_fields)}"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{file}: not readable YAML ({' '.join(str(error).split())})") from error


def class_name_of(path: Path, card: SubjectCard, known: Collection[str] | None) -> str:
    """The card's word, or the folder's; UserError when it is not `known` (None: any word is)."""
    name = card.class_name or clean_name(path.name)
    if card.class_name is None and known is not None and name not in known:
        # "my cat" -> "cat": the last words of a folder's name that are a known class.
        words = name.split()
        tails = (" ".join(words[start:]) for start in range(1, len(words)))
        name = next((tail for tail in tails if tail in known), name)
    if not name:
        raise UserError(f"{path}: its name has no letters; write class_name into {path / CARD}")
    if known is not None and name not in known:
        near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5)
        close = f" (near: {', '.join(near)})" if near else ""
        raise UserError(
            f"{path}: the generator does not know the class '{name}'{close}; write a known "
            f"class_name into {path / CARD}, or class_name: object"
        )
    return name


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
            read = _read_subject(path, config, known_classes, find, notes)
        except UserError as error:
            if strict:
                raise
            log.warning("subject '%s' is left out: %s", path.name, error)
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
