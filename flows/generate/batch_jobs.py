"""`focusdpo generate --batch jobs.csv`: many pictures by one set of models, stopped and gone on.

    prompt,reference_1,class_1,reference_2,class_2,seeds,out
    a cat and a dog on snow,tom.png,cat,rex.png,dog,0-3,snow/both.png

References lie relative to the CSV, `out` relative to the folder of results. Several seeds give a
contact sheet.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.prompts import MOST_SUBJECTS
from focusdpo.flows.generate.inference import (
    MAX_SEED,
    About,
    Generator,
    check_prompt,
    read_about,
    sheet,
)

SUBJECTS = [(f"reference_{i}", f"class_{i}") for i in range(1, MOST_SUBJECTS + 1)]
COLUMNS = ("prompt", *(name for pair in SUBJECTS for name in pair), "seeds", "out")
REQUIRED = ("reference_1", "class_1", "out")
MAX_PICTURES = 64
"""Of one row."""
SHOWN = 20
"""Problems that are told at once."""
_SEEDS = re.compile(r"\d{1,10}(-\d{1,10})?")
_OUT = re.compile(r"[^\x00-\x1f\x7f\\:*?\"<>|]+\.png")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One row."""

    row: int
    """In the file, the head being row 1, as a spreadsheet counts."""
    prompt: str | None
    subjects: tuple[tuple[str, str], ...]
    """(file, class word)."""
    seeds: tuple[int, ...]
    out: str


@dataclass(frozen=True)
class BatchResult:
    """What became of the rows."""

    painted: list[str]
    skipped: list[str]
    """Finished before."""
    failed: dict[int, str]
    """Row -> why."""


def parse_seeds(text: str) -> tuple[int, ...]:
    """ "0, 4-6" -> (0, 4, 5, 6). UserError."""
    seeds: list[int] = []
    for part in text.split(","):
        if not _SEEDS.fullmatch(part.strip()):
            raise UserError(f"'{part.strip()[:40]}' is no seed; write numbers and ranges: 0,4-6")
        first, _, last = part.strip().partition("-")
        low, high = int(first), int(last or first)
        if not low <= high <= MAX_SEED:
            raise UserError(f"'{part.strip()}': a range goes up, and to {MAX_SEED} at most")
        if len(seeds) + high - low + 1 > MAX_PICTURES:
            raise UserError(f"more than {MAX_PICTURES} seeds")
        seeds += range(low, high + 1)
    return tuple(seeds)


def parse_jobs(text: str, where: str = "jobs.csv") -> list[Job]:
    """All rows; UserError with row and column of every problem."""
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise UserError(f"{where}: not CSV ({error}); save it as comma-separated UTF-8") from error
    head = [name.strip() for name in rows[0]] if rows else []
    _check_head(head, where)
    jobs, problems = [], []
    outs: dict[str, int] = {}
    for number, cells in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(head):
            problems.append(f"row {number}: {len(cells)} cells, the head has {len(head)}")
            continue
        row = {name: cell.strip() for name, cell in zip(head, cells, strict=True)}
        job, wrong = _job(number, row)
        problems += [f"row {number}, column {column}: {what}" for column, what in wrong]
        # Names that differ in case alone are one file on some disks.
        if job.out and (first := outs.setdefault(job.out.casefold(), number)) != number:
            problems.append(f"row {number}, column out: the same as in row {first}")
        jobs.append(job)
    _tell(problems, where)
    if not jobs:
        raise UserError(f"{where}: no rows below the head")
    return jobs


def _check_head(head: Sequence[str], where: str) -> None:
    unknown = [name for name in head if name not in COLUMNS]
    missing = [name for name in REQUIRED if name not in head]
    twice = sorted({name for name in head if head.count(name) > 1})
    if unknown or missing or twice:
        problems = [
            f"no such column: {', '.join(repr(name[:40]) for name in unknown)}" if unknown else "",
            f"missing: {', '.join(missing)}" if missing else "",
            f"twice: {', '.join(twice)}" if twice else "",
        ]
        raise UserError(
            f"{where}, row 1: {'; '.join(filter(None, problems))}. Columns are {', '.join(COLUMNS)}"
        )


def _job(number: int, row: Mapping[str, str]) -> tuple[Job, list[tuple[str, str]]]:
    wrong: list[tuple[str, str]] = []

    def checked(column: str, made: Callable[[str], object]) -> None:
        try:
            made(row[column])
        except UserError as error:
            wrong.append((column, str(error)))

    if row.get("prompt"):
        checked("prompt", check_prompt)
    seeds: tuple[int, ...] = (0,)
    if row.get("seeds"):
        try:
            seeds = parse_seeds(row["seeds"])
        except UserError as error:
            wrong.append(("seeds", str(error)))
    subjects: list[tuple[str, str]] = []
    for at, (file, word) in enumerate(SUBJECTS):
        pair = row.get(file, ""), row.get(word, "")
        if all(pair):
            if len(subjects) < at:
                wrong.append((file, f"given, but {SUBJECTS[at - 1][0]} is empty"))
            subjects.append(pair)
        elif any(pair):
            wrong.append((file if pair[1] else word, "empty; references and classes go in pairs"))
    if not any(row.get(name) for name in SUBJECTS[0]):
        wrong.append((SUBJECTS[0][0], "empty; at least one reference is needed"))
    checked("out", check_out)
    job = Job(
        row=number,
        prompt=row.get("prompt") or None,
        subjects=tuple(subjects),
        seeds=seeds,
        out=row["out"],
    )
    return job, wrong


def check_out(text: str) -> str:
    """A relative path of a .png that stays in its folder. UserError otherwise."""
    path = PurePosixPath(text)
    if not _OUT.fullmatch(text) or path.is_absolute() or ".." in path.parts or path.stem == "":
        raise UserError(f"'{text[:80]}': expected a relative path that ends in .png, without '..'")
    return text


def read_jobs(path: Path, generator: Generator) -> list[Job]:
    """The rows of a file, all checked: words, pictures, seeds. Loads no model. UserError with row
    and column of every problem."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    jobs = [_placed(job, path.parent) for job in parse_jobs(text, str(path))]
    known: dict[str, str | None] = {}
    _tell([problem for job in jobs for problem in _problems(job, generator, known)], str(path))
    return jobs


def _placed(job: Job, folder: Path) -> Job:
    subjects = tuple((str(folder / file), word) for file, word in job.subjects)
    return Job(row=job.row, prompt=job.prompt, subjects=subjects, seeds=job.seeds, out=job.out)


def _problems(job: Job, generator: Generator, known: dict[str, str | None]) -> Iterator[str]:
    """`known`: what is wrong with a picture that many rows name, found once."""
    for at, (file, word) in enumerate(job.subjects, start=1):
        try:
            generator.check([word], job.seeds)
        except UserError as error:
            yield f"row {job.row}, column class_{at}: {error}"
        if file not in known:
            try:
                generator.picture(file)
                known[file] = None
            except UserError as error:
                known[file] = str(error)
        if known[file]:
            yield f"row {job.row}, column reference_{at}: {known[file]}"


def run_jobs(
    jobs: Sequence[Job], generator: Generator, out: Path, watch: Callable[[int, int], None]
) -> BatchResult:
    """Paint what is not there yet; a row that fails is told and the others go on."""
    import torch

    result = BatchResult([], [], {})
    for at, job in enumerate(jobs):
        watch(at, len(jobs))
        target = out / job.out
        try:
            about = generator.about(job.prompt, job.subjects, job.seeds)
            if _is_finished(target, about):
                result.skipped.append(job.out)
                continue
            sheet(generator(job.prompt, job.subjects, job.seeds)).save(target)
            result.painted.append(job.out)
        except UserError as error:
            result.failed[job.row] = str(error)
        except torch.OutOfMemoryError as error:
            result.failed[job.row] = f"the accelerator's memory is not enough ({error})"
    watch(len(jobs), len(jobs))
    return result


def _is_finished(target: Path, about: About) -> bool:
    """Whether this very order's picture is there. UserError when something is that no `generate`
    made: that is not to be written over."""
    if not target.exists():
        return False
    before = read_about(target)
    return before.model_copy(update={"columns": 1}).as_made() == about.as_made()


def _tell(problems: Sequence[str], where: str) -> None:
    if problems:
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise UserError("\n".join([f"{where}: not started", *problems[:SHOWN], *more]))
