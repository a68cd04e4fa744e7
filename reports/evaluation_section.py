"""Section 4 of the report from an evaluation's folder: table, agreement, scenes side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from focusdpo.data_schemas.errors import UserError
from focusdpo.reports.chart_data import Scatter
from focusdpo.reports.files import read_json, seconds_text
from focusdpo.reports.images import picture
from focusdpo.reports.metric_texts import DECIDING, choose, judge, metric_info
from focusdpo.reports.view import (
    AgreementLine,
    EvaluationPart,
    Example,
    ExampleFigure,
    Fact,
    Interval,
    MetricRow,
    Picture,
)

if TYPE_CHECKING:
    from focusdpo.data_schemas.evaluations import EvalScene

DIFFERENCE = "adapter - base"


def agreement_lines(rows: Sequence[Mapping[str, Any]]) -> tuple[AgreementLine, ...]:
    """AgreementRow dicts as the report shows them, in their order."""
    lines = []
    for row in rows:
        info = metric_info(str(row["metric"]))
        scorer, judge = (
            Interval(**{end: float(row[f"{who}_{end}"]) for end in ("mean", "low", "high")})
            for who in ("scorer", "judge")
        )
        lines.append(
            AgreementLine(
                title=info.title,
                unit=info.unit,
                group=str(row["group"]),
                model=str(row["model"]),
                spearman=None if row["spearman"] is None else float(row["spearman"]),
                count=int(row["count"]),
                scorer=scorer,
                judge=judge,
                change=row["model"] == DIFFERENCE,
            )
        )
    return tuple(lines)


def agreement_notes(lines: Sequence[AgreementLine]) -> tuple[str, ...]:
    """A sentence per metric on the change over all scenes."""
    return tuple(
        f"{line.title}: {_words(_side(line.scorer), _side(line.judge))}."
        for line in lines
        if line.change and line.group == "all"
    )


def _side(difference: Interval) -> int:
    """1 above zero, -1 below, 0 when the interval holds it. Both metrics are better higher."""
    return int(difference.low > 0) - int(difference.high < 0)


def _words(scorer: int, judge: int) -> str:
    if scorer == judge:
        return {
            1: "scorer and judge both see a gain",
            -1: "scorer and judge both see a loss",
            0: "neither scorer nor judge sees a change",
        }[scorer]
    if scorer * judge < 0:
        return "scorer and judge see opposite changes, so the scorer is no guide here"
    if judge == 0:
        seen = "gain" if scorer > 0 else "loss"
        return f"only the scorer sees a {seen}: its own preferences, not what the judge measures"
    return f"only the judge sees a {'gain' if judge > 0 else 'loss'}; the scorer is undecided"


AGAIN = "run `focusdpo evaluate` again into a new folder"
SHOWN = ("identity", "leakage_margin", "hue_error")
"""Metrics printed under every shown scene."""


@dataclass(frozen=True, slots=True)
class Folder:
    """What an evaluation left."""

    path: Path
    run: Mapping[str, Any]
    subjects: Mapping[str, Any]
    prompts: Mapping[str, str]
    base: Mapping[str, EvalScene]
    """Scene id -> the first picture's record."""
    adapter: Mapping[str, EvalScene]
    records: Sequence[EvalScene]
    """Of all pictures."""
    labels: tuple[str, str] = ("base", "adapter")
    """What the two are called."""


def read_folder(directory: Path) -> Folder:
    """What an evaluation left. Raises UserError for a folder that did not finish."""
    from focusdpo.data_schemas.evaluations import EvalScene
    from focusdpo.data_schemas.tables import from_parquet

    run = read_json(directory / "run.json", AGAIN)
    path = directory / "scenes.parquet"
    try:
        records = from_parquet(path.read_bytes(), EvalScene, str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}); {AGAIN}") from error
    about = read_json(directory / "subjects.json", AGAIN)
    first = [record for record in records if record.index == 0]
    return Folder(
        path=directory,
        run=run,
        subjects=about.get("subjects", {}),
        prompts=about.get("prompts", {}),
        base={record.scene_id: record for record in first if record.model == "base"},
        adapter={record.scene_id: record for record in first if record.model == "adapter"},
        records=records,
    )


def collect_evaluation(directory: Path, *, extremes: int = 2, randoms: int = 6) -> EvaluationPart:
    """The table and the chosen examples. Raises UserError for a folder that did not finish."""
    folder = read_folder(directory)
    examples, scatters = pair_up(folder, extremes=extremes, randoms=randoms)
    rows = metric_rows(read_json(directory / "rows.json", AGAIN))
    agreement = agreement_lines(folder.run.get("agreement") or ())
    return EvaluationPart(
        protocol=str(folder.run.get("protocol", "unknown")),
        facts=_facts(folder, folder.records),
        rows=rows,
        scatters=scatters,
        examples=examples,
        chosen=_chosen(len(folder.adapter), examples),
        notes=_notes(rows),
        agreement=agreement,
        agreement_notes=agreement_notes(agreement),
    )


def pair_up(
    folder: Folder, *, extremes: int, randoms: int
) -> tuple[tuple[Example, ...], tuple[Scatter, ...]]:
    """Chosen scenes side by side, and all of them as dots."""
    return _examples(folder, extremes=extremes, randoms=randoms), _scatters(folder)


def metric_rows(values: Sequence[Mapping[str, Any]]) -> tuple[MetricRow, ...]:
    """EvalRow dicts -> one row per metric and group, in the order of first appearance."""
    cells: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for value in values:
        key = (str(value["metric"]), str(value["group"]))
        cells.setdefault(key, {})[str(value["model"])] = value
    return tuple(_row(metric, group, models) for (metric, group), models in cells.items())


def _row(metric: str, group: str, models: Mapping[str, Mapping[str, Any]]) -> MetricRow:
    info = metric_info(metric)
    difference = _interval(models.get("adapter - base"))
    scenes = max((int(value.get("scenes") or 0) for value in models.values()), default=0)
    return MetricRow(
        metric=metric,
        title=info.title,
        explain=info.explain,
        unit=info.unit,
        better=info.better,
        group=group,
        scenes=scenes,
        base=_interval(models.get("base")),
        adapter=_interval(models.get("adapter")),
        difference=difference,
        verdict=judge(difference, info.better, scenes),
    )


def _interval(value: Mapping[str, Any] | None) -> Interval | None:
    if value is None or any(value.get(name) is None for name in ("mean", "low", "high")):
        return None
    mean, low, high = (float(value[name]) for name in ("mean", "low", "high"))
    return Interval(mean=mean, low=low, high=high) if math.isfinite(mean) else None


def _facts(folder: Folder, records: Sequence[EvalScene]) -> tuple[Fact, ...]:
    run = folder.run
    classes = {name for record in records for name in record.class_names}
    new = {name for record in records if record.held_out for name in record.class_names}
    facts = [
        Fact(label="scenes", value=str(len(folder.base))),
        Fact(label="pictures judged", value=str(len(records))),
        Fact(label="subjects", value=str(len({s for r in records for s in r.subject_ids}))),
        Fact(label="classes", value=str(len(classes)), note=f"{len(new)} in held-out scenes"),
    ]
    if isinstance(run.get("seconds"), int | float):
        facts.append(Fact(label="time", value=seconds_text(float(run["seconds"]))))
    for name, label in (("seed", "seed of the scenes"), ("adapter", "adapter")):
        if run.get(name) is not None:
            facts.append(Fact(label=label, value=str(run[name])))
    return tuple(facts)


def _notes(rows: Sequence[MetricRow]) -> tuple[str, ...]:
    least = min((row.scenes for row in rows if row.group == "all"), default=0)
    if rows and not any(row.difference for row in rows):
        return ("Only one model was evaluated, so there is nothing to compare.",)
    if 0 < least < 30:
        return (f"Some metrics rest on {least} scenes: their intervals are rough.",)
    return ()


def _chosen(total: int, examples: Sequence[Example]) -> str:
    if not examples:
        return ""
    return (
        f"{len(examples)} of {total} scenes. The adapter's change of matched identity orders them: "
        "the worst, the median and the best are shown, and random ones drawn by a hash of the "
        "scenes' ids. Nobody picked. Of a scene with several pictures the first is shown; the mark "
        "on each line is that picture's alone, without an interval."
    )


def _scatters(folder: Folder) -> tuple[Scatter, ...]:
    """Every scene, so that no choice of examples hides one."""
    scatters = []
    for name in DECIDING:
        info = metric_info(name)
        points = [
            (float(getattr(base, name)), float(getattr(folder.adapter[scene], name)), scene)
            for scene, base in folder.base.items()
            if scene in folder.adapter
        ]
        points = [p for p in points if math.isfinite(p[0]) and math.isfinite(p[1])]
        if points:
            base, adapter, scenes = zip(*points, strict=True)
            scatters.append(
                Scatter(
                    title=info.title,
                    unit=info.unit,
                    better=info.better,
                    base=base,
                    adapter=adapter,
                    labels=tuple(folder.prompts.get(one, one) for one in scenes),
                    names=folder.labels,
                )
            )
    return tuple(scatters)


def _examples(folder: Folder, *, extremes: int, randoms: int) -> tuple[Example, ...]:
    scores = []
    for scene_id, base in folder.base.items():
        adapter = folder.adapter.get(scene_id)
        if adapter is not None and math.isfinite(change := adapter.identity - base.identity):
            scores.append((scene_id, change))
    return tuple(
        _example(folder, why, scene_id)
        for why, scene_id in choose(scores, extremes=extremes, randoms=randoms)
    )


def _example(folder: Folder, why: str, scene_id: str) -> Example:
    base, adapter = folder.base[scene_id], folder.adapter[scene_id]
    words = ", ".join(base.class_names)
    figures = []
    for name in SHOWN:
        info = metric_info(name)
        values = float(getattr(base, name)), float(getattr(adapter, name))
        if all(math.isfinite(value) for value in values):
            figures.append(
                ExampleFigure(
                    title=info.title,
                    unit=info.unit,
                    better=info.better,
                    base=values[0],
                    adapter=values[1],
                )
            )
    return Example(
        why=why,
        scene_id=scene_id,
        prompt=folder.prompts.get(scene_id, words),
        references=references(folder, base),
        base=_painted(folder, base, folder.labels[0]),
        adapter=_painted(folder, adapter, folder.labels[1]),
        figures=tuple(figures),
        base_note=verdict_words(base),
        adapter_note=verdict_words(adapter),
        record={
            "kind": "scene",
            "where": {"table": "scenes.parquet of the evaluation"},
            folder.labels[0]: _as_stored(base),
            folder.labels[1]: _as_stored(adapter),
        },
    )


def _painted(folder: Folder, record: EvalScene, label: str) -> Picture:
    words = f"{label}: {', '.join(record.class_names)}. {verdict_words(record)}"
    return stored_picture(folder.path / record.image, words)


def _as_stored(record: EvalScene) -> dict[str, Any]:
    """Its picture by its place in the evaluation, wherever that lies."""
    return {**asdict(record), "image": "/".join(Path(record.image).parts[-3:])}


def verdict_words(record: EvalScene) -> str:
    """What the judge says of one picture."""
    subjects = len(record.subject_ids)
    lost = [name for name, box in zip(record.class_names, record.boxes, strict=True) if not box]
    parts = []
    if lost:
        parts.append(f"{', '.join(lost)} missing")
    if math.isfinite(record.confusion) and record.confusion > 0:
        confused = round(record.confusion * (subjects - len(lost)))
        parts.append(f"{confused} of {subjects - len(lost)} found look like another subject")
    if record.duplicate > 0:
        parts.append(f"{round(record.duplicate * subjects)} painted more than once")
    if not parts:
        return "all found, none confused" if subjects > 1 else "found"
    return "; ".join(parts)


def references(folder: Folder, record: EvalScene) -> tuple[Picture, ...]:
    """The first picture of each subject."""
    pictures = []
    for subject_id, name in zip(record.subject_ids, record.class_names, strict=True):
        paths = (folder.subjects.get(subject_id) or {}).get("pictures") or []
        if paths:
            pictures.append(stored_picture(folder.path / str(paths[0]), f"reference: {name}"))
    return tuple(pictures)


def stored_picture(path: Path, alt: str) -> Picture:
    """A picture of the evaluation. Raises UserError where it cannot be read."""
    try:
        with Image.open(path) as image:
            return picture(np.asarray(image.convert("RGB")), alt)
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {AGAIN}") from error
