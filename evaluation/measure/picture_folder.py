"""A folder of pictures in the documented layout, for people without a table.

DIR/references/<subject>/*.png        a folder of subjects (docs/own_subjects.md)
DIR/<model>/<subject>+<subject>--<anything>.png
DIR/<model>/<the same name>.txt       optional: the prompt; else the subjects' words
DIR/*.png                             without folders of models: one model

The same subjects and prompt in two models' folders are one scene.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.strict import decode_text
from focusdpo.evaluation.measure.picture_rows import (
    MOST_SUBJECTS,
    SEPARATORS,
    UNNAMED,
    Asked,
    PictureRow,
    PictureTable,
    Problem,
    spoken,
    subjects_in,
)
from focusdpo.pipeline.subjects.folders import is_picture, stay_inside, visible

REFERENCES = "references"
TAG = "--"
"""Ends the subjects in a picture's name."""


def read_folder(folder: Path, references: Path | None = None) -> PictureTable:
    """The pictures of a folder, model by model. UserError for one without pictures or references;
    what is wrong with a picture is a problem of the table."""
    table = PictureTable(str(folder))
    where = references or folder / REFERENCES
    if not where.is_dir():
        raise UserError(
            f"{folder}: no folder {REFERENCES}; put a folder per subject there, with its pictures, "
            "or give --references DIR"
        )
    known = subjects_in(where, table.problems)
    for number, (model, file) in enumerate(_pictures(folder, where), 1):
        try:
            stay_inside(file, folder)
            subjects = _subjects(file, known)
            table.rows.append(
                PictureRow(number, file, _prompt(file, subjects), subjects, (), model, None)
            )
        except UserError as error:
            table.problems.append(Problem(str(file), str(error).removeprefix(f"{file}: ")))
    if not table.rows and not table.problems:
        raise UserError(
            f"{folder}: no pictures; expected {folder}/<model>/<subject>+<subject>{TAG}1.png"
        )
    return table


def _pictures(folder: Path, references: Path) -> Iterator[tuple[str, Path]]:
    """(model, picture)."""
    models = [
        entry
        for entry in visible(folder)
        if entry.is_dir() and entry.resolve() != references.resolve() and entry.name != REFERENCES
    ]
    for path in [folder, *models]:
        model = UNNAMED if path == folder else path.name
        stay_inside(path, folder)
        yield from ((model, file) for file in visible(path) if is_picture(file) and file.is_file())


def _subjects(file: Path, known: dict[str, Asked]) -> tuple[Asked, ...]:
    names = SEPARATORS.split(file.stem.partition(TAG)[0])
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None:
        raise UserError(
            f"no references of '{unknown}'; a picture is named by its subjects, as in "
            f"cat+dog{TAG}1.png, and there are {', '.join(sorted(known)[:8]) or 'none'}"
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"subject '{twice}' is named twice")
    if len(names) > MOST_SUBJECTS:
        raise UserError(f"{len(names)} subjects; a picture has 1 to {MOST_SUBJECTS}")
    return tuple(known[name] for name in names)


def _prompt(file: Path, subjects: tuple[Asked, ...]) -> str:
    beside = file.with_suffix(".txt")
    if not beside.is_file():
        return spoken([subject.class_name for subject in subjects])
    stay_inside(beside, file.parent)
    return " ".join(decode_text(beside.read_bytes(), str(beside)).split())
