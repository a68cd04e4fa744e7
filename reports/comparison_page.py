"""`focusdpo report --compare A B`: what differs between two dataset versions or two adapters."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import io
import json
import logging
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as package_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from focusdpo.data_schemas.errors import UserError
from focusdpo.reports.chart_data import Count, Scatter
from focusdpo.reports.dataset_section import Records, choose_pairs, dataset_facts, pair_card
from focusdpo.reports.evaluation_section import Folder, metric_rows, pair_up, read_folder
from focusdpo.reports.metric_texts import MINUS, Headline, headline
from focusdpo.reports.render import as_json, by_metric, page
from focusdpo.reports.report import machine_words, write_file
from focusdpo.reports.view import EvaluationPart, Example, Fact, MetricRow, PairCard

if TYPE_CHECKING:
    from pathlib import Path

    from focusdpo.data_schemas.evaluations import EvalScene
    from focusdpo.data_schemas.shards import IndexRow
    from focusdpo.evaluation.pocket_protocol import EvaluateConfig
    from focusdpo.pipeline.dataset_diff import DatasetDiff
    from focusdpo.store.versions import DatasetVersion


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
class AdapterChange:
    """Adapter B against adapter A on the same scenes and noise; in all records `base` is A and
    `adapter` is B."""

    protocol: str
    rows: tuple[MetricRow, ...]
    scatters: tuple[Scatter, ...]
    examples: tuple[Example, ...]
    chosen: str
    notes: tuple[str, ...]


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
    adapters: AdapterChange | None = None


PAINTED_BY = ("protocol", "data", "held_out", "own_scenes", "dreambench", "evaluate", "suite")
"""Settings that decide which scenes are painted, from which noise, and how they are measured."""


def compare_adapters(a: Path, b: Path) -> tuple[AdapterChange, tuple[Side, Side], Headline]:
    """Adapter of evaluation `b` against that of `a`. Raises UserError where they were not painted
    from the same scenes by the same settings."""
    from focusdpo.evaluation.comparison import rows

    folders = read_folder(a), read_folder(b)
    settings = _settings(a), _settings(b)
    _refuse_others(a, b, folders, settings)
    ours, theirs = (_of_adapter(one) for one in folders)
    try:
        table = rows(ours, theirs, _bootstrap(settings[1]))
    except ValueError as error:
        raise UserError(f"{a} and {b}: {error}; evaluate both by the same settings") from error
    both = _as_one(*folders)
    examples, scatters = pair_up(both, extremes=4, randoms=4)
    found = metric_rows([dataclasses.asdict(row) for row in table])
    change = AdapterChange(
        protocol=str(folders[0].run.get("protocol", "unknown")),
        rows=found,
        scatters=scatters,
        examples=examples,
        chosen=(
            f"{len(examples)} of {len(both.base)} scenes, ordered by the change of matched "
            "identity from A to B: where B loses most, the middle, where it gains most, and "
            "random ones drawn by a hash of the scenes' ids. Nobody picked."
        ),
        notes=_notes(folders),
    )
    part = EvaluationPart(
        protocol=change.protocol, facts=(), rows=found, scatters=(), examples=(), chosen=""
    )
    sides = _side("A", a, folders[0]), _side("B", b, folders[1])
    return change, sides, headline(part, who="against A, B")


def _settings(folder: Path) -> Mapping[str, Any]:
    file = folder / "config.yaml"
    found = yaml.safe_load(file.read_text("utf-8")) if file.is_file() else {}
    return found if isinstance(found, dict) else {}


def _bootstrap(settings: Mapping[str, Any]) -> EvaluateConfig:
    from focusdpo.evaluation.pocket_protocol import EvaluateConfig

    return EvaluateConfig.model_validate(settings.get("evaluate") or {})


def _refuse_others(
    a: Path, b: Path, folders: tuple[Folder, Folder], settings: tuple[Mapping[str, Any], ...]
) -> None:
    from focusdpo.flows.build.explain import differences

    wrong = [
        text
        for name in PAINTED_BY
        for text in differences(name, settings[0].get(name), settings[1].get(name))
    ]
    protocols = [str(one.run.get("protocol")) for one in folders]
    if protocols[0] != protocols[1]:
        wrong.insert(0, f"protocol {protocols[0]} -> {protocols[1]}")
    if wrong:
        raise UserError(
            f"{a} and {b}: painted or measured by different settings ({'; '.join(wrong[:4])}), so "
            "nothing is paired; evaluate both adapters by the same settings"
        )


def _of_adapter(folder: Folder) -> Sequence[EvalScene]:
    found = [one for one in folder.records if one.model == "adapter"]
    if not found:
        raise UserError(f"{folder.path}: no adapter was evaluated here, the base alone")
    return found


def _as_one(a: Folder, b: Folder) -> Folder:
    """An evaluation whose base is A's adapter and whose adapter is B's; its pictures are named by
    their whole paths."""

    def placed(folder: Folder) -> dict[str, EvalScene]:
        return {
            scene: dataclasses.replace(one, image=str((folder.path / one.image).resolve()))
            for scene, one in folder.adapter.items()
        }

    return dataclasses.replace(a, base=placed(a), adapter=placed(b), labels=("A", "B"))


def _notes(folders: tuple[Folder, Folder]) -> tuple[str, ...]:
    prints = [one.run.get("fingerprints") or {} for one in folders]
    notes = []
    if prints[0].get("base") != prints[1].get("base"):
        notes.append("The two adapters belong to different base models: A and B differ in both.")
    if prints[0].get("adapter") is not None and prints[0]["adapter"] == prints[1].get("adapter"):
        notes.append("A and B are the same adapter: what differs is chance of the machine.")
    return tuple(notes)


def _side(letter: str, path: Path, folder: Folder) -> Side:
    run = folder.run
    facts = [Fact(label="evaluation", value=str(path))]
    for name, label in (("adapter", "adapter"), ("scenes", "scenes"), ("seed", "seed")):
        if run.get(name) is not None:
            facts.append(Fact(label=label, value=str(run[name])))
    return Side(letter=letter, name=path.name or str(path), facts=tuple(facts))


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
    from focusdpo.reports.dataset_texts import difference
    from focusdpo.store.versions import open_version

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
    sides = _version_side("A", old), _version_side("B", new)
    return change, sides, _headline(told, len(before), len(after))


def _shown(rows: Sequence[IndexRow]) -> list[IndexRow]:
    return choose_pairs(rows, SHOWN)


def _counts(reasons: Mapping[str, int]) -> tuple[Count, ...]:
    return tuple(Count(label=reason, count=count) for reason, count in reasons.items())


def _version_side(letter: str, version: DatasetVersion) -> Side:
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


log = logging.getLogger(__name__)


def write_comparison(out: Path, a: str, b: str, *, root: Path | None = None) -> Path:
    """Write `out` (HTML) and its numbers beside it (`.json`).

    With `root`, `a` and `b` are versions of that dataset ("latest" is one, too); without, folders
    that `evaluate` wrote. Raises UserError when one cannot be read or they cannot be compared.
    """
    data = compare(a, b, root=root)
    write_file(out.with_suffix(".json"), _json(data).encode())
    write_file(out, render(data).encode())
    log.info("comparison %s", out)
    return out


def compare(a: str, b: str, *, root: Path | None) -> Comparison:
    """Read everything that the page shows. Raises UserError as `write_comparison`."""

    about: dict[str, Any] = {
        "created": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "machine": machine_words(),
        "software": package_version("focusdpo"),
    }
    if root is not None:
        change, sides, headline = compare_datasets(root, a, b)
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
    for one in (a, b):
        if not Path(one).is_dir():
            raise UserError(
                f"--compare {one}: no such folder; give two folders that `focusdpo evaluate` "
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
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["what", "A", "B"])
    table.writerows([row.label, row.a, row.b] for row in rows)
    return out.getvalue()


def _json(data: Comparison) -> str:
    return json.dumps(as_json(data), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
