"""Training runs, evaluations and exports in the folders that the studio knows, as they stand.

A folder is what the files in it say; nothing outside those folders is looked at, and links that
lead out of them are not followed.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.evaluations import EvalScene
from focusdpo.evaluation.folder import ROWS, RUN, SCENES, EvaluationFolder, read_json, read_object
from focusdpo.evaluation.measure.foreign_plan import PROTOCOL as FOREIGN
from focusdpo.evaluation.metrics import METRICS
from focusdpo.evaluation.protocols import ADAPTER, BASE
from focusdpo.reports.evaluation_section import metric_rows
from focusdpo.reports.metric_texts import metric_info
from focusdpo.reports.thumbnails import read_focus
from focusdpo.reports.training_section import (
    LOOKS,
    SAMPLES,
    bucket_charts,
    collect_training,
    curve_charts,
    look_charts,
    read_columns,
    sheet_files,
    sheets_of,
)
from focusdpo.reports.view import Fact, LineChart, MetricRow, Role, TrainingPart
from focusdpo.studio.config import StudioConfig, runs_folder

DEPTH = 4
"""How far below a folder of --runs."""
MOST_FOLDERS = 20_000
SKIPPED = {
    *("stages", "shards", "versions", "checkpoints", "tensorboard", "metrics", "pictures"),
    *("parts", SAMPLES),
}


@dataclass(frozen=True)
class RunFolder:
    """A folder that something was made in."""

    id: str
    """For addresses: a hash of the path, so that no address names a path."""
    name: str
    """Below the folder that was told of."""
    path: Path
    finished: bool
    changed: float
    """When, in seconds."""


@dataclass(frozen=True)
class Found:
    """All of them, the newest first."""

    training: tuple[RunFolder, ...]
    evaluations: tuple[RunFolder, ...]
    exports: tuple[RunFolder, ...]

    def run(self, id: str) -> RunFolder | None:
        return next((run for run in self.training if run.id == id), None)

    def evaluation(self, id: str) -> RunFolder | None:
        return next((evaluation for evaluation in self.evaluations if evaluation.id == id), None)

    def adapters(self) -> list[RunFolder]:
        """Runs whose adapter can be used."""
        return [run for run in self.training if (run.path / "adapter").is_dir()]


def find_runs(config: StudioConfig) -> Found:
    """What there is now."""
    runs = runs_folder(config)
    tops = list(dict.fromkeys([*(run.absolute() for run in config.runs), runs]))
    training: dict[str, RunFolder] = {}
    evaluations: dict[str, RunFolder] = {}
    exports: dict[str, RunFolder] = {}
    for top in tops:
        for path, names in _folders(top):
            if {SCENES, ROWS} <= names:
                folder = _folder(top, path, RUN in names, ROWS)
                evaluations.setdefault(folder.id, folder)
            elif "config.json" in names and names & {"metrics", "run.json", "steps.parquet"}:
                folder = _folder(top, path, "run.json" in names, "config.json")
                training.setdefault(folder.id, folder)
            elif "README.md" in names and names & {"adapter.json", "data"}:
                folder = _folder(top, path, True, "README.md")
                exports.setdefault(folder.id, folder)
    return Found(_newest(training), _newest(evaluations), _newest(exports))


MOST_TABLES = 100
TABLES = (".csv", ".jsonl", ".parquet")


def find_tables(config: StudioConfig) -> list[str]:
    """Tables and folders of pictures that a measurement may be of, in the studio's folders: what
    lies in no run."""
    runs = runs_folder(config)
    tables: list[str] = []
    for top in dict.fromkeys([runs, *(run.absolute() for run in config.runs)]):
        for path, names in _folders(top):
            if names & {RUN, ROWS, "config.json", "dataset.json"}:
                continue
            there = [path / name for name in sorted(names) if name.endswith(TABLES)]
            there += [path] if "references" in names and not there else []
            tables += [
                str(table.relative_to(runs)) if table.is_relative_to(runs) else str(table)
                for table in there
            ]
    return list(dict.fromkeys(tables))[:MOST_TABLES]


def _newest(folders: dict[str, RunFolder]) -> tuple[RunFolder, ...]:
    return tuple(sorted(folders.values(), key=lambda folder: (-folder.changed, folder.name)))


def _folders(top: Path) -> Iterator[tuple[Path, set[str]]]:
    """Folders from `top` down with the names in them; what looks like a run is not entered."""
    left, seen = [(top, 0)], 0
    while left and seen < MOST_FOLDERS:
        path, depth = left.pop()
        try:
            with os.scandir(path) as entries:
                there = list(entries)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        seen += 1
        names = {entry.name for entry in there}
        yield path, names
        if depth == DEPTH or "dataset.json" in names:
            continue
        left += [
            (path / entry.name, depth + 1)
            for entry in there
            if entry.is_dir(follow_symlinks=False)
            and not entry.name.startswith(".")
            and entry.name not in SKIPPED
        ]


def _folder(top: Path, path: Path, finished: bool, file: str) -> RunFolder:
    name = path.name if path == top else f"{top.name}/{path.relative_to(top).as_posix()}"
    try:
        changed = (path / file).stat().st_mtime
    except FileNotFoundError:  # taken away meanwhile
        changed = 0.0
    id = hashlib.blake2b(str(path).encode(), digest_size=8).hexdigest()
    return RunFolder(id, name, path, finished, changed)


PART = re.compile(r"(steps|buckets)-(\d+)-(\d+)\.parquet")


@dataclass(frozen=True)
class Standing:
    """How far a run is."""

    objective: str
    steps: int
    wanted: int | None
    finished: bool
    stamp: str
    """Changes whenever there is more to see."""


def standing(folder: RunFolder) -> Standing:
    """From names and small files alone: asked for again and again."""
    config = _small(folder, "config.json")
    run = _small(folder, "run.json")
    parts = _parts(folder.path, "steps")
    seen = (len(parts), len(sheet_files(folder.path)), _stamp(folder.path / LOOKS))
    steps = int(run.get("steps") or (parts[-1][0] if parts else 0))
    return Standing(
        objective=str(run.get("objective") or (config.get("objective") or {}).get("name", "?")),
        steps=steps,
        wanted=config.get("steps"),
        finished=bool(run),
        stamp="-".join(map(str, (steps, *seen, bool(run)))),
    )


def _small(folder: RunFolder, name: str) -> Mapping[str, Any]:
    """A JSON object of the run; empty where there is none yet."""
    return read_object(folder.path / name, "run the same command again", default={})


def _looks(folder: RunFolder) -> Sequence[Mapping[str, float]]:
    """What a running training has found at its looks."""
    path = folder.path / LOOKS
    looks = read_json(path, "remove it; the next look writes it anew", default=[])
    try:
        return [_numbers(look) for look in looks]
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: expected a list of looks with their steps; remove it") from error


def _numbers(look: Mapping[str, Any]) -> dict[str, float]:
    return {"step": look["step"]} | {name: float(value) for name, value in look.items()}


def training_part(folder: RunFolder) -> TrainingPart:
    """Curves and facts, as the report shows them."""
    path = folder.path
    if (path / "run.json").is_file():
        return collect_training(path)
    config = _small(folder, "config.json")
    steps, buckets = (
        read_columns([part for _, part in _parts(path, name)]) for name in ("steps", "buckets")
    )
    now = standing(folder)
    facts = [Fact(label="steps so far", value=f"{now.steps} of {now.wanted or '?'}")]
    return TrainingPart(
        objective=now.objective,
        facts=tuple(facts),
        charts=curve_charts(steps, config) if steps else (),
        buckets=bucket_charts(buckets) if buckets else (),
        focus=read_focus(path / "focus.safetensors"),
        looks=look_charts({"validation": _looks(folder)}, config),
        sheets=sheets_of(path),
        notes=("Curves grow whenever the run saves a checkpoint.",),
    )


OVERLAID: tuple[Role, ...] = ("adapter", "loser", "base", "plain")
"""The curves' colours, of the first, second, ... run."""


def overlaid(runs: Sequence[tuple[str, TrainingPart]]) -> tuple[LineChart, ...]:
    """One chart per curve with a line per run, by name; curves that no run has are left out. At
    most as many runs as `OVERLAID` has colours."""
    charts: dict[str, LineChart] = {}
    for (name, part), role in zip(runs, OVERLAID, strict=False):
        for chart in (*part.looks, *part.charts):
            for line in chart.lines:
                run_line = dataclasses.replace(line, name=name, role=role)
                title = chart.title if len(chart.lines) == 1 else f"{chart.title}: {line.name}"
                before = charts.get(title)
                charts[title] = dataclasses.replace(
                    before or chart,
                    title=title,
                    lines=(*(before.lines if before else ()), run_line),
                    mark=None,
                )
    return tuple(charts.values())


def _parts(path: Path, name: str) -> list[tuple[int, Path]]:
    """Last step and file of each part that a running training has written, in order."""
    parts = []
    folder = path / "metrics"
    for file in folder.iterdir() if folder.is_dir() else ():
        match = PART.fullmatch(file.name)
        if match is not None and match[1] == name:
            parts.append((int(match[3]), file))
    return sorted(parts)


FIELDS = tuple(name for name in METRICS if not name.startswith("scr_"))
"""Metrics that each scene has, by which they can be ordered."""


@dataclass(frozen=True)
class Evaluation:
    """An evaluation in one of the studio's folders, as it stands."""

    folder: RunFolder
    left: EvaluationFolder
    rows: tuple[MetricRow, ...]
    scenes: Mapping[str, Mapping[str, EvalScene]]
    """Scene -> model -> its first picture's record."""

    @property
    def about(self) -> Mapping[str, Any]:
        """run.json; empty for one that is not finished."""
        return self.left.about if self.folder.finished else {}

    @property
    def protocol(self) -> str:
        return str(self.about.get("protocol", "unknown"))

    @property
    def prompts(self) -> Mapping[str, str]:
        return self.left.prompts

    @property
    def measured(self) -> bool:
        """Whether the pictures came from elsewhere: nothing can paint their scenes again."""
        return self.protocol.partition("/")[0] == FOREIGN

    @property
    def names(self) -> Mapping[str, str]:
        """base, adapter, ... -> what the model is called."""
        return self.left.names if self.folder.finished else {BASE: BASE, ADAPTER: ADAPTER}

    def references(self, subject: str) -> tuple[str, ...]:
        """A subject's pictures, by their paths below the folder."""
        known = self.left.subjects.get(subject)
        return known.pictures if known else ()

    def overall(self, metric: str) -> MetricRow | None:
        """The row of a metric over all scenes."""
        rows = (row for row in self.rows if row.metric == metric and row.group == "all")
        return next(rows, None)

    def change(self, scene: str, metric: str) -> float:
        """Adapter less base, so that more is better; NaN where one has none."""
        models = self.scenes[scene]
        if not {BASE, ADAPTER} <= models.keys():
            return math.nan
        change = float(getattr(models[ADAPTER], metric) - getattr(models[BASE], metric))
        return -change if metric_info(metric).better == "lower" else change

    def ordered(self, metric: str, *, best_first: bool = False) -> list[str]:
        """Scenes by what the adapter changed, or by what it did where it stands alone: the worst
        first; those without a number last."""
        changes = {scene: self.change(scene, metric) for scene in self.scenes}
        if not any(BASE in models for models in self.scenes.values()):
            lower = metric_info(metric).better == "lower"
            changes = {
                scene: float(getattr(models[ADAPTER], metric)) * (-1 if lower else 1)
                for scene, models in self.scenes.items()
            }
        sign = -1 if best_first else 1

        def rank(scene: str) -> tuple[bool, float, str]:
            change = changes[scene]
            unknown = math.isnan(change)
            return unknown, 0.0 if unknown else sign * change, scene

        return sorted(changes, key=rank)

    def path(self, name: str) -> Path | None:
        """A file of the evaluation; None for one outside its folder or absent."""
        try:
            file = self.left.file(name)
        except UserError:
            return None
        return file if file.is_file() else None


def read_evaluation(folder: RunFolder) -> Evaluation:
    """As it is now; kept while its files stay as they are."""
    return _read(folder, tuple(_stamp(folder.path / name) for name in (ROWS, SCENES, RUN)))


@functools.lru_cache(maxsize=16)
def _read(folder: RunFolder, stamp: tuple[int, ...]) -> Evaluation:
    left = EvaluationFolder(folder.path)
    scenes: dict[str, dict[str, EvalScene]] = {}
    for record in left.records:
        if record.index == 0:
            scenes.setdefault(record.scene_id, {})[record.model] = record
    return Evaluation(folder=folder, left=left, rows=metric_rows(left.rows), scenes=scenes)


def is_of(folder: RunFolder, adapter: Path) -> bool:
    """Whether a finished evaluation is of this adapter; a damaged one says so on its own page."""
    try:
        return folder.finished and EvaluationFolder(folder.path).is_of(adapter)
    except UserError:
        return False


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
