"""Public benchmarks' folders as they are published, read as tables of pictures.

XVerseBench (github.com/bytedance/XVerse): a list of samples in eval/tools/XVerseBench_<kind>.json,
whose references lie in the checkout; a model's pictures as `<index>_<prompt>.png`, four in a grid
of 2 x 2, as the published scripts save them. Its DPG, aesthetics and face scores need judges that
are not here; what is measured is this project's table on the same prompts and references.

MultiBanana (github.com/matsuolab/multibanana): <task>/<set>_<n>.jpg, <set>_prompt.txt and
<set>_generated.jpg. It tells no words for its references and its own scores are a language model's;
tasks with a background among the references are left out, for a background is nobody.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.scenes import stable_id
from focusdpo.data_schemas.strict import decode_text
from focusdpo.evaluation.folder import read_json
from focusdpo.evaluation.measure.config import LayoutName
from focusdpo.evaluation.measure.picture_rows import (
    MOST_SUBJECTS,
    UNNAMED,
    Asked,
    PictureRow,
    PictureTable,
    Places,
    Problem,
)
from focusdpo.pipeline.subjects.folders import is_picture, stay_inside, visible

QUARTERS = 4
"""Pictures in a file of XVerseBench's results."""
GET_XVERSE = "git clone https://github.com/bytedance/XVerse, and give it as --references"
_INDEX = re.compile(r"(\d+)_.*")
_GENERATED = re.compile(r"(?P<set>.+)_generated")
_REFERENCE = re.compile(r"(?P<set>.+)_(?P<number>\d+)")


@dataclass(frozen=True)
class Layout:
    """A benchmark's folder."""

    about: str
    read: Callable[[Path, Path | None], PictureTable]
    """Results, and the benchmark's own folder where it is another, to a table."""


def read_layout(name: LayoutName, results: Path, bench: Path | None) -> PictureTable:
    """The pictures of a benchmark. UserError for folders that are not as it publishes them."""
    if not results.is_dir():
        raise UserError(f"{results}: no folder; --layout {name} reads a folder of results")
    table = LAYOUTS[name].read(results, bench)
    table.layout = name
    if not table.rows and not table.problems:
        raise UserError(f"{results}: holds no result of {name} ({LAYOUTS[name].about})")
    return table


def _models(results: Path, holds: Callable[[Path], bool]) -> Iterator[tuple[str, Path]]:
    """(model, its folder): the folder itself where it holds results, else those in it."""
    if holds(results):
        yield UNNAMED, results
        return
    for path in visible(results):
        if path.is_dir():
            stay_inside(path, results)
            yield path.name, path


def _xverse(kind: str) -> Callable[[Path, Path | None], PictureTable]:
    def read(results: Path, bench: Path | None) -> PictureTable:
        if bench is None:
            raise UserError(f"--layout xversebench-{kind}: its prompts are needed; {GET_XVERSE}")
        listed = bench / "eval" / "tools" / f"XVerseBench_{kind}.json"
        samples = read_json(listed, GET_XVERSE)
        if not isinstance(samples, list):
            raise UserError(f"{listed}: expected a list of samples; {GET_XVERSE}")
        by_index = {str(_field(one, "index", listed)): one for one in samples}
        table, places = PictureTable(str(results)), Places(bench.absolute())
        for model, folder in _models(results, lambda path: any(path.glob("[0-9]*_*.png"))):
            for file in visible(folder):
                named = _INDEX.fullmatch(file.stem)
                if named is None or not is_picture(file):
                    continue
                try:
                    stay_inside(file, folder)
                    if named[1] not in by_index:
                        raise UserError(f"{listed.name} has no sample {named[1]}")
                    _add_xverse(table, places, by_index[named[1]], model, file, listed)
                except UserError as error:
                    table.problems.append(Problem(str(file), str(error)))
        return table

    return read


def _add_xverse(
    table: PictureTable, places: Places, sample: Any, model: str, file: Path, listed: Path
) -> None:
    told = _field(sample, "modulation", listed)[0]
    words = [str(one[1]) for one in _field(told, "use_words", listed)]
    images = [str(_field(one, "image_path", listed)) for one in _field(told, "src_inputs", listed)]
    if len(words) != len(images):
        raise UserError(f"{listed.name}: {len(images)} references and {len(words)} words")
    subjects = tuple(
        _nameless(word, places.file(image)) for word, image in zip(words, images, strict=True)
    )
    prompt = str(_field(sample, "prompt", listed))
    for quarter in range(QUARTERS):
        table.rows.append(
            PictureRow(
                len(table.rows) + 1, file, prompt, subjects, (), model, quarter, quarter=quarter
            )
        )


def _field(value: Any, name: str, where: Path) -> Any:
    if not isinstance(value, Mapping) or name not in value:
        raise UserError(f"{where}: a sample without '{name}'; is it XVerseBench as published?")
    return value[name]


def _nameless(word: str, reference: Path) -> Asked:
    """A subject that has a picture and no name: called by its file."""
    stem = re.sub(r"[^A-Za-z0-9]+", "-", reference.stem).strip("-")[:32] or "subject"
    return Asked(f"{stem}-{stable_id(reference)[:6]}", word, (reference,), (None,))


def _multibanana(results: Path, bench: Path | None) -> PictureTable:
    table = PictureTable(str(results))
    for model, folder in _models(results, lambda path: any(path.glob("*/*_generated.*"))):
        for task in (one for one in visible(folder) if one.is_dir()):
            try:
                stay_inside(task, folder)
                if "back" in task.name.split("_"):
                    raise UserError(
                        "its references include a background, which is nobody: not measured"
                    )
                _add_task(table, model, task)
            except UserError as error:
                table.problems.append(Problem(str(task), str(error).removeprefix(f"{task}: ")))
    return table


def _add_task(table: PictureTable, model: str, task: Path) -> None:
    files = [file for file in visible(task) if is_picture(file) and file.is_file()]
    references: dict[str, list[tuple[int, Path]]] = {}
    for file in files:
        if named := _REFERENCE.fullmatch(file.stem):
            references.setdefault(named["set"], []).append((int(named["number"]), file))
    for file in files:
        named = _GENERATED.fullmatch(file.stem)
        if named is None:
            continue
        try:
            stay_inside(file, task)
            own = [path for _, path in sorted(references.get(named["set"], []))]
            for path in own:
                stay_inside(path, task)
            if not 1 <= len(own) <= MOST_SUBJECTS:
                raise UserError(f"{len(own)} references; a picture has 1 to {MOST_SUBJECTS}")
            told = task / f"{named['set']}_prompt.txt"
            if not told.is_file():
                raise UserError(f"{told.name} is absent")
            prompt = " ".join(decode_text(told.read_bytes(), str(told)).split())
            subjects = tuple(_nameless("object", path) for path in own)
            table.rows.append(
                PictureRow(len(table.rows) + 1, file, prompt, subjects, (), model, None)
            )
        except UserError as error:
            table.problems.append(Problem(str(file), str(error)))


LAYOUTS: dict[LayoutName, Layout] = {
    "xversebench-single": Layout("<index>_<prompt>.png, 2 x 2 pictures each", _xverse("single")),
    "xversebench-multi": Layout("<index>_<prompt>.png, 2 x 2 pictures each", _xverse("multi")),
    "multibanana": Layout("<task>/<set>_generated.jpg beside its references", _multibanana),
}
"""Name -> the benchmark."""
