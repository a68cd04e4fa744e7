"""What a comparison's page shows: two dataset versions, or two evaluated adapters. No I/O."""

from __future__ import annotations

from dataclasses import dataclass

from focusdpo.flows.reports.chart_data import Count, Scatter
from focusdpo.flows.reports.metrics import Headline
from focusdpo.flows.reports.view import Example, Fact, MetricRow, PairCard


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
