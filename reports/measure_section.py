"""What the report shows of pictures from any model: every model, the judge's check, worst cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from focusdpo.data_schemas.evaluations import EvalScene, ForeignScores
from focusdpo.data_schemas.runs import EvalRow
from focusdpo.evaluation.comparison import by_model
from focusdpo.evaluation.folder import EvaluationFolder
from focusdpo.evaluation.protocols import ADAPTER, BASE, DIFFERENCE
from focusdpo.reports.evaluation_section import references_of, verdict_words
from focusdpo.reports.metric_texts import (
    Headline,
    in_sentence,
    judge,
    key_figure,
    mean_text,
    metric_info,
)
from focusdpo.reports.thumbnails import picture
from focusdpo.reports.view import (
    FaultLine,
    Interval,
    MeasuredPart,
    ModelCells,
    WorstCase,
)

WORST = 12
"""Pictures shown, over all models."""
PROBLEMS = 40
"""Lines shown of what was left out."""
TRUE = ("none", "in place")
"""Planted as they were asked for."""


def collect_measured(directory: Path) -> MeasuredPart | None:
    """None for an evaluation that painted its own pictures. UserError for a damaged folder."""
    folder = EvaluationFolder(directory)
    scores = folder.foreign
    if not scores:
        return None
    about, names = folder.about, folder.names
    models = [name for name in about.get("names") or {} if name in names]
    left_out = [str(line) for line in about.get("left_out") or []]
    return MeasuredPart(
        models=tuple(names[model] for model in models),
        rows=tuple(
            _cells(metric, rows, models)
            for (metric, group), rows in by_model(folder.rows).items()
            if group == "all"
        ),
        check=tuple(_fault(row) for row in about.get("check") or []),
        worst=_worst(folder, scores),
        notes=tuple(str(note) for note in about.get("notes") or []),
        left_out=tuple(left_out[:PROBLEMS]),
        left_out_more=max(0, len(left_out) - PROBLEMS),
        source=str(about.get("source", "")),
        pictures=len(scores),
    )


def _cells(metric: str, rows: Mapping[str, EvalRow], models: Sequence[str]) -> ModelCells:
    info = metric_info(metric)
    return ModelCells(
        title=info.title,
        explain=info.explain,
        unit=info.unit,
        better=info.better,
        cells=tuple(_interval(rows.get(model)) for model in models),
        differences=tuple(
            None if model == BASE else _interval(rows.get(_difference(model))) for model in models
        ),
        protocol=next(iter(rows.values())).protocol,
    )


def _difference(model: str) -> str:
    return DIFFERENCE if model == ADAPTER else f"{model} - {BASE}"


def _interval(row: EvalRow | None) -> Interval | None:
    if row is None or not math.isfinite(row.mean):
        return None
    return Interval(mean=row.mean, low=row.low, high=row.high)


def _fault(row: Mapping[str, object]) -> FaultLine:
    reasons = ("missing", "doubled", "confused", "unlike", "extra")
    shares = [
        f"{name} {float(str(row[name])):.0%}" for name in reasons if float(str(row[name])) > 0
    ]
    return FaultLine(
        fault=str(row["fault"]),
        pictures=int(str(row["pictures"])),
        found=float(str(row["found"])),
        by=", ".join(shares),
        planted=row["fault"] not in TRUE,
    )


def _worst(folder: EvaluationFolder, scores: Sequence[ForeignScores]) -> tuple[WorstCase, ...]:
    """The pictures with the largest share of failed subjects; of equals, the least like."""
    both = list(zip(folder.records, scores, strict=True))
    both.sort(key=lambda pair: (-pair[0].failed, -pair[1].extra, pair[0].identity, pair[0].image))
    return tuple(
        _case(folder, record, foreign)
        for record, foreign in both[:WORST]
        if record.failed or foreign.extra
    )


def _case(folder: EvaluationFolder, record: EvalScene, scores: ForeignScores) -> WorstCase:
    subjects = zip(record.subject_ids, scores.failed_each, record.matched, strict=True)
    verdicts = [
        f"{name}: {'failed' if lost else 'right'}, identity {matched:.2f}"
        for name, lost, matched in subjects
    ]
    extra = ["more instances than subjects"] if scores.extra else []
    model = folder.names.get(record.model, record.model)
    return WorstCase(
        model=model,
        prompt=folder.prompts.get(record.scene_id, ", ".join(record.class_names)),
        where=f"{scores.source}, row {scores.line}",
        picture=picture(folder.picture(record.image), f"{model}: {', '.join(record.class_names)}"),
        references=references_of(folder, record),
        words="; ".join([verdict_words(record), *extra, *verdicts]),
        record={"judged": asdict(record), "scores": asdict(scores)},
    )


def measured_headline(part: MeasuredPart) -> Headline:
    """The share of failed subjects of every model, and whether they differ."""
    row = next((cells for cells in part.rows if cells.title == metric_info("failed").title), None)
    if row is None:
        return Headline("Nothing was measured.")
    shares = [
        f"{model}: {mean_text(cell, row.unit)}"
        for model, cell in zip(part.models, row.cells, strict=True)
        if cell is not None
    ]
    figures = tuple(
        key_figure(f"{row.title}, {model}", gap, row.unit, judge(gap, row.better, part.pictures))
        for model, gap in zip(part.models, row.differences, strict=True)
        if gap is not None
    )
    detail = "Brackets are 95 % bootstrap intervals over scenes."
    if len(part.models) > 1:
        detail += f" Differences are from {part.models[0]}."
    if part.check and not all(line.ok for line in part.check):
        detail += " The judge fails its own check on these subjects: read the numbers with care."
    elif not part.check:
        detail += " Whether the judge is fit for these subjects was not checked (--check)."
    return Headline(f"{in_sentence(row.title).capitalize()}: {'; '.join(shares)}.", detail, figures)
