"""Tables of pictures: a row per picture, from CSV, JSONL or Parquet.

Columns: `image`, `subjects`; optional `prompt`, `model`, `seed`. `subjects` is a list of objects
(JSON in a CSV) with `name`, `class`, `references`, optional `masks` (one per reference) and `box`
(x0, y0, x1, y1: where the subject was asked to stand), or names with a ';' between, whose pictures
lie in a folder of subjects. Paths are relative to the table's folder and stay in it.

A row that cannot be measured is left out by file and line; the others go on. 100,000 rows are read
in seconds: equal subjects are one object, and folders are listed once.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.strict import decode_text
from focusdpo.pipeline.subjects.folders import (
    NAME,
    card_of,
    class_name_of,
    clean_name,
    files_of,
    stay_inside,
    subject_folders,
)

MOST_SUBJECTS = 10
COLUMNS = ("image", "prompt", "subjects", "model", "seed")
OF_A_SUBJECT = ("name", "class", "references", "masks", "box")
SEPARATORS = re.compile(r"\s*[;|+]\s*")
"""Between names in a cell."""
MOST_IN_A_CELL = 1_000_000
"""Characters; more is a quotation mark that nobody closed."""
UNNAMED = "model"
"""What a model is called where a table names none."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Problem:
    """A row, picture or subject that is left out, and why."""

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


@dataclass(frozen=True, slots=True)
class Asked:
    """A subject as rows name it."""

    name: str
    class_name: str
    references: tuple[Path, ...]
    masks: tuple[Path | None, ...]
    """One per reference; None: its alpha or background tells, or the judge looks for it."""


@dataclass(frozen=True, slots=True)
class PictureRow:
    """One picture to be measured."""

    line: int
    image: Path
    prompt: str
    subjects: tuple[Asked, ...]
    boxes: tuple[Box, ...]
    """Where each was asked to stand; () where nobody was."""
    model: str
    seed: int | None
    quarter: int | None = None
    """Which of the four pictures in a file's grid of 2 x 2; None: the file is one picture."""


@dataclass(slots=True)
class PictureTable:
    """What a table or folder holds."""

    source: str
    rows: list[PictureRow] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    layout: str = ""
    """The public benchmark that it is."""


class Places:
    """Names of files below a folder, checked; each folder is listed once."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self._real = Path(os.path.realpath(base))
        self._within: dict[str, frozenset[str] | None] = {}

    def file(self, name: str) -> Path:
        """The file of a name. UserError for one that is absent or leads out of the folder."""
        if not name or "\0" in name:
            raise UserError(f"'{name[:80]}' is no path")
        path = os.path.normpath(os.path.join(self.base, os.path.expanduser(name)))  # noqa: PTH111, PTH118
        head, tail = os.path.split(path)
        names = self._list(head)
        if names is None:
            raise UserError(
                f"'{name[:200]}' leads out of {self.base}; pictures lie below the table's folder, "
                "or below --within DIR"
            )
        if tail not in names:
            raise UserError(f"there is no picture {path}")
        file = Path(path)
        if file.is_symlink() and not file.resolve().is_relative_to(self._real):
            raise UserError(f"{path} is a link that leads out of {self.base}; copy the file there")
        return file

    def _list(self, folder: str) -> frozenset[str] | None:
        """The names in a folder; None for one outside."""
        if folder not in self._within:
            real = Path(os.path.realpath(folder))
            inside = real == self._real or real.is_relative_to(self._real)
            try:
                names = frozenset(os.listdir(folder)) if inside else None  # noqa: PTH208
            except OSError:
                names = frozenset()
            self._within[folder] = names
        return self._within[folder]


def read_table(
    path: Path, *, pictures: Path | None = None, references: Path | None = None
) -> PictureTable:
    """The rows of a table; `pictures`: the folder that its paths are relative to, its own without;
    `references`: a folder of subjects as build-dataset reads them, for rows that give names alone.

    UserError for a file that is no table, for other columns, and for a broken folder of subjects;
    what is wrong with a single row is a problem of the table.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such table; give a .csv, .jsonl or .parquet, or a folder")
    table = PictureTable(str(path))
    places = Places((pictures or path.parent).absolute())
    known = {} if references is None else subjects_in(references, table.problems)
    reader = _Reader(places, known)
    for line, values in _records(path, table.problems):
        where = f"{path}, line {line}"
        try:
            if isinstance(values, str):
                raise UserError(values)
            table.rows.append(reader.row(line, values))
        except UserError as error:
            table.problems.append(Problem(where, str(error)))
    if not table.rows and not table.problems:
        raise UserError(f"{path}: no rows; a row per picture is expected")
    return table


def subjects_in(folder: Path, problems: list[Problem]) -> dict[str, Asked]:
    """Name -> subject of a folder of subjects (docs/own_subjects.md)."""
    subjects = {}
    for path in subject_folders(folder):
        try:
            stay_inside(path, folder)
            if not NAME.fullmatch(path.name):
                raise UserError("a name has letters, digits, '-' and '_' only; rename the folder")
            files = files_of(path)
            for file in (*files.pictures, *filter(None, files.pictures.values())):
                stay_inside(file, path)
            word = class_name_of(path, card_of(files.card), None)
        except UserError as error:
            problems.append(Problem(str(path), str(error).removeprefix(f"{path}: ")))
        else:
            subjects[path.name] = Asked(
                path.name, word, tuple(files.pictures), tuple(files.pictures.values())
            )
    return subjects


class _Reader:
    """Rows from values; equal subjects are one object."""

    def __init__(self, places: Places, known: Mapping[str, Asked]) -> None:
        self._places, self._known = places, known
        self._parsed: dict[str, tuple[tuple[Asked, ...], tuple[Box, ...]]] = {}
        self._first: dict[str, tuple[Asked, int]] = {}

    def row(self, line: int, values: Mapping[str, Any]) -> PictureRow:
        """UserError for what cannot be measured."""
        image = values.get("image")
        if not isinstance(image, str) or not image.strip():
            raise UserError("no image; the column `image` names the picture's file")
        subjects, boxes = self._subjects(values.get("subjects"), line)
        prompt = str(values.get("prompt") or "").strip()
        return PictureRow(
            line=line,
            image=self._places.file(image.strip()),
            prompt=prompt or spoken([subject.class_name for subject in subjects]),
            subjects=subjects,
            boxes=boxes,
            model=str(values.get("model") or UNNAMED).strip(),
            seed=_whole_number(values.get("seed")),
        )

    def _subjects(self, value: Any, line: int) -> tuple[tuple[Asked, ...], tuple[Box, ...]]:
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
        if text not in self._parsed:
            self._parsed[text] = self._parse(value, line)
        return self._parsed[text]

    def _parse(self, value: Any, line: int) -> tuple[tuple[Asked, ...], tuple[Box, ...]]:
        items = _items(value)
        subjects = tuple(self._subject(item) for item in items)
        names = [subject.name for subject in subjects]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(
                f"subject '{twice}' is named twice; each of a picture's subjects has a name of its "
                "own"
            )
        if not 1 <= len(subjects) <= MOST_SUBJECTS:
            raise UserError(f"{len(subjects)} subjects; a picture has 1 to {MOST_SUBJECTS}")
        for subject in subjects:
            first, where = self._first.setdefault(subject.name, (subject, line))
            if first != subject:
                raise UserError(
                    f"subject '{subject.name}' has another class or other references than in line "
                    f"{where}; give it another name, or the same pictures"
                )
        boxes = [_box(item) for item in items]
        given = [box for box in boxes if box is not None]
        if given and len(given) < len(boxes):
            raise UserError("a box for some subjects only; give one for each of the row, or none")
        return subjects, tuple(given)

    def _subject(self, item: Mapping[str, Any]) -> Asked:
        name = str(item.get("name") or "").strip()
        if not NAME.fullmatch(name):
            raise UserError(
                f"subject '{name[:80]}': a name has letters, digits, '-' and '_' only; the word "
                "for it is its class"
            )
        unknown = sorted(set(item) - set(OF_A_SUBJECT))
        if unknown:
            raise UserError(
                f"subject '{name}': no field '{unknown[0]}'; there are {', '.join(OF_A_SUBJECT)}"
            )
        files = _texts(item.get("references"), name, "references")
        if not files:
            if name not in self._known:
                raise UserError(
                    f"subject '{name}' has no references; name its pictures, or give --references "
                    "DIR with a folder per subject"
                )
            return self._known[name]
        masks = _texts(item.get("masks"), name, "masks")
        if masks and len(masks) != len(files):
            raise UserError(f"subject '{name}': {len(files)} references and {len(masks)} masks")
        word = str(item.get("class") or item.get("class_name") or "").strip()
        return Asked(
            name,
            word or clean_name(name) or name,
            tuple(self._places.file(file) for file in files),
            tuple(self._places.file(mask) for mask in masks) if masks else (None,) * len(files),
        )


def spoken(words: Sequence[str]) -> str:
    """The prompt of a row that has none: its subjects' words."""
    phrases = [f"{'an' if word[:1].lower() in 'aeiou' else 'a'} {word}" for word in words]
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _items(value: Any) -> list[Mapping[str, Any]]:
    """A cell's subjects as objects."""
    if isinstance(value, str):
        text = value.strip()
        if not text.startswith(("[", "{")):
            return [{"name": name} for name in SEPARATORS.split(text) if name]
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"subjects are no JSON that can be read ({error})") from error
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple):
        raise UserError("no subjects; the column `subjects` says who was asked for")
    items = [{"name": subject} if isinstance(subject, str) else subject for subject in value]
    if not all(isinstance(subject, Mapping) for subject in items):
        raise UserError("a subject is an object with name, class, references, or a name")
    return [{key: item for key, item in subject.items() if item is not None} for subject in items]


def _texts(value: Any, name: str, what: str) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        return [part for part in re.split(r"\s*[;|]\s*", value.strip()) if part]
    if isinstance(value, list | tuple) and all(isinstance(text, str) for text in value):
        return list(value)
    raise UserError(f"subject '{name}': {what} are paths")


def _box(item: Mapping[str, Any]) -> Box | None:
    value = item.get("box")
    if value is None:
        return None
    numbers = list(value) if isinstance(value, list | tuple) else []
    plain = all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers)
    if len(numbers) != 4 or not plain or not (numbers[0] < numbers[2] and numbers[1] < numbers[3]):
        raise UserError(f"box {value}: expected x0, y0, x1, y1 in pixels with x0 < x1, y0 < y1")
    x0, y0, x1, y1 = (round(float(n)) for n in numbers)
    return x0, y0, x1, y1


def _whole_number(value: Any) -> int | None:
    if value in (None, ""):
        return None
    try:
        return int(float(value)) if not isinstance(value, int) else value
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"seed {str(value)[:40]!r} is no whole number") from error


def _records(path: Path, problems: list[Problem]) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """(line, values) of a table; a text in place of values says what is wrong with the line."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        return _parquet(path)
    if kind not in (".csv", ".tsv", ".txt", ".jsonl", ".ndjson"):
        raise UserError(f"{path}: a table is .csv, .jsonl or .parquet")
    try:
        text = decode_text(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    return _jsonl(path, text) if kind in (".jsonl", ".ndjson") else _csv(path, text)


def _jsonl(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    first = True
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            values = json.loads(content)
        except (ValueError, RecursionError) as error:
            yield line, f"broken JSON ({error}); one object a line is expected"
            continue
        if not isinstance(values, dict):
            yield line, "no JSON object; one object a line is expected"
            continue
        if first:
            _check_columns(path, list(values))
            first = False
        yield line, values


def _csv(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    head = next((line for line in text.splitlines() if line.strip()), "")
    signs = ",;\t|"
    delimiter = max(signs, key=head.count)
    csv.field_size_limit(MOST_IN_A_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if names is None:
                names = [cell.strip().lower() for cell in cells]
                _check_columns(path, names)
            elif len(cells) > len(names) and any(cell.strip() for cell in cells[len(names) :]):
                yield (
                    reader.line_num,
                    f"{len(cells)} cells, the head has {len(names)}; quote cells with a "
                    f"{delimiter!r} in them",
                )
            else:
                yield reader.line_num, dict(zip(names, cells, strict=False))
    except csv.Error as error:
        yield reader.line_num, f"no CSV from here on ({error}); is a quotation mark left open?"


def _parquet(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """Lines are rows, the first is 1."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _check_columns(path, names)
            wanted = [name for name in names if name.lower() in COLUMNS]
            line = 0
            for batch in file.iter_batches(4096, columns=wanted, use_threads=False):
                for values in batch.to_pylist():
                    line += 1
                    yield line, {name.lower(): value for name, value in values.items()}
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: not a readable Parquet table ({reason})") from error


def _check_columns(path: Path, names: Sequence[str]) -> None:
    lower = [name.lower() for name in names]
    lacking = [name for name in ("image", "subjects") if name not in lower]
    if lacking:
        raise UserError(
            f"{path}: no column `{lacking[0]}`; its columns are {', '.join(names)[:200]}, expected "
            f"are {', '.join(COLUMNS)} (docs/measure.md)"
        )
    twice = next((name for name in COLUMNS if lower.count(name) > 1), None)
    if twice:
        raise UserError(f"{path}: two columns `{twice}`; keep one")
