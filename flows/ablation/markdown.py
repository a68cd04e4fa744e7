"""An ablation's verdict and tables as GitHub Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from focusdpo.data_schemas.ablations import BASE, Ablation
from focusdpo.flows.ablation.lookup import Lookup
from focusdpo.flows.ablation.tables import (
    MAIN,
    ArmTable,
    Cell,
    ContrastLine,
    main_tables,
    reading_table,
    rival_lines,
)
from focusdpo.flows.ablation.verdict import find


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
