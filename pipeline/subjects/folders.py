"""What a team's folder of subjects holds: which files are pictures, masks and cards, what is not.

DIR/<subject>/*.png|jpg|...           pictures of one subject; alpha is its mask
DIR/<subject>/<name>_mask.png         optional: the mask of <name>.*, white where the subject is
DIR/<subject>/subject.yaml            optional: class_name, licence, source, person, consent
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TypeVar

import yaml
from pydantic import Field, ValidationError

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.strict import StrictModel, first_problem, read_yaml

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif",
)  # fmt: skip
CARD = "subject.yaml"
LIKE_A_CARD = re.compile(r"subject\.ya?ml(\.txt)?|subject\.txt", re.IGNORECASE)
"""What a card is called by mistake: editors add .txt, other tools write .yml."""
MASK = re.compile(r"(?P<picture>.+)[._-]mask", re.IGNORECASE)
"""The stem of a mask's file."""
UNSEEN = ("thumbs.db", "desktop.ini")
"""What operating systems leave in folders, besides names with a dot first."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
LISTED = 3
"""So many files are named in a note, the others counted."""
CLASSES_LISTED = 60
PathT = TypeVar("PathT", bound=PurePath)


class SubjectCard(StrictModel):
    """What subject.yaml may say."""

    class_name: str | None = Field(None, min_length=1, description="the word for it in prompts")
    licence: str = Field("", description="licence or owner of the pictures")
    source: str = Field("", description="where the pictures come from")
    person: bool = Field(False, description="true: they show a person, who must have consented")
    consent: str = Field("", description="of a person: who consented, to what, and when")


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectFiles:
    """What a subject's folder holds."""

    pictures: Mapping[Path, Path | None]
    """Picture -> file of its mask, or None; by name."""
    card: Path | None
    notes: list[str]
    """What is ignored, and why."""


def clean_name(folder: str) -> str:
    """The class word that a folder's name suggests: "Teddy_bear-02" -> "teddy bear"."""
    return " ".join(re.sub(r"[^a-z]+", " ", folder.lower()).split())


def plain_name(name: str) -> str:
    """A name without case and separators, in which two subjects must differ. Between digits a
    separator counts: "toy-1-12" is not "toy-11-2"."""
    name = unicodedata.normalize("NFKC", name).casefold()
    numbers_apart = re.split(r"(?<=\d)[\W_]+(?=\d)", name)
    return "-".join(re.sub(r"[\W_]+", "", part) for part in numbers_apart)


def listed(names: Sequence[str], most: int = LISTED) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


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


def stray_pictures(folder: Path) -> list[Path]:
    """Pictures that lie in a folder itself, by name."""
    return [file for file in visible(folder) if is_picture(file) and file.is_file()]


def is_picture(file: PurePath) -> bool:
    """Whether a file's name is a picture's."""
    return file.suffix.lower() in SUFFIXES


def visible(folder: Path) -> list[Path]:
    """What a folder holds, by name, without what systems and tools hide there."""
    return sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith((".", "__")) and path.name.lower() not in UNSEEN
    )


def subjects_within(folder: Path) -> list[Path]:
    """The subjects' folders that a folder stands for: itself when it holds pictures, else those in
    it. UserError when it holds both, for then nobody can tell."""
    within = [path for path in visible(folder) if path.is_dir()]
    stray = stray_pictures(folder)
    if not within:
        return [folder]
    if not stray:
        return within
    full = [path.name for path in within if stray_pictures(path)]
    if not full:
        return [folder]
    raise UserError(
        f"{folder}: holds pictures ({listed([file.name for file in stray])}) and folders of "
        f"pictures ({listed(full)}), so it is one subject or many; move the pictures into a "
        "subject's folder, or the folders out of it"
    )


def doubles(folders: Iterable[Path]) -> dict[str, str]:
    """Folder name -> what is wrong, for names that differ in case or separators only."""
    same: dict[str, list[str]] = {}
    for path in folders:
        same.setdefault(plain_name(path.name), []).append(path.name)
    return {
        name: f"subjects {' and '.join(names)} have the same name but for case and separators; "
        "rename one"
        for names in same.values()
        if len(names) > 1
        for name in names
    }


def check_name(path: Path) -> None:
    """UserError when a folder's name cannot be a subject's."""
    if not NAME.fullmatch(path.name):
        raise UserError(
            f"{path}: a subject's folder is named with letters, digits, '-' and '_' (a to z, no "
            f"accents, no other scripts, no spaces); rename it, and write class_name into {CARD}"
        )


def stay_inside(path: Path, folder: Path) -> None:
    """UserError when a link leads out of the folder."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{path}: a link that leads out of {folder}; copy the file there instead")


def files_of(path: Path) -> SubjectFiles:
    """A subject's pictures by name with their masks, and its card; UserError when there is no
    picture, or more than one card."""
    files = visible(path)
    cards = [file for file in files if file.name == CARD or LIKE_A_CARD.fullmatch(file.name)]
    if len(cards) > 1:
        raise UserError(
            f"{path}: {' and '.join(file.name for file in cards)}: one card is read; keep {CARD}"
        )
    readable = [file for file in files if is_picture(file) and not file.is_dir()]
    masks = masks_among(readable)
    ignored: dict[str, list[str]] = {}
    for file in files:
        if file not in readable and file not in cards:
            ignored.setdefault(_why_ignored(file), []).append(file.name)
    notes = [f"{listed(names)}: ignored, {why}" for why, names in ignored.items()]
    if cards and cards[0].name != CARD:
        notes.append(f"{cards[0].name}: read as {CARD}; rename it")
    if not readable:
        others = [file.name for file in files if file not in cards]
        raise UserError(
            f"{path}: no picture{f' (only {listed(others)})' if others else ''}; put at least one "
            f".png, .jpg or .webp there{''.join(f' ({note})' for note in notes)}"
        )
    mask_of = {picture: mask for mask, picture in masks.items()}
    return SubjectFiles(
        pictures={file: mask_of.get(file) for file in readable if file not in masks},
        card=cards[0] if cards else None,
        notes=notes,
    )


def masks_among(pictures: Sequence[PathT]) -> dict[PathT, PathT]:
    """Of names alone: mask -> the picture that it belongs to: 00_mask.png -> 00.jpg."""
    by_stem = {file.stem.lower(): file for file in pictures}
    masks = {}
    for file in pictures:
        named = MASK.fullmatch(file.stem)
        picture = by_stem.get(named["picture"].lower()) if named else None
        if picture is not None:
            masks[file] = picture
    return masks


def _why_ignored(file: Path) -> str:
    suffix = file.suffix.lower()
    if file.is_dir():
        return "a folder within a subject's"
    if suffix in (".heic", ".heif"):
        return "HEIC is not read; save as JPEG or PNG"
    if suffix in (".mp4", ".mov", ".avi", ".mkv", ".webm"):
        return "a film; save frames as JPEG or PNG"
    return f"no picture that can be read (those are {', '.join(SUFFIXES)})"


def card_of(path: Path | None) -> SubjectCard:
    """What a card says, nothing when there is none; UserError when it is not readable."""
    if path is None:
        return SubjectCard()
    stay_inside(path, path.parent)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: not readable YAML ({' '.join(str(error).split())})") from error
    return parse_card(data, str(path))


def parse_card(data: bytes, where: str) -> SubjectCard:
    """A card from its bytes; UserError when they are none."""
    try:
        values = read_yaml(data, where, texts_only=True, flags=("person",)) or {}
        if not isinstance(values, dict):
            raise UserError(f"{where}: expected lines such as 'class_name: cat'")
        return SubjectCard.model_validate(values)
    except ValidationError as error:
        raise UserError(
            f"{where}: {first_problem(error)}; allowed are {', '.join(SubjectCard.model_fields)}"
        ) from error
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not readable YAML ({' '.join(str(error).split())})") from error


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
        raise UserError(
            f"{path}: the generator does not know the class '{name}'{known_classes(name, known)}; "
            f"write a known class_name into {path / CARD}, or class_name: object"
        )
    return name


def known_classes(name: str, known: Collection[str]) -> str:
    """The classes that are near to a word; where none is, all, or as many as can be read."""
    near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.6)
    if near:
        return f" (near: {', '.join(near)})"
    words = sorted(known)
    return f" (known: {listed(words, CLASSES_LISTED)})"
