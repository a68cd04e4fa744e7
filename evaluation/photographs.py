"""The public DreamBooth dataset's folder as it is: photographs, classes, prompts.

DIR/<subject>/*.jpg              photographs of one subject
DIR/prompts_and_classes.txt      "subject_name,class" lines, then two lists of prompts

DIR may also be the checkout of github.com/google/dreambooth, which holds it as `dataset`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.images import read_picture
from focusdpo.pipeline.parts import Image

PROMPTS = "prompts_and_classes.txt"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
GET = "get it with `git clone https://github.com/google/dreambooth`"
SLOT = "{}"
"""Where a template takes the class word."""
_HEADINGS = {"Classes": "classes", "Object Prompts": "objects", "Live Subject Prompts": "live"}
_TEMPLATE = re.compile(r"""(['"])(?P<text>.*)\1\s*\.format\(""")
_TOKEN, _CLASS = "{0} ", "{1}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PhotoSubject:
    """A subject with at least one photograph."""

    name: str
    class_name: str
    files: tuple[Path, ...]
    """By file name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhotoFolder:
    """What the folder holds; photographs are read when they are needed."""

    root: Path
    classes: Mapping[str, str]
    """Every listed subject, photographed or not, and its class word."""
    object_prompts: tuple[str, ...]
    """With `SLOT` for the class word, without the rare token that DreamBooth learns."""
    live_prompts: tuple[str, ...]
    subjects: Mapping[str, PhotoSubject]
    """The listed subjects that have a folder."""


def open_photographs(folder: str | Path) -> PhotoFolder:
    """The dataset in `folder`. UserError for an absent folder, an absent, unreadable or incomplete
    prompts_and_classes.txt, and a subject's folder without a photograph."""
    root = _root(Path(folder))
    classes, objects, live = parse_prompts(_read(root / PROMPTS), str(root / PROMPTS))
    subjects = {
        name: PhotoSubject(name=name, class_name=word, files=_photographs(root / name))
        for name, word in classes.items()
        if (root / name).is_dir()
    }
    if not subjects:
        raise UserError(
            f"{root}: no folder of any listed subject ({', '.join(list(classes)[:3])}, ...); {GET}"
        )
    return PhotoFolder(
        root=root, classes=classes, object_prompts=objects, live_prompts=live, subjects=subjects
    )


def read_photograph(path: Path) -> Image:
    """(H, W, 3), upright, on white where it is transparent. UserError names the file."""
    picture = read_picture(path)
    if picture.alpha is None:
        return picture.image
    weight = picture.alpha[..., None].astype(np.float32) / np.float32(255)
    return np.rint(picture.image * weight + 255 * (1 - weight)).astype(np.uint8)


def parse_prompts(
    text: str, where: str = PROMPTS
) -> tuple[dict[str, str], tuple[str, ...], tuple[str, ...]]:
    """Subject -> class word, object prompts and live subjects' prompts, in the file's order.

    'a {0} {1} in the snow' (rare token, class word) becomes 'a {} in the snow'. UserError names
    `where` and what is missing or malformed.
    """
    classes: dict[str, str] = {}
    prompts: dict[str, list[str]] = {"objects": [], "live": []}
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if line in _HEADINGS:
            section = _HEADINGS[line]
        elif section == "classes" and "," in line and line != "subject_name,class":
            name, _, word = line.partition(",")
            if not name.strip() or not word.strip() or name.strip() in classes:
                raise UserError(f"{where}, line {number}: expected 'subject,class', each once")
            classes[name.strip()] = word.strip()
        elif section in prompts and (match := _TEMPLATE.search(line)):
            prompts[section].append(_template(match["text"], f"{where}, line {number}"))
    lacking = [
        heading
        for heading, key in _HEADINGS.items()
        if not (classes if key == "classes" else prompts[key])
    ]
    if lacking:
        raise UserError(f"{where}: nothing under {', '.join(map(repr, lacking))}; {GET}")
    return classes, tuple(prompts["objects"]), tuple(prompts["live"])


def _template(text: str, where: str) -> str:
    if text.count(_CLASS) != 1 or text.count(_TOKEN) != 1:
        raise UserError(f"{where}: expected one {{0}} and one {{1}} in '{text}'")
    return text.replace(_TOKEN, "").replace(_CLASS, SLOT)


def _root(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"data: {folder} is no folder; {GET}, or give the folder that holds it")
    for root in (folder, folder / "dataset"):
        if (root / PROMPTS).is_file():
            return root
    raise UserError(f"data: {folder} holds no {PROMPTS}; {GET}, or give the folder that holds it")


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error}); {GET}") from error


def _photographs(folder: Path) -> tuple[Path, ...]:
    try:
        files = sorted(
            path
            for path in folder.iterdir()
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
        )
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}); {GET}") from error
    if not files:
        raise UserError(
            f"{folder}: no photograph ({', '.join(SUFFIXES)}); remove the empty folder, or {GET}"
        )
    return tuple(files)
