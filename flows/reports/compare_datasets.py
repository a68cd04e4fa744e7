"""What came, went and changed between two versions of a dataset, with pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from focusdpo.flows.reports.cards import pair_card
from focusdpo.flows.reports.chart_data import Count
from focusdpo.flows.reports.compare_view import Change, DatasetChange, Side, Twin
from focusdpo.flows.reports.dataset import choose_pairs, dataset_facts
from focusdpo.flows.reports.metrics import Headline
from focusdpo.flows.reports.records import Records

if TYPE_CHECKING:
    from pathlib import Path

    from focusdpo.data_schemas.shards import IndexRow
    from focusdpo.pipeline.dataset_diff import DatasetDiff
    from focusdpo.pipeline.versions import DatasetVersion

SHOWN = 8
"""Pairs of each kind with pictures."""
KINDS = {
    "added": "came",
    "removed": "went",
    "changed": "other pictures or another class",
    "licence": "another licence",
}


def compare_datasets(
    root: Path | str, a: str, b: str
) -> tuple[DatasetChange, tuple[Side, Side], Headline]:
    """The change from version `a` to `b`. Raises UserError for an unknown or damaged version."""
    from focusdpo.flows.reports.dataset_report import difference
    from focusdpo.pipeline.versions import open_version

    told = difference(str(root), a, b)
    old, new = open_version(root, told.a), open_version(root, told.b)
    before = {row.pair_id: row for row in old.rows}
    after = {row.pair_id: row for row in new.rows}
    came = [row for name, row in after.items() if name not in before]
    went = [row for name, row in before.items() if name not in after]
    both = [row for name, row in after.items() if name in before]
    changed = [row for row in both if before[row.pair_id].digest != row.digest]
    records = Records(old), Records(new)
    change = DatasetChange(
        subjects=tuple(
            (KINDS[kind], tuple(names)) for kind, names in told.subjects.items() if names
        ),
        causes=tuple(told.causes),
        pairs=tuple(Count(label=name, count=count) for name, count in told.pairs.items()),
        came_because=_counts(told.added),
        went_because=_counts(told.removed),
        tables=_tables(told),
        shards_new=tuple(told.shards_new),
        shards_gone=tuple(told.shards_gone),
        purged=tuple(told.purged),
        came=tuple(pair_card(new, records[1], row) for row in _shown(came)),
        went=tuple(pair_card(old, records[0], row) for row in _shown(went)),
        changed=tuple(
            Twin(
                a=pair_card(old, records[0], before[row.pair_id]),
                b=pair_card(new, records[1], row),
            )
            for row in _shown(changed)
        ),
        totals=(len(came), len(went), len(changed)),
    )
    return change, (_side("A", old), _side("B", new)), _headline(told, len(before), len(after))


def _shown(rows: Sequence[IndexRow]) -> list[IndexRow]:
    return choose_pairs(rows, SHOWN)


def _counts(reasons: Mapping[str, int]) -> tuple[Count, ...]:
    return tuple(Count(label=reason, count=count) for reason, count in reasons.items())


def _side(letter: str, version: DatasetVersion) -> Side:
    return Side(letter=letter, name=version.id, facts=dataset_facts(version))


def _tables(told: DatasetDiff) -> tuple[tuple[str, tuple[Change, ...]], ...]:
    def table(values: Mapping[str, tuple[int, int]]) -> tuple[Change, ...]:
        return tuple(
            Change(label=name.replace("_", " "), a=a, b=b) for name, (a, b) in values.items()
        )

    costs = (
        Change(label="yield", a=told.yields[0], b=told.yields[1], percent=True),
        Change(label="MB of shards", a=told.bytes[0] / 1e6, b=told.bytes[1] / 1e6),
        Change(label="seconds of models", a=told.seconds[0], b=told.seconds[1]),
    )
    return (
        ("Pairs by source", table(told.by_source)),
        ("Pairs by split", table(told.by_split)),
        ("Rejects by reason", table(told.rejects)),
        ("Yield and cost", costs),
    )


def _headline(told: DatasetDiff, before: int, after: int) -> Headline:
    if told.is_empty:
        return Headline("Both versions hold the same pairs.")
    moved = f"{told.pairs['added']} came, {told.pairs['removed']} went"
    if told.pairs["changed"]:
        moved += f", {told.pairs['changed']} changed"
    subjects = [
        f"{', '.join(names)} {'came' if kind == 'added' else 'went'}"
        for kind, names in told.subjects.items()
        if kind in ("added", "removed") and names
    ]
    detail = f"Subjects: {'; '.join(subjects)}. " if subjects else ""
    a, b = (f"{100 * one:.1f}\N{NARROW NO-BREAK SPACE}%" for one in told.yields)
    return Headline(
        f"From {before} to {after} pairs: {moved}.",
        f"{detail}Accepted of what was judged: {a} in A, {b} in B.",
    )
