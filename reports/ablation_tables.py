"""An ablation's tables as text, for the page and as GitHub Markdown."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from focusdpo.data_schemas.ablations import (
    BASE,
    Ablation,
    Agreement,
    Arm,
    Contrast,
    Reading,
    SearchPoint,
)
from focusdpo.reports.ablation_verdict import (
    ALL,
    DASH,
    SOURCES,
    Change,
    Finding,
    Lookup,
    bounds_text,
    family_interval,
    find,
    own_interval,
    p_text,
    settings_text,
    signed_text,
    title_of,
    unit_of,
    value_text,
)
from focusdpo.reports.metric_texts import judge, metric_info
from focusdpo.reports.view import Better, Interval, Verdict

MAIN = ("identity", "leakage_margin", "confusion", "duplicate", "class_recognition", "copy_paste")
"""Metrics of the first table; the others come folded."""


@dataclass(frozen=True, slots=True)
class Column:
    """A metric or a group of scenes."""

    title: str
    better: Better = "neither"
    note: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """An arm's mean, the spread of its seeds ("" with one), and its difference to the base."""

    mean: str
    spread: str
    change: Change


@dataclass(frozen=True, slots=True)
class ArmLine:
    """A table's row."""

    label: str
    note: str
    best: bool
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class ArmTable:
    """Arms by metrics, or by groups of one metric."""

    title: str
    columns: tuple[Column, ...]
    lines: tuple[ArmLine, ...]


@dataclass(frozen=True, slots=True)
class ContrastLine:
    """One contrast with both of its intervals."""

    a: str
    b: str
    metric: str
    family: str
    mean: str
    own: str
    joint: str
    p: str
    scenes: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class SearchLine:
    """One tried setting."""

    objective: str
    settings: str
    score: str
    identity: str
    leakage_margin: str
    winner_rise: str
    chosen: bool


@dataclass(frozen=True, slots=True)
class AgreementLine:
    """Scorer and judge on one arm's pictures."""

    arm: str
    metric: str
    spearman: str
    pictures: int
    scorer: str
    judge: str


def main_tables(look: Lookup, metrics: Sequence[str]) -> list[ArmTable]:
    """A table per source: the base, then the source's arms, by the metrics that the record has."""
    shown = [metric for metric in metrics if metric in look.metrics]
    columns = tuple(
        Column(metric_info(metric).title, look.better(metric), metric_info(metric).explain)
        for metric in shown
    )
    tables = []
    for source in look.sources or ("",):
        lines = tuple(
            _line(look, arm, [(metric, ALL) for metric in shown])
            for arm in look.ablation.arms
            if arm.source in ("", source)
        )
        title = SOURCES.get(source, source)
        tables.append(ArmTable(title[:1].upper() + title[1:], columns, lines))
    return tables if shown else []


def rest(look: Lookup) -> list[str]:
    """The metrics that the first table leaves out."""
    return [metric for metric in look.metrics if metric not in MAIN]


def group_tables(look: Lookup) -> list[ArmTable]:
    """A table per deciding metric: arms by groups of scenes."""
    groups = [group for group in look.groups if group != ALL]
    tables = []
    for metric in look.ablation.deciding:
        shown = [group for group in groups if any(look.row(a, metric, group) for a in look.arms)]
        if not shown:
            continue
        columns = tuple(Column(group, note=_scenes(look, metric, group)) for group in shown)
        lines = tuple(
            _line(look, arm, [(metric, group) for group in shown], full=True)
            for arm in look.ablation.arms
        )
        tables.append(ArmTable(metric_info(metric).title, columns, lines))
    return tables


def _scenes(look: Lookup, metric: str, group: str) -> str:
    counts = [row.scenes for name in look.arms if (row := look.row(name, metric, group))]
    return f"{max(counts)} scenes" if counts else ""


def _line(
    look: Lookup, arm: Arm, places: Sequence[tuple[str, str]], *, full: bool = False
) -> ArmLine:
    cells = []
    for metric, group in places:
        row, unit = look.row(arm.name, metric, group), unit_of(metric)
        spread = value_text(row.seed_std, unit) if row and row.seed_std >= 0 else ""
        change = look.change(arm.name, metric, group)
        if arm.name == BASE or (group != ALL and not change.bounds):
            change = Change("", "")
        cells.append(Cell(value_text(row.mean if row else None, unit), spread, change))
    note = SOURCES.get(arm.source, arm.source) if full else ""
    return ArmLine(arm.label, note, arm.name == look.ablation.best, tuple(cells))


def rival_lines(look: Lookup, finding: Finding) -> list[tuple[str, list[ContrastLine]]]:
    """Per source the chosen objective's arm against the base and the arms on the same pairs; the
    source of the chosen arm first."""
    best = finding.best
    if best is None:
        return []
    tables = []
    for arm in sorted(look.ablation.arms, key=lambda arm: arm.name != best.name):
        if arm.objective != best.objective:
            continue
        lines = [
            dataclasses.replace(contrast_line(look, found), b=other.label)
            for other in look.ablation.arms
            if other.source in ("", arm.source) and other.name != arm.name
            for metric in finding.metrics
            if (found := look.contrast(arm.name, other.name, metric)) is not None
        ]
        if lines:
            tables.append((title_of(arm), lines))
    return tables


def contrast_line(look: Lookup, one: Contrast) -> ContrastLine:
    """A contrast as text."""
    unit = unit_of(one.metric)
    own, family = own_interval(one), family_interval(one)
    return ContrastLine(
        a=_title(look, one.a),
        b=_title(look, one.b),
        metric=metric_info(one.metric).title,
        family=one.family,
        mean=signed_text(family, unit),
        own=bounds_text(own, unit) or DASH,
        joint=bounds_text(family, unit) or DASH,
        p=p_text(one.p_family),
        scenes=one.scenes,
        verdict=look.verdict(one),
    )


def _title(look: Lookup, name: str) -> str:
    arm = look.arms.get(name)
    return title_of(arm) if arm else name


def search_lines(look: Lookup) -> list[SearchLine]:
    """Every tried setting, by objective; validation scenes."""
    labels = {arm.objective: arm.label for arm in look.ablation.arms}
    return [_search_line(point, labels) for point in look.ablation.search]


def _search_line(point: SearchPoint, labels: dict[str, str]) -> SearchLine:
    return SearchLine(
        objective=labels.get(point.objective, point.objective),
        settings=settings_text(point.settings) or DASH,
        score=_signed(point.score),
        identity=_signed(point.identity),
        leakage_margin=_signed(point.leakage_margin),
        winner_rise=_percent(point.winner_rise),
        chosen=point.chosen,
    )


def agreement_lines(look: Lookup) -> list[AgreementLine]:
    """Scorer against judge."""
    return [_agreement_line(look, one) for one in look.ablation.agreement]


def _agreement_line(look: Lookup, one: Agreement) -> AgreementLine:
    return AgreementLine(
        arm=_title(look, one.arm),
        metric=metric_info(one.metric).title,
        spearman=value_text(one.spearman, "cosine"),
        pictures=one.pictures,
        scorer=_signed(one.scorer_difference),
        judge=_signed(one.judge_difference),
    )


def reading_table(look: Lookup) -> ArmTable | None:
    """Other readings of FocusDPO less the default one, by the deciding metrics."""
    metrics = [m for m in look.ablation.deciding if any(r.metric == m for r in _readings(look))]
    if not metrics:
        return None
    names = dict.fromkeys((one.name, settings_text(one.settings)) for one in _readings(look))
    found = {(one.name, one.metric): one for one in _readings(look)}
    lines = tuple(
        ArmLine(name, note, False, tuple(_reading(look, found[name, metric]) for metric in metrics))
        for name, note in names
    )
    columns = tuple(Column(metric_info(metric).title, look.better(metric)) for metric in metrics)
    return ArmTable("Other readings", columns, lines)


def _readings(look: Lookup) -> Sequence[Reading]:
    return look.ablation.readings


def _reading(look: Lookup, one: Reading) -> Cell:
    unit = unit_of(one.metric)
    wide = Interval(mean=one.mean, low=one.family_low, high=one.family_high)
    verdict = judge(wide, look.better(one.metric), one.scenes)
    return Cell(signed_text(wide, unit), "", Change("", bounds_text(wide, unit), verdict))


def _signed(value: float) -> str:
    return signed_text(Interval(mean=value, low=value, high=value), "cosine")


def _percent(value: float) -> str:
    text = signed_text(Interval(mean=value, low=value, high=value), "rate")
    return text.replace(" pp", " %")


def markdown(ablation: Ablation) -> str:
    """Verdict, the main table of each source, and the chosen arm's contrasts."""
    look = Lookup(ablation)
    finding = find(look)
    parts = [f"**{escaped(finding.headline)}**", escaped(" ".join(finding.details))]
    parts.append(escaped(protocol_text(ablation)))
    for table in main_tables(look, MAIN):
        parts += [f"### {escaped(table.title)}", _arms(table)]
    for title, lines in rival_lines(look, finding):
        parts += [f"### {escaped(title)}, against the others", _contrasts(lines)]
    readings = reading_table(look)
    if readings is not None:
        parts += [
            "### Other readings of FocusDPO, less the default one",
            _arms(readings, "reading"),
        ]
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


def _arms(table: ArmTable, what: str = "training") -> str:
    head = [what, *(f"{c.title} {_ARROWS.get(c.better, '')}".strip() for c in table.columns)]
    rows = [
        [
            f"**{escaped(line.label)}**" if line.best else escaped(line.label),
            *(_cell(cell) for cell in line.cells),
        ]
        for line in table.lines
    ]
    return _table([escaped(word) for word in head], rows)


_ARROWS = {"higher": "↑", "lower": "↓"}


def _cell(cell: Cell) -> str:
    """Mean, and below it the difference: bold where its interval does not hold zero."""
    change = " ".join(word for word in (cell.change.mean, cell.change.bounds) if word)
    if not cell.change.mean and change:  # the cell is a difference itself
        cell, change = replace(cell, mean=f"{cell.mean} {change}"), ""
    decided = cell.change.verdict in ("better", "worse")
    if not change or not cell.change.bounds:
        return f"**{escaped(cell.mean)}**" if decided else escaped(cell.mean)
    text = f"**{escaped(change)}**" if decided else escaped(change)
    return f"{escaped(cell.mean)}<br>{text}"


def _contrasts(lines: Sequence[ContrastLine]) -> str:
    head = ["against", "metric", "difference", "alone", "family", "p", "verdict"]
    rows = [
        [escaped(w) for w in (x.b, x.metric, x.mean, x.own, x.joint, x.p, x.verdict)] for x in lines
    ]
    return _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
