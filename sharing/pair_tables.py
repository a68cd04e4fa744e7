"""Preference sets of others -> pair records: a table, or the folder of a trainer's layout.

A table is CSV (from a spreadsheet as well), JSON lines or Parquet with a row per pair. Rows that
cannot be used are told by file and line, and the others are read. Files stay in the table's folder.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.strict import decode_text, first_problem
from focusdpo.pipeline.subjects.folders import SUFFIXES
from focusdpo.sharing.pair_records import BACKEND, NUM_SUBJECTS, OURS, ROWS, PairRecord

Values = Mapping[str, Any]
SAME = {
    "win": ("winner", "chosen", "img_win", "win_file_name"),
    "lose": ("loser", "rejected", "img_lose", "lose_file_name"),
    "prior": ("prior_file_name",),
    "pair_id": ("id",),
}
"""Column -> other names for it."""
PER_SUBJECT = {
    "reference": ("references", "references_file_names"),
    "class_name": ("class_names", "classes"),
    "subject_id": ("subject_ids", "subjects"),
    "reference_mask": ("reference_masks", "reference_masks_file_names"),
    "mask": ("masks", "masks_file_names"),
    "box": ("boxes",),
    "licence": ("licences",),
}
"""Of a subject -> columns that hold a list over the subjects; numbered ones go as well: mask_1."""
NUMBERED = {"class": "class_name", "subject": "subject_id"}
"""Short names of numbered columns, as `generate --batch` has them."""
PLAIN = ("prompt", "source", "mode", "split")


@dataclass(frozen=True)
class TableRow:
    """A pair of a table, not yet looked at."""

    where: str
    """File and line."""
    folder: Path
    record: PairRecord

    def path(self, name: str) -> Path:
        """A file that the record names. UserError for one that leads out of the folder."""
        path = self.folder / name
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise UserError(
                f"{self.where}: {name} leads out of {self.folder}; copy the file there, and name "
                "it relative to the table"
            )
        return path


@dataclass(frozen=True)
class PairTable:
    """What a table says."""

    rows: list[TableRow]
    problems: list[str]
    """Rows that cannot be used, by file and line."""


def read_pairs(path: Path) -> PairTable:
    """The rows of a table (.csv, .tsv, .jsonl, .parquet), or of a folder that `export pairs` or a
    trainer's own tools wrote. UserError when it is none of these, or has no row at all."""
    table = PairTable([], [])
    for file, lines in _sources(path):
        for line, values in lines:
            where = f"{file}, {'row' if file.suffix == '.parquet' else 'line'} {line}"
            try:
                if isinstance(values, UserError):
                    raise values
                row = TableRow(where, file.parent, _record(values))
                for name in row.record.files():
                    row.path(name)
                table.rows.append(row)
            except ValidationError as error:
                table.problems.append(f"{where}: {first_problem(error)}")
            except UserError as error:
                message = str(error)
                table.problems.append(
                    message if message.startswith(where) else f"{where}: {message}"
                )
    if not table.rows and not table.problems:
        raise UserError(f"{path}: no pairs; expected a row per pair")
    return table


Lines = Iterable[tuple[int, "Values | UserError"]]


def _sources(path: Path) -> Iterator[tuple[Path, Lines]]:
    if path.is_dir():
        yield from _of_folder(path)
        return
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder")
    readers: dict[str, Callable[[Path], Lines]] = {
        ".csv": _csv_lines,
        ".tsv": _csv_lines,
        ".jsonl": _json_lines,
        ".ndjson": _json_lines,
        ".parquet": _parquet_lines,
    }
    if path.suffix.lower() not in readers:
        raise UserError(f"{path}: expected {', '.join(sorted(readers))}, or a folder of pairs")
    yield path, readers[path.suffix.lower()](path)


_TABLES = (
    *("metadata.jsonl", ROWS, "metadata.csv", "metadata.parquet"),
    *("train.jsonl", "validation.jsonl", "train.parquet", "test.parquet"),
)
"""What tells the pairs of a folder; the first kind that is there does."""


def _of_folder(folder: Path) -> Iterator[tuple[Path, Lines]]:
    alone = [folder / name for name in _TABLES[:4] if (folder / name).is_file()]
    split = [folder / name for name in _TABLES[4:] if (folder / name).is_file()]
    if alone or split:
        for file in alone[:1] or split:
            yield from _sources(file)
    elif (folder / BACKEND).is_file():
        yield folder / BACKEND, _backend_lines(folder)
    else:
        raise UserError(
            f"{folder}: no pairs; expected {', '.join(_TABLES[:4])}, Flow-Factory's train.jsonl, "
            f"VeRL-Omni's train.parquet, or SimpleTuner's {BACKEND} with its folders"
        )


def _csv_lines(path: Path) -> Lines:
    """A spreadsheet's way to write is taken as it comes: byte order mark, semicolons or tabs,
    CRLF, quotes, empty lines."""
    text = decode_text(_bytes(path), str(path))
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    head: list[str] = []
    while True:
        try:
            cells = [cell.strip() for cell in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            yield reader.line_num, UserError(f"not CSV ({error})")
            continue
        if not any(cells):
            continue
        if not head:
            head = [cell.lower() for cell in cells]
            _check_head(head, f"{path}, line {reader.line_num}")
        elif len(cells) > len(head):
            message = f"{len(cells)} cells, the head has {len(head)}"
            yield reader.line_num, UserError(message)
        else:
            yield (
                reader.line_num,
                {name: cell for name, cell in zip(head, cells, strict=False) if cell},
            )


def _check_head(head: list[str], where: str) -> None:
    known = {*PLAIN, *SAME, *(other for others in SAME.values() for other in others)}
    known |= {
        f"{name}_{number}"
        for name in (*PER_SUBJECT, *NUMBERED)
        for number in range(1, NUM_SUBJECTS + 1)
    }
    unknown = [name for name in head if name and name not in known]
    twice = sorted({name for name in head if name and head.count(name) > 1})
    if unknown or twice:
        problem = f"no such column: {', '.join(unknown)}" if unknown else f"twice: {twice[0]}"
        raise UserError(
            f"{where}: {problem}. Columns are win, lose, prompt, prior, pair_id, source, and for "
            f"each subject {', '.join(f'{name}_1' for name in PER_SUBJECT)}"
        )


def _json_lines(path: Path) -> Lines:
    for number, line in enumerate(_bytes(path).removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, UserError(f"not a line of JSON ({error})")
            continue
        if isinstance(values, dict):
            yield number, values
        else:
            yield number, UserError(f"expected an object, found {type(values).__name__}")


def _parquet_lines(path: Path) -> Lines:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not readable Parquet ({error})") from error
    yield from enumerate(rows, 1)


def _backend_lines(folder: Path) -> Lines:
    """SimpleTuner's folders: winners by name, the loser and mask of the same name, the caption in a
    text file; references of <name>.png as references/<name>-0.png and so on."""
    try:
        backends = json.loads(_bytes(folder / BACKEND))
        sets = {backend["id"]: backend for backend in backends if "instance_data_dir" in backend}
        wins = [backend for backend in sets.values() if backend.get("conditioning_data")]
        for preferred in wins:
            paired = [sets[name] for name in preferred["conditioning_data"]]
            kinds = {
                backend["conditioning_type"]: backend["instance_data_dir"] for backend in paired
            }
            yield from _named_alike(folder, str(preferred["instance_data_dir"]), kinds)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder / BACKEND}: not a list of SimpleTuner's data backends ({error!r})"
        ) from error


def _named_alike(folder: Path, wins: str, kinds: Mapping[str, str]) -> Lines:
    losers = kinds["reference_strict"]
    masks = kinds.get("mask", kinds.get("segmentation"))
    pictures = sorted(
        file for file in (folder / wins).rglob("*") if file.suffix.lower() in SUFFIXES
    )
    for number, file in enumerate(pictures, 1):
        name = file.relative_to(folder / wins)
        caption = file.with_suffix(".txt")
        shown = sorted((folder / "references").glob(f"{name.with_suffix('')}-[0-9].*"))
        values: dict[str, Any] = {
            "win": f"{wins}/{name}",
            "lose": f"{losers}/{name}",
            "prompt": decode_text(_bytes(caption), str(caption)).strip(),
            "references": [str(path.relative_to(folder)) for path in shown],
        }
        if masks is not None and (folder / masks / name).is_file():
            values["prior"] = f"{masks}/{name}"
        yield number, values


def _record(values: Values) -> PairRecord:
    """A row of any of the layouts as a record."""
    record = _ours(values)
    if record is not None:
        return PairRecord.model_validate(record)
    if values.get("schema_version") == 2:
        return PairRecord.model_validate(_flow_factory(values))
    subjects = values.get("subjects")
    if isinstance(subjects, list) and any(isinstance(subject, dict) for subject in subjects):
        return PairRecord.model_validate(dict(values))
    return PairRecord.model_validate(_flat(values))


def _ours(values: Values) -> Any:
    """The record that `export pairs` has put into another's format; None without one."""
    for field in ("metadata", "extra_info"):
        inner = values.get(field)
        if isinstance(inner, dict) and inner.get(OURS):
            record = inner[OURS]
            try:
                return json.loads(record) if isinstance(record, str) else record
            except (ValueError, RecursionError) as error:
                raise UserError(f"{field}.{OURS}: not JSON ({error})") from error
    return None


def _flow_factory(values: Values) -> dict[str, Any]:
    """A V2 preference of one picture each."""

    def images(holder: Any, what: str) -> list[str]:
        try:
            media = holder["media"]
            if any(item["type"] != "image" for item in media):
                raise UserError(f"{what}: only pictures are read, no films and no sound")
            return [item["path"] for item in media]
        except (KeyError, TypeError) as error:
            raise UserError(f"{what}: expected media with type and path ({error!r})") from error

    supervision = values.get("supervision")
    if not isinstance(supervision, dict) or supervision.get("type") != "preference":
        raise UserError("supervision.type: expected 'preference', with chosen and rejected")
    sides = {name: images(supervision.get(name), name) for name in ("chosen", "rejected")}
    if any(len(paths) != 1 for paths in sides.values()):
        raise UserError("chosen and rejected: expected one picture each")
    given: Any = values.get("input")
    references = images(given, "input")
    return _flat({"prompt": given.get("prompt", ""), "references": references} | {
        name: paths[0] for name, paths in sides.items()
    })  # fmt: skip


def _flat(values: Values) -> dict[str, Any]:
    """Columns as a record's fields."""
    made = {name: values[name] for name in PLAIN if values.get(name)}
    for name, others in SAME.items():
        given = [values[key] for key in (name, *others) if values.get(key)]
        if given:
            made[name] = given[0]
    if isinstance(made.get("prompt"), list):  # messages of a chat
        messages = [message for message in made["prompt"] if isinstance(message, dict)]
        words = [
            message.get("content", "") for message in messages if message.get("role") == "user"
        ]
        made["prompt"] = "\n".join(words)
    made["subjects"] = _subjects(values)
    return made


def _subjects(values: Values) -> list[dict[str, Any]]:
    columns: dict[str, list[Any]] = {}
    for name, lists in PER_SUBJECT.items():
        given = next((values[key] for key in lists if values.get(key)), None)
        if given is not None and not isinstance(given, list):
            raise UserError(f"{lists[0]}: expected a list, one for each subject")
        columns[name] = given or [
            _numbered(values, name, number) for number in range(1, NUM_SUBJECTS + 1)
        ]
    num = max((at for at, reference in enumerate(columns["reference"], 1) if reference), default=0)
    if not num:
        raise UserError("no reference; each pair needs a picture of each of its subjects")
    for name, column in columns.items():
        if any(cell for cell in column[num:]) or (column[:num] and len(column) < num):
            raise UserError(
                f"{name}: {sum(map(bool, column))} given, {num} references; give one per subject"
            )
    return [
        {name: _box(column[at]) if name == "box" else column[at]
         for name, column in columns.items() if column[at]}
        for at in range(num)
    ]  # fmt: skip


def _numbered(values: Values, name: str, number: int) -> Any:
    short = next((key for key, long in NUMBERED.items() if long == name), name)
    return values.get(f"{name}_{number}") or values.get(f"{short}_{number}")


def _box(value: Any) -> Any:
    """Four numbers, of which a spreadsheet makes one text."""
    if not isinstance(value, str):
        return value
    try:
        return [float(part) for part in value.replace(",", " ").split()]
    except ValueError as error:
        raise UserError(f"box: expected x0 y0 x1 y1 in pixels, got '{value[:40]}'") from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
