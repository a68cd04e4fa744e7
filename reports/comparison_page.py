"""`focusdpo report --compare A B`: what differs between two dataset versions or two adapters."""

from __future__ import annotations

import csv
import datetime
import io
import logging
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as package_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.evaluation.folder import EvaluationFolder
from focusdpo.evaluation.protocols import ADAPTER
from focusdpo.pipeline.dataset_diff import Compare, DatasetDiff, diff, differences, no_causes
from focusdpo.reports.dataset_section import Records, choose_pairs, dataset_facts, pair_card
from focusdpo.reports.evaluation_section import metric_rows, painter, pair_up
from focusdpo.reports.metric_texts import MINUS, Headline, headline
from focusdpo.reports.render import by_metric, no_formula, page, record_json
from focusdpo.reports.report import machine_words
from focusdpo.reports.view import Count, EvaluationPart, Fact, PairCard, facts
from focusdpo.store.artefacts import Store
from focusdpo.store.local import make_folder, write_whole

if TYPE_CHECKING:
    from focusdpo.data_schemas.evaluations import EvalScene


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A or B."""

    letter: str
    name: str
    """Id of the version, or the evaluation's folder."""
    facts: tuple[Fact, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A number of A and of B."""

    label: str
    a: float
    b: float
    percent: bool = False
    """Shares of one, shown in per cent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """A pair that both have, with other content."""

    a: PairCard
    b: PairCard


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetChange:
    """From version A to version B."""

    subjects: tuple[tuple[str, tuple[str, ...]], ...]
    """What became of them, and their names."""
    causes: tuple[str, ...]
    """Settings, models and code that differ."""
    pairs: tuple[Count, ...]
    came_because: tuple[Count, ...]
    went_because: tuple[Count, ...]
    tables: tuple[tuple[str, tuple[Change, ...]], ...]
    shards_new: tuple[str, ...]
    shards_gone: tuple[str, ...]
    purged: tuple[str, ...]
    came: tuple[PairCard, ...]
    went: tuple[PairCard, ...]
    changed: tuple[Twin, ...]
    totals: tuple[int, int, int]
    """Pairs that came, went, changed; of them so many as there is room for are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A whole page."""

    title: str
    what: str
    headline: Headline
    sides: tuple[Side, Side]
    command: str
    """What a reader types to get the page again."""
    created: str
    machine: str
    software: str
    dataset: DatasetChange | None = None
    adapters: EvaluationPart | None = None
    """Adapter B against adapter A on the same scenes and noise: in all records `base` is A and
    `adapter` is B."""


PAINTED_BY = ("protocol", "data", "held_out", "own_scenes", "dreambench", "evaluate", "suite")
"""Settings that decide which scenes are painted, from which noise, and how they are measured."""


def compare_adapters(a: Path, b: Path) -> tuple[EvaluationPart, tuple[Side, Side], Headline]:
    """Adapter of evaluation `b` against that of `a`. Raises UserError where they were not painted
    from the same scenes by the same settings."""
    from focusdpo.evaluation.comparison import rows
    from focusdpo.evaluation.protocols import EvaluateConfig

    folders = EvaluationFolder(a), EvaluationFolder(b)
    _refuse_others(*folders)
    config = EvaluateConfig.model_validate(folders[1].settings.get("evaluate") or {})
    try:
        table = rows(_of_adapter(folders[0]), _of_adapter(folders[1]), config)
    except ValueError as error:
        raise UserError(f"{a} and {b}: {error}; evaluate both by the same settings") from error
    ours, theirs = (
        painter(folder, ADAPTER, name) for folder, name in zip(folders, "AB", strict=True)
    )
    examples, scatters = pair_up(ours, theirs, extremes=4, randoms=4)
    change = EvaluationPart(
        protocol=folders[0].protocol,
        facts=(),
        rows=metric_rows(table),
        scatters=scatters,
        examples=examples,
        chosen=(
            f"{len(examples)} of {len(ours.scenes)} scenes, ordered by the change of matched "
            "identity from A to B: where B loses most, the middle, where it gains most, and "
            "random ones drawn by a hash of the scenes' ids. Nobody picked."
        ),
        notes=_notes(folders),
    )
    sides = _side("A", folders[0]), _side("B", folders[1])
    return change, sides, headline(change.rows, change.protocol, who="against A, B")


def _refuse_others(a: EvaluationFolder, b: EvaluationFolder) -> None:
    wrong = [
        text
        for name in PAINTED_BY
        for text in differences(name, a.settings.get(name), b.settings.get(name))
    ]
    if a.protocol != b.protocol:
        wrong.insert(0, f"protocol {a.protocol} -> {b.protocol}")
    if wrong:
        raise UserError(
            f"{a.path} and {b.path}: painted or measured by different settings "
            f"({'; '.join(wrong[:4])}), so nothing is paired; evaluate both adapters by the same "
            "settings"
        )


def _of_adapter(folder: EvaluationFolder) -> Sequence[EvalScene]:
    records = folder.of(ADAPTER)
    if not records:
        raise UserError(f"{folder.path}: no adapter was evaluated here, the base alone")
    return records


def _notes(folders: tuple[EvaluationFolder, EvaluationFolder]) -> tuple[str, ...]:
    prints = [folder.about.get("fingerprints") or {} for folder in folders]
    notes = []
    if prints[0].get("base") != prints[1].get("base"):
        notes.append("The two adapters belong to different base models: A and B differ in both.")
    if prints[0].get("adapter") is not None and prints[0]["adapter"] == prints[1].get("adapter"):
        notes.append("A and B are the same adapter: what differs is chance of the machine.")
    return tuple(notes)


_OF_A_SIDE = ("adapter", "scenes", "seed")


def _side(letter: str, folder: EvaluationFolder) -> Side:
    run, path = folder.about, folder.path
    side_facts = facts(("evaluation", path), *((name, run.get(name)) for name in _OF_A_SIDE))
    return Side(letter=letter, name=path.name or str(path), facts=side_facts)


SHOWN = 8
"""Pairs of each kind with pictures."""
KINDS = {
    "added": "came",
    "removed": "went",
    "changed": "other pictures or another class",
    "licence": "another licence",
}


def compare_datasets(
    root: Path | str, a: str, b: str, causes: Compare
) -> tuple[DatasetChange, tuple[Side, Side], Headline]:
    """The change from version `a` to `b`. Raises UserError for an unknown or damaged version."""
    from focusdpo.store.versions import open_version

    delta = diff(Store.open(root, create=False), a, b, causes)
    old, new = open_version(root, delta.a), open_version(root, delta.b)
    before = {row.pair_id: row for row in old.rows}
    after = {row.pair_id: row for row in new.rows}
    came = [row for name, row in after.items() if name not in before]
    went = [row for name, row in before.items() if name not in after]
    both = [row for name, row in after.items() if name in before]
    changed = [row for row in both if before[row.pair_id].digest != row.digest]
    records = Records(old), Records(new)
    change = DatasetChange(
        subjects=tuple(
            (KINDS[kind], tuple(names)) for kind, names in delta.subjects.items() if names
        ),
        causes=tuple(delta.causes),
        pairs=tuple(Count(label=name, count=count) for name, count in delta.pairs.items()),
        came_because=_counts(delta.added),
        went_because=_counts(delta.removed),
        tables=_tables(delta),
        shards_new=tuple(delta.shards_new),
        shards_gone=tuple(delta.shards_gone),
        purged=tuple(delta.purged),
        came=tuple(pair_card(new, records[1], row) for row in choose_pairs(came, SHOWN)),
        went=tuple(pair_card(old, records[0], row) for row in choose_pairs(went, SHOWN)),
        changed=tuple(
            Twin(
                a=pair_card(old, records[0], before[row.pair_id]),
                b=pair_card(new, records[1], row),
            )
            for row in choose_pairs(changed, SHOWN)
        ),
        totals=(len(came), len(went), len(changed)),
    )
    a_side, b_side = (
        Side(letter=letter, name=version.id, facts=dataset_facts(version))
        for letter, version in (("A", old), ("B", new))
    )
    return change, (a_side, b_side), _headline(delta, len(before), len(after))


def _counts(reasons: Mapping[str, int]) -> tuple[Count, ...]:
    return tuple(Count(label=reason, count=count) for reason, count in reasons.items())


def _tables(delta: DatasetDiff) -> tuple[tuple[str, tuple[Change, ...]], ...]:
    def table(values: Mapping[str, tuple[int, int]]) -> tuple[Change, ...]:
        return tuple(
            Change(label=name.replace("_", " "), a=a, b=b) for name, (a, b) in values.items()
        )

    costs = (
        Change(label="yield", a=delta.yields[0], b=delta.yields[1], percent=True),
        Change(label="MB of shards", a=delta.bytes[0] / 1e6, b=delta.bytes[1] / 1e6),
        Change(label="seconds of models", a=delta.seconds[0], b=delta.seconds[1]),
    )
    return (
        ("Pairs by source", table(delta.by_source)),
        ("Pairs by split", table(delta.by_split)),
        ("Rejects by reason", table(delta.rejects)),
        ("Yield and cost", costs),
    )


def _headline(delta: DatasetDiff, before: int, after: int) -> Headline:
    if delta.is_empty:
        return Headline("Both versions hold the same pairs.")
    moved = f"{delta.pairs['added']} came, {delta.pairs['removed']} went"
    if delta.pairs["changed"]:
        moved += f", {delta.pairs['changed']} changed"
    subjects = [
        f"{', '.join(names)} {'came' if kind == 'added' else 'went'}"
        for kind, names in delta.subjects.items()
        if kind in ("added", "removed") and names
    ]
    detail = f"Subjects: {'; '.join(subjects)}. " if subjects else ""
    a, b = (f"{100 * share:.1f}\N{NARROW NO-BREAK SPACE}%" for share in delta.yields)
    return Headline(
        f"From {before} to {after} pairs: {moved}.",
        f"{detail}Accepted of what was judged: {a} in A, {b} in B.",
    )


log = logging.getLogger(__name__)


def write_comparison(
    out: Path, a: str, b: str, *, root: Path | None = None, causes: Compare = no_causes
) -> Path:
    """Write `out` (HTML) and its numbers beside it (`.json`).

    With `root`, `a` and `b` are versions of that dataset ("latest" is one, too), and `causes` tells
    what settings, models and code differ; without, folders that `evaluate` wrote. Raises UserError
    when one cannot be read or they cannot be compared.
    """
    data = compare(a, b, root=root, causes=causes)
    make_folder(out.parent)
    write_whole(out.with_suffix(".json"), record_json(data).encode())
    write_whole(out, render(data).encode())
    log.info("comparison %s", out)
    return out


def compare(a: str, b: str, *, root: Path | None, causes: Compare = no_causes) -> Comparison:
    """Read everything that the page shows. Raises UserError as `write_comparison`."""

    about: dict[str, Any] = {
        "created": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "machine": machine_words(),
        "software": package_version("focusdpo"),
    }
    if root is not None:
        change, sides, headline = compare_datasets(root, a, b, causes)
        names = tuple(side.name for side in sides)
        return Comparison(
            title=f"FocusDPO comparison: {names[0]} and {names[1]}",
            what="Two versions of a dataset",
            headline=headline,
            sides=sides,
            command=shlex.join(["focusdpo", "report", "--root", str(root), "--compare", *names]),
            dataset=change,
            **about,
        )
    for folder in (a, b):
        if not Path(folder).is_dir():
            raise UserError(
                f"--compare {folder}: no such folder; give two folders that `focusdpo evaluate` "
                "wrote, or with --root two versions of that dataset"
            )
    adapters, sides, headline = compare_adapters(Path(a), Path(b))
    return Comparison(
        title=f"FocusDPO comparison: {sides[0].name} and {sides[1].name}",
        what="Two adapters on the same scenes",
        headline=headline,
        sides=sides,
        command=shlex.join(["focusdpo", "report", "--compare", a, b]),
        adapters=adapters,
        **about,
    )


def render(data: Comparison) -> str:
    """The page, under the same policy as the report: it asks the network for nothing."""
    rows = data.adapters.rows if data.adapters else ()
    return page(
        "compare.html.j2",
        filters={"amount": amount, "changes_csv": changes_csv},
        data=data,
        main_rows=[row for row in rows if row.group == "all"],
        groups=by_metric(rows),
    )


def amount(value: float, percent: bool = False, signed: bool = False) -> str:
    """A number of a table of changes."""
    if percent:
        unit = " pp" if signed else " %"
        return f"{100 * value:{'+' if signed else ''}.1f}{unit}".replace("-", MINUS)
    digits = 0 if float(value).is_integer() else 1
    text = f"{value:{'+' if signed and value else ''}.{digits}f}"
    return text.replace("-", MINUS)


def changes_csv(rows: Iterable[Change]) -> str:
    """A table of changes, unrounded."""
    out = io.StringIO()
    table = [("what", "A", "B"), *((row.label, row.a, row.b) for row in rows)]
    csv.writer(out, lineterminator="\n").writerows(map(no_formula, row) for row in table)
    return out.getvalue()
