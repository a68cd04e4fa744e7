"""An ablation's tables as text: one kind of table, for the page and as GitHub Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from focusdpo.data_schemas.ablations import BASE, Ablation, Arm, Contrast, Reading
from focusdpo.reports.ablation_verdict import (
    ALL,
    TABLE_FAMILIES,
    Finding,
    Lookup,
    find,
    interval_of,
    p_text,
    settings_text,
    source_text,
    title_of,
)
from focusdpo.reports.metric_texts import (
    DASH,
    bounds,
    judge,
    mean_text,
    metric_info,
    number,
)
from focusdpo.reports.view import Better, Interval, Unit, Verdict

MAIN = (
    *("failed", "identity", "leakage_margin", "confusion", "duplicate", "class_recognition"),
    "copy_paste",
)
"""Metrics of the first table; the others come folded."""
ARROWS = {"higher": "↑", "lower": "↓"}


@dataclass(frozen=True, slots=True)
class Column:
    """A metric, a group of scenes, or what else stands in a column."""

    title: str
    better: Better = "neither"
    note: str = ""
    right: bool = False
    """Numbers, to be aligned."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A text, and where it is a mean: the spread of its seeds, its difference to the base with the
    interval, and what that says."""

    text: str
    spread: str = ""
    change: str = ""
    bounds: str = ""
    verdict: Verdict = "not judged"
    style: Literal["", "code", "strong", "verdict"] = ""
    """How the text is set; verdict: as that mark."""


@dataclass(frozen=True, slots=True)
class Row:
    """What it is about, and its cells."""

    label: str
    cells: tuple[Cell, ...]
    note: str = ""
    state: Literal["", "best", "chosen"] | Verdict = ""
    """How the row is coloured; best: marked as the chosen arm."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under columns; `head` stands over the labels."""

    title: str
    head: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


def main_tables(look: Lookup, metrics: Iterable[str]) -> list[Table]:
    """A table per source: the base, then the source's arms, by the metrics that the record has."""
    shown = [metric for metric in metrics if metric in look.metrics]
    columns = _columns(look, shown)
    tables = []
    for source in look.sources or ("",):
        arms = [arm for arm in look.ablation.arms if arm.source in ("", source)]
        rows = tuple(_arm_row(look, arm, [(metric, ALL) for metric in shown]) for arm in arms)
        title = source_text(source)
        tables.append(Table(title[:1].upper() + title[1:], "arm", columns, rows))
    return tables if shown else []


def _columns(look: Lookup, metrics: Iterable[str]) -> tuple[Column, ...]:
    return tuple(
        Column(info.title, look.better(metric), info.explain)
        for metric in metrics
        for info in [metric_info(metric)]
    )


def rest(look: Lookup) -> list[str]:
    """The metrics that the first table leaves out."""
    return [metric for metric in look.metrics if metric not in MAIN]


def group_tables(look: Lookup) -> list[Table]:
    """A table per deciding metric: arms by groups of scenes."""
    tables = []
    for metric in look.ablation.deciding:
        scenes = {
            group: max(row.scenes for row in known)
            for group in look.groups
            if group != ALL
            and (known := [row for arm in look.arms if (row := look.row(arm, metric, group))])
        }
        if scenes:
            columns = tuple(Column(name, note=f"{count} scenes") for name, count in scenes.items())
            places = [(metric, group) for group in scenes]
            rows = tuple(_arm_row(look, arm, places, full=True) for arm in look.ablation.arms)
            tables.append(Table(metric_info(metric).title, "arm", columns, rows))
    return tables


def _arm_row(
    look: Lookup, arm: Arm, places: Sequence[tuple[str, str]], *, full: bool = False
) -> Row:
    """An arm at each (metric, group); `full` says what it was trained on."""
    return Row(
        arm.label,
        tuple(_arm_cell(look, arm, metric, group) for metric, group in places),
        note=source_text(arm.source) if full else "",
        state="best" if arm.name == look.ablation.best else "",
    )


def _arm_cell(look: Lookup, arm: Arm, metric: str, group: str) -> Cell:
    row, unit = look.row(arm.name, metric, group), metric_info(metric).unit
    text = number(row.mean, unit) if row else DASH
    spread = number(row.seed_std, unit) if row and row.seed_std >= 0 else ""
    contrast = look.contrast(arm.name, BASE, metric, group, TABLE_FAMILIES)
    if arm.name == BASE or (contrast is None and group != ALL):
        return Cell(text, spread)
    if contrast is None:
        return Cell(text, spread, DASH)
    interval = interval_of(contrast)
    change, within = _signed(interval, unit)
    return Cell(text, spread, change, within, look.verdict(contrast))


def _signed(interval: Interval, unit: Unit) -> tuple[str, str]:
    return mean_text(interval, unit, signed=True), bounds(interval, unit, signed=True)


def rival_tables(look: Lookup, finding: Finding) -> list[Table]:
    """Per source the chosen objective's arm against the base and the arms on the same pairs; the
    source of the chosen arm first."""
    best = finding.best
    if best is None:
        return []
    tables = []
    for arm in sorted(look.ablation.arms, key=lambda arm: arm.name != best.name):
        if arm.objective != best.objective:
            continue
        rows = tuple(
            _contrast_row(look, other.label, contrast)
            for other in look.ablation.arms
            if other.source in ("", arm.source) and other.name != arm.name
            for metric in finding.metrics
            if (contrast := look.contrast(arm.name, other.name, metric)) is not None
        )
        if rows:
            tables.append(Table(title_of(arm), "arm", _CONTRAST, rows))
    return tables


def contrast_table(look: Lookup) -> Table:
    """All contrasts over all scenes that have a number, with their families."""
    rows = []
    for contrast in look.ablation.contrasts:
        if contrast.group != ALL or not math.isfinite(contrast.mean):
            continue
        row = _contrast_row(look, _title(look, contrast.a), contrast)
        *cells, verdict = row.cells
        cells = [Cell(_title(look, contrast.b)), *cells, Cell(contrast.family), verdict]
        rows.append(Row(row.label, tuple(cells), state=row.state))
    *columns, verdict_column = _CONTRAST
    wide = (Column("less"), *columns, Column("family"), verdict_column)
    return Table("All contrasts", "arm", wide, tuple(rows))


_CONTRAST = tuple(
    map(Column, ("metric", "difference", "alone", "in its family", "p", "scenes", "verdict"))
)


def _contrast_row(look: Lookup, label: str, contrast: Contrast) -> Row:
    info, verdict = metric_info(contrast.metric), look.verdict(contrast)
    mean, joint = _signed(interval_of(contrast, family=True), info.unit)
    alone = bounds(interval_of(contrast, family=False), info.unit, signed=True)
    texts = (
        info.title,
        alone or DASH,
        joint or DASH,
        p_text(contrast.p_family),
        str(contrast.scenes),
    )
    cells = [Cell(text) for text in texts]
    cells.insert(1, Cell(mean, style="strong"))
    return Row(label, (*cells, Cell(verdict, verdict=verdict, style="verdict")), state=verdict)


def _title(look: Lookup, name: str) -> str:
    arm = look.arms.get(name)
    return title_of(arm) if arm else name


def search_table(look: Lookup) -> Table:
    """Every tried setting, by objective; validation scenes."""
    labels = {arm.objective: arm.label for arm in look.ablation.arms}
    rows = tuple(
        Row(
            labels.get(point.objective, point.objective),
            (
                Cell(settings_text(point.settings) or DASH, style="code"),
                *(_gain(v) for v in (point.score, point.identity, point.leakage_margin)),
                Cell(number(point.winner_rise, "rate", signed=True).replace(" pp", " %")),
                Cell("✓ chosen" if point.chosen else ""),
            ),
            state="chosen" if point.chosen else "",
        )
        for point in look.ablation.search
    )
    numbers = ("score", "identity", "leakage margin", "winner's rise")
    columns = (Column("settings"), *(Column(name, right=True) for name in numbers))
    return Table("Tried settings", "objective", (*columns, Column("chosen")), rows)


def agreement_table(look: Lookup) -> Table:
    """Scorer against judge."""
    rows = tuple(
        Row(
            _title(look, agreement.arm),
            (
                Cell(metric_info(agreement.metric).title),
                Cell(number(agreement.spearman, "cosine")),
                Cell(str(agreement.pictures)),
                _gain(agreement.scorer_difference),
                _gain(agreement.judge_difference),
            ),
        )
        for agreement in look.ablation.agreement
    )
    numbers = ("rank correlation", "pictures", "scorer's difference", "judge's difference")
    columns = (Column("metric"), *(Column(name, right=True) for name in numbers))
    return Table("Scorer and judge", "arm", columns, rows)


def _gain(value: float) -> Cell:
    return Cell(number(value, "cosine", signed=True))


def reading_table(look: Lookup) -> Table | None:
    """Other readings of FocusDPO less the default one, by the deciding metrics."""
    readings = look.ablation.readings
    metrics = [m for m in look.ablation.deciding if any(r.metric == m for r in readings)]
    if not metrics:
        return None
    by_name = {(reading.name, reading.metric): reading for reading in readings}
    rows = tuple(
        Row(name, tuple(_reading(look, by_name[name, metric]) for metric in metrics), note)
        for name, note in dict.fromkeys((r.name, settings_text(r.settings)) for r in readings)
    )
    return Table("Other readings", "reading", _columns(look, metrics), rows)


def _reading(look: Lookup, reading: Reading) -> Cell:
    wide = Interval(mean=reading.mean, low=reading.family_low, high=reading.family_high)
    mean, within = _signed(wide, metric_info(reading.metric).unit)
    verdict = judge(wide, look.better(reading.metric), reading.scenes)
    return Cell(mean, bounds=within, verdict=verdict)


def markdown(ablation: Ablation) -> str:
    """Verdict, the main table of each source, and the chosen arm's contrasts."""
    look = Lookup(ablation)
    finding = find(look)
    parts = [f"**{escaped(finding.headline)}**", escaped(" ".join(finding.details))]
    parts.append(escaped(protocol_text(ablation)))
    for table in main_tables(look, MAIN):
        parts += [f"### {escaped(table.title)}", as_markdown(table)]
    for table in rival_tables(look, finding):
        parts += [f"### {escaped(table.title)}, against the others", as_markdown(table)]
    readings = reading_table(look)
    if readings is not None:
        title = "### Other readings of FocusDPO, less the default one"
        parts += [title, as_markdown(readings)]
    return "\n\n".join(part for part in parts if part) + "\n"


def protocol_text(ablation: Ablation) -> str:
    """How the numbers came about, in two sentences."""
    arms = sum(arm.name != BASE for arm in ablation.arms)
    seeds = len(ablation.seeds)
    level = f"{100 * ablation.level:.4g} %"
    return (
        f"Protocol {ablation.protocol}: {arms} trained arms, {seeds} training "
        f"seed{'s' if seeds != 1 else ''} each, {ablation.steps} steps of {ablation.batch_pairs} "
        f"pairs; every arm and the base paint the same {ablation.scenes} scenes from the same "
        "noise. Differences are paired over scenes and seeds; brackets are "
        f"{level} intervals of a crossed bootstrap that hold for all contrasts of a family at once."
    )


def escaped(text: str) -> str:
    """Text in which Markdown and HTML mean nothing."""
    text = re.sub(r"([\\`*_\[\]|~#])", r"\\\1", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def as_markdown(table: Table) -> str:
    """The table in GitHub's Markdown; spreads of seeds and notes are left out."""
    head = [f"{column.title} {ARROWS.get(column.better, '')}".strip() for column in table.columns]
    lines = [[escaped(word) for word in (table.head, *head)], ["---"] * (1 + len(head))]
    for row in table.rows:
        label = f"**{escaped(row.label)}**" if row.state == "best" else escaped(row.label)
        lines.append([label, *(_cell_markdown(cell) for cell in row.cells)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell_markdown(cell: Cell) -> str:
    """A mean, and below it its difference; bold where the interval does not hold zero."""
    decided = "**" if cell.bounds and cell.verdict in ("better", "worse") else ""
    if cell.change and cell.bounds:
        return (
            f"{escaped(cell.text)}<br>{decided}{escaped(f'{cell.change} {cell.bounds}')}{decided}"
        )
    return f"{decided}{escaped(f'{cell.text} {cell.bounds}'.strip())}{decided}"
