"""A folder of subjects, before any picture is read: whose folders, their cards, their class words.

DIR/<subject>/*.png|jpg|jpeg|webp     pictures of one subject; alpha is its mask
DIR/<subject>/subject.yaml            optional: class_name, licence
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from focusdpo.data_schemas.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
CARD = "subject.yaml"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class SubjectCard(BaseModel):
    """What subject.yaml may say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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
    files = sorted(one for one in path.iterdir() if not one.name.startswith("."))
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
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(
            f"{file}: {field}: {first['msg']}; allowed are {', '.join(SubjectCard.model_fields)}"
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
