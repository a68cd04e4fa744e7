"""Public benchmarks' folders as they are published, read as tables of pictures.

XVerseBench (github.com/bytedance/XVerse): a list of samples in eval/tools/XVerseBench_<kind>.json,
whose references lie in the checkout; a model's pictures as `<index>_<prompt>.png`, four in a grid
of 2 x 2, as the published scripts save them. Its DPG, aesthetics and face scores need judges that
are not here; what is measured is this project's table on the same prompts and references.

MultiBanana (github.com/matsuolab/multibanana): <task>/<set>_<n>.jpg, <set>_prompt.txt and
<set>_generated.jpg. It tells no words for its references and its own scores are a language model's;
tasks with a background among the references are left out, for a background is nobody.

SCR's 75 prompts of 2 to 10 subjects (github.com/ZHIHANCHEN03, arXiv 2603.26078): a folder per
prompt, <prompt>/<seed>.png beside a meta.json that tells prompt and subjects of each; references in
the checkout's val_dataset/.

PSRBench (github.com/wang-shulei/PSR): seven lists of samples, <subset>.json, whose `input_path` lie
in the benchmark's folder; results are the same lists with a `result_path` in each sample.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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
from focusdpo.pipeline.parts import Image
from focusdpo.pipeline.subjects.folders import is_picture, stay_inside, visible

QUARTERS = 4
"""Pictures in a file of XVerseBench's results."""
META, SCR_IMAGES = "meta.json", "val_dataset"
GET_SCR = (
    "git clone https://github.com/ZHIHANCHEN03/Multi-Subject-Personalization-Evaluation-P13N-"
    "Workshop-, and give it as --references"
)
GET_PSRBENCH = "download PSRBench (github.com/wang-shulei/PSR), and give its folder as --references"
GET_XVERSE = "git clone https://github.com/bytedance/XVerse, and give it as --references"
_INDEX = re.compile(r"(\d+)_.*")
_GENERATED = re.compile(r"(?P<set>.+)_generated")
_REFERENCE = re.compile(r"(?P<set>.+)_(?P<number>\d+)")


@dataclass(frozen=True)
class Layout:
    """A benchmark's folder."""

    about: str
    absent: str
    """What of its own scores is not measured, for pages."""
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
        by_index = {str(_field(sample, "index", listed)): sample for sample in samples}
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
    modulation = _field(sample, "modulation", listed)[0]
    words = [str(entry[1]) for entry in _field(modulation, "use_words", listed)]
    images = [
        str(_field(source, "image_path", listed))
        for source in _field(modulation, "src_inputs", listed)
    ]
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
    return Asked(f"{stem}-{stable_id(word, reference)[:6]}", word, (reference,), (None,))


def _multibanana(results: Path, bench: Path | None) -> PictureTable:
    table = PictureTable(str(results))
    for model, folder in _models(results, lambda path: any(path.glob("*/*_generated.*"))):
        for task in (path for path in visible(folder) if path.is_dir()):
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
            paths = [path for _, path in sorted(references.get(named["set"], []))]
            for path in paths:
                stay_inside(path, task)
            if not 1 <= len(paths) <= MOST_SUBJECTS:
                raise UserError(f"{len(paths)} references; a picture has 1 to {MOST_SUBJECTS}")
            prompt_file = task / f"{named['set']}_prompt.txt"
            if not prompt_file.is_file():
                raise UserError(f"{prompt_file.name} is absent")
            prompt = " ".join(decode_text(prompt_file.read_bytes(), str(prompt_file)).split())
            subjects = tuple(_nameless("object", path) for path in paths)
            table.rows.append(
                PictureRow(len(table.rows) + 1, file, prompt, subjects, (), model, None)
            )
        except UserError as error:
            table.problems.append(Problem(str(file), str(error)))


def _scr(results: Path, bench: Path | None) -> PictureTable:
    if bench is None:
        raise UserError(f"--layout scr: its references are needed; {GET_SCR}")
    table, references = PictureTable(str(results)), Places(bench.absolute())
    for model, folder in _models(results, lambda path: any(path.glob("*/meta.json"))):
        for prompt in (path for path in visible(folder) if (path / META).is_file()):
            meta = prompt / META
            for number, record in _samples(table, meta, folder):
                try:
                    _add_scr(table, references, record, model, meta)
                except UserError as error:
                    table.problems.append(Problem(f"{meta}, record {number}", str(error)))
    return table


def _add_scr(table: PictureTable, references: Places, record: Any, model: str, meta: Path) -> None:
    if isinstance(record, Mapping) and record.get("error"):
        raise UserError(f"was not painted ({str(record['error'])[:80]})")
    subjects = []
    for subject in _listed(record, "subjects", meta):
        # Records hold paths of the machine that painted: what counts is below val_dataset/.
        image = (
            str(_field(subject, "image", meta)).replace("\\", "/").rpartition(f"{SCR_IMAGES}/")[2]
        )
        word = str(subject.get("name") or subject.get("caption") or Path(image).stem)
        subjects.append((word, references.file(f"{SCR_IMAGES}/{image}")))
    name = Path(str(_field(record, "output_path", meta))).name
    file, seed = Places(meta.parent.absolute()).file(name), record.get("seed")
    prompt = str(_field(record, "prompt", meta))
    _add(table, file, prompt, subjects, model, seed if isinstance(seed, int) else None)


def _psrbench(results: Path, bench: Path | None) -> PictureTable:
    if bench is None:
        raise UserError(f"--layout psrbench: its references are needed; {GET_PSRBENCH}")
    table, references = PictureTable(str(results)), Places(bench.absolute())
    pictures = Places(results.absolute())
    for model, folder in _models(results, lambda path: any(path.glob("*.json"))):
        for listed in (path for path in visible(folder) if path.suffix == ".json"):
            for number, sample in _samples(table, listed, folder):
                try:
                    _add_psrbench(table, references, pictures, sample, model, listed)
                except UserError as error:
                    table.problems.append(Problem(f"{listed}, sample {number}", str(error)))
    return table


def _add_psrbench(
    table: PictureTable, references: Places, pictures: Places, sample: Any, model: str, listed: Path
) -> None:
    field = "input_paths" if isinstance(sample, Mapping) and "input_paths" in sample else None
    files = _listed(sample, field or "input_path", listed)
    words = [str(_field(sample, f"category{at}", listed)) for at in range(1, len(files) + 1)]
    subjects = [(word, references.file(str(file))) for word, file in zip(words, files, strict=True)]
    result_path = str(_field(sample, "result_path", listed))
    beside = listed.parent.absolute() / result_path
    file = pictures.file(str(beside) if beside.is_file() else result_path)
    _add(table, file, str(_field(sample, "instruction", listed)), subjects, model, None)


def _samples(table: PictureTable, file: Path, folder: Path) -> Iterator[tuple[int, Any]]:
    """(number from 1, record) of a list in JSON; what cannot be read is a problem of the table."""
    try:
        stay_inside(file, folder)
        records = read_json(file, "is it as the benchmark's scripts write it?")
        if isinstance(records, Mapping):
            records = [records]
        if not isinstance(records, list):
            raise UserError("expected a list of samples, as the benchmark's scripts write it")
    except UserError as error:
        table.problems.append(Problem(str(file), str(error).removeprefix(f"{file}: ")))
        return
    yield from enumerate(records, 1)


def _listed(value: Any, name: str, where: Path) -> list[Any]:
    items = _field(value, name, where)
    if not isinstance(items, list) or not 1 <= len(items) <= MOST_SUBJECTS:
        raise UserError(f"{where.name}: '{name}' is no list of 1 to {MOST_SUBJECTS}")
    return items


def _add(
    table: PictureTable,
    file: Path,
    prompt: str,
    subjects: Sequence[tuple[str, Path]],
    model: str,
    seed: int | None,
) -> None:
    """A picture of subjects (word, reference)."""
    twice = next((path for _, path in subjects if [p for _, p in subjects].count(path) > 1), None)
    if twice is not None:
        raise UserError(f"{twice.name} is asked for twice; a picture's subjects are different ones")
    asked = tuple(_nameless(word, path) for word, path in subjects)
    table.rows.append(PictureRow(len(table.rows) + 1, file, prompt, asked, (), model, seed))


def quarter_of(picture: Image, number: int | None) -> Image:
    """One of the four pictures of a grid of 2 x 2, row by row; all of it for None."""
    if number is None:
        return picture
    height, width = picture.shape[0] // 2, picture.shape[1] // 2
    top, left = number // 2 * height, number % 2 * width
    return np.ascontiguousarray(picture[top : top + height, left : left + width])


_GRID = "<index>_<prompt>.png, 2 x 2 pictures each"
_XVERSE_ABSENT = "XVerseBench's DPG, aesthetics and face scores need judges that are not here"
LAYOUTS: dict[str, Layout] = {
    "xversebench-single": Layout(_GRID, _XVERSE_ABSENT, _xverse("single")),
    "xversebench-multi": Layout(_GRID, _XVERSE_ABSENT, _xverse("multi")),
    "multibanana": Layout(
        "<task>/<set>_generated.jpg beside its references",
        "MultiBanana's own scores are a language model's: not measured",
        _multibanana,
    ),
    "scr": Layout(
        "<prompt>/meta.json beside <seed>.png",
        "SCR's CLIP-I and DINO (the first) are not measured; CLIP-T is by this judge's CLIP",
        _scr,
    ),
    "psrbench": Layout(
        "<subset>.json with a result_path in each sample",
        "PSRBench's semantic alignment and aesthetics need a language model and HPSv3: "
        "not measured",
        _psrbench,
    ),
}
"""Name -> the benchmark."""
