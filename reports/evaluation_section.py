"""Section 4 of the report from an evaluation's folder: table, agreement, scenes side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from focusdpo.data_schemas.evaluations import AgreementRow, EvalScene
from focusdpo.data_schemas.runs import EvalRow
from focusdpo.data_schemas.scenes import stable_hash
from focusdpo.evaluation.comparison import by_model
from focusdpo.evaluation.folder import EvaluationFolder
from focusdpo.evaluation.protocols import ADAPTER, BASE, DIFFERENCE
from focusdpo.reports.metric_texts import DECIDING, choose, judge, metric_info, time_of
from focusdpo.reports.thumbnails import picture
from focusdpo.reports.view import (
    AgreementLine,
    EvaluationPart,
    Example,
    ExampleFigure,
    Fact,
    Interval,
    MetricRow,
    Outcomes,
    Picture,
    Scatter,
    facts,
)

SHOWN = ("failed", "identity", "leakage_margin", "hue_error")
"""Metrics printed under every shown scene."""
SHOWN_OUTCOMES = 6
"""Scenes in a strip of the cured or the spoilt."""


def agreement_lines(rows: Sequence[AgreementRow]) -> tuple[AgreementLine, ...]:
    """Scorer and judge as the report shows them, in the rows' order."""
    return tuple(
        AgreementLine(
            title=metric_info(row.metric).title,
            unit=metric_info(row.metric).unit,
            group=row.group,
            model=row.model,
            spearman=row.spearman,
            count=row.count,
            scorer=Interval(mean=row.scorer_mean, low=row.scorer_low, high=row.scorer_high),
            judge=Interval(mean=row.judge_mean, low=row.judge_low, high=row.judge_high),
            change=row.model == DIFFERENCE,
        )
        for row in rows
    )


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


@dataclass(frozen=True, slots=True)
class Painter:
    """One model of an evaluation, as a page shows its scenes."""

    folder: EvaluationFolder
    label: str
    scenes: Mapping[str, EvalScene]
    """Scene id -> the record of its first picture."""

    def picture(self, scene: str) -> Picture:
        """What it painted of a scene. UserError where it cannot be read."""
        record = self.scenes[scene]
        words = f"{self.label}: {', '.join(record.class_names)}. {verdict_words(record)}"
        return picture(self.folder.picture(record.image), words, painted=True)


def painter(folder: EvaluationFolder, model: str, label: str = "") -> Painter:
    """A model of an evaluation."""
    return Painter(folder, label or model, folder.first(model))


def collect_evaluation(directory: Path, *, extremes: int = 2, randoms: int = 6) -> EvaluationPart:
    """The table and the chosen examples. Raises UserError for a folder that did not finish."""
    folder = EvaluationFolder(directory)
    protocol = folder.protocol
    base, adapter = (painter(folder, model, folder.names[model]) for model in (BASE, ADAPTER))
    examples, scatters = pair_up(base, adapter, extremes=extremes, randoms=randoms)
    rows = metric_rows(folder.rows)
    agreement = agreement_lines(folder.agreement)
    outcomes = outcomes_of(base, adapter)
    return EvaluationPart(
        protocol=protocol,
        facts=_facts(folder),
        rows=rows,
        scatters=scatters,
        examples=examples,
        chosen=_chosen(len(adapter.scenes), examples),
        notes=_notes(rows),
        agreement=agreement,
        agreement_notes=agreement_notes(agreement),
        names=(base.label, adapter.label),
        outcomes=outcomes if outcomes.scenes else None,
    )


def outcomes_of(base: Painter, adapter: Painter, *, shown: int = SHOWN_OUTCOMES) -> Outcomes:
    """Scenes cured and spoilt, by the first picture of each; at most `shown` of each kind, drawn by
    a hash of the scenes' ids, so that nobody picks."""
    failed = {scene: both for scene, *both in _both(base, adapter, "failed")}
    identity = {scene: theirs - ours for scene, ours, theirs in _both(base, adapter, "identity")}
    either = sorted(
        (scene for scene, both in failed.items() if any(both)),
        key=lambda scene: (
            failed[scene][0] - failed[scene][1],
            identity.get(scene, 0.0),
            scene,
        ),
    )
    cured = [scene for scene in either if not failed[scene][1]]
    spoilt = [scene for scene in either if not failed[scene][0]]
    median = either[len(either) // 2] if either else None

    def show(why: str, scenes: Sequence[str]) -> tuple[Example, ...]:
        drawn = sorted(scenes, key=lambda scene: stable_hash(why, scene))[:shown]
        return tuple(_example(base, adapter, why, scene) for scene in drawn)

    return Outcomes(
        scenes=len(failed),
        failed=len(either),
        cured=len(cured),
        spoilt=len(spoilt),
        median=_example(base, adapter, "median of the failed", median) if median else None,
        cured_shown=show("cured", cured),
        spoilt_shown=show("spoilt", spoilt),
    )


def pair_up(
    base: Painter, adapter: Painter, *, extremes: int, randoms: int
) -> tuple[tuple[Example, ...], tuple[Scatter, ...]]:
    """Chosen scenes side by side, ordered by the change of identity, and all of them as dots."""
    changes = _both(base, adapter, "identity")
    scores = [(scene, theirs - ours) for scene, ours, theirs in changes]
    examples = tuple(
        _example(base, adapter, why, scene)
        for why, scene in choose(scores, extremes=extremes, randoms=randoms)
    )
    return examples, _scatters(base, adapter)


def _both(base: Painter, adapter: Painter, metric: str) -> list[tuple[str, float, float]]:
    """(scene, base's value, adapter's) of the scenes where both have one."""
    values = [
        (scene, float(getattr(record, metric)), float(getattr(adapter.scenes[scene], metric)))
        for scene, record in base.scenes.items()
        if scene in adapter.scenes
    ]
    return [value for value in values if math.isfinite(value[1]) and math.isfinite(value[2])]


def metric_rows(values: Sequence[EvalRow]) -> tuple[MetricRow, ...]:
    """One row per metric and group, in the order of first appearance."""
    cells = by_model(values).items()
    return tuple(_row(metric, group, models) for (metric, group), models in cells)


def _row(metric: str, group: str, models: Mapping[str, EvalRow]) -> MetricRow:
    info = metric_info(metric)
    difference = _interval(models.get(DIFFERENCE))
    # Of a table that an earlier version wrote, each model has scenes of its own.
    paired = models.get(DIFFERENCE)
    scenes = paired.scenes if paired else max(value.scenes for value in models.values())
    return MetricRow(
        metric=metric,
        title=info.title,
        explain=info.explain,
        unit=info.unit,
        better=info.better,
        group=group,
        scenes=scenes,
        base=_interval(models.get(BASE)),
        adapter=_interval(models.get(ADAPTER)),
        difference=difference,
        verdict=judge(difference, info.better, scenes),
    )


def _interval(row: EvalRow | None) -> Interval | None:
    if row is None or not math.isfinite(row.mean):
        return None
    return Interval(mean=row.mean, low=row.low, high=row.high)


def _facts(folder: EvaluationFolder) -> tuple[Fact, ...]:
    run, records = folder.about, folder.records
    classes = {name for record in records for name in record.class_names}
    new = {name for record in records if record.held_out for name in record.class_names}
    return facts(
        ("scenes", len(folder.first(BASE) or folder.first(ADAPTER))),
        ("pictures judged", len(records)),
        ("subjects", len({name for record in records for name in record.subject_ids})),
        ("classes", len(classes), f"{len(new)} in held-out scenes"),
        ("time", time_of(run)),
        ("seed of the scenes", run.get("seed")),
        ("adapter", run.get("adapter")),
    )


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


def _scatters(base: Painter, adapter: Painter) -> tuple[Scatter, ...]:
    """Every scene, so that no choice of examples hides one."""
    prompts = adapter.folder.prompts
    scatters = []
    for metric in DECIDING:
        info, points = metric_info(metric), _both(base, adapter, metric)
        if points:
            scenes, ours, theirs = zip(*points, strict=True)
            scatters.append(
                Scatter(
                    title=info.title,
                    unit=info.unit,
                    better=info.better,
                    base=ours,
                    adapter=theirs,
                    labels=tuple(prompts.get(scene, scene) for scene in scenes),
                    names=(base.label, adapter.label),
                )
            )
    return tuple(scatters)


def _example(base: Painter, adapter: Painter, why: str, scene: str) -> Example:
    ours, theirs = base.scenes[scene], adapter.scenes[scene]
    figures = []
    for metric in SHOWN:
        info = metric_info(metric)
        values = float(getattr(ours, metric)), float(getattr(theirs, metric))
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
        scene_id=scene,
        prompt=base.folder.prompts.get(scene, ", ".join(ours.class_names)),
        references=references_of(base.folder, ours),
        base=base.picture(scene),
        adapter=adapter.picture(scene),
        figures=tuple(figures),
        base_note=verdict_words(ours),
        adapter_note=verdict_words(theirs),
        record={
            "kind": "scene",
            "where": {"table": "scenes.parquet of the evaluation"},
            base.label: asdict(ours),
            adapter.label: asdict(theirs),
        },
    )


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


def references_of(folder: EvaluationFolder, record: EvalScene) -> tuple[Picture, ...]:
    """The first picture of each subject."""
    named = [
        (name, folder.subjects[subject].pictures)
        for subject, name in zip(record.subject_ids, record.class_names, strict=True)
        if subject in folder.subjects
    ]
    return tuple(
        picture(folder.picture(files[0]), f"reference: {name}") for name, files in named if files
    )
