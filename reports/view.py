"""What a report shows: typed records, numbers and encoded pictures, no I/O and no drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Better = Literal["higher", "lower", "neither"]
Unit = Literal["cosine", "rate", "degrees", "number"]
Role = Literal[
    "winner", "loser", "base", "adapter", "plain",
    "series0", "series1", "series2", "series3", "series4", "series5", "series6", "series7",
]  # fmt: skip
"""What a line stands for, and so its colour; a series is one of many of the same kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """One bar."""

    label: str
    count: int
    explain: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A curve. Equal lengths of x and y; NaN in y leaves a gap."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    role: Role = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class LineChart:
    """Curves over one x axis; `level` is a value to compare with (chance, zero)."""

    title: str
    explain: str
    x_label: str
    lines: tuple[Line, ...]
    level: float | None = None
    level_label: str = ""
    smooth: bool = False
    """Draw a running mean over the raw points."""
    dots: bool = False
    """Draw every point: they are few."""
    mark: float | None = None
    """An x worth a vertical line."""
    mark_label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Mean over the samples whose noise level lies in [start, stop)."""

    start: float
    stop: float
    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketChart:
    """A quantity by bucket of sigma (0 clean, 1 noise)."""

    title: str
    explain: str
    buckets: tuple[Bucket, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Counts of two roles over common edges; len(edges) = len(counts) + 1."""

    title: str
    explain: str
    x_label: str
    edges: tuple[float, ...]
    counts: tuple[tuple[str, Role, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scatter:
    """Every scene's base value against its adapter value; equal lengths."""

    title: str
    unit: Unit
    better: Better
    base: tuple[float, ...]
    adapter: tuple[float, ...]
    labels: tuple[str, ...]
    names: tuple[str, str] = ("base", "adapter")
    """What the two values are of."""


Verdict = Literal["better", "worse", "undecided", "unchanged", "too few scenes", "not judged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An encoded image and words for those who do not see it."""

    data: bytes
    mime: str
    width: int
    height: int
    alt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean with its 95 % interval, in the metric's own unit."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A labelled value of the header or of a table."""

    label: str
    value: str
    note: str = ""


def facts(*rows: Sequence[Any]) -> tuple[Fact, ...]:
    """Facts from (label, value) and (label, value, note); one whose value is None is left out."""
    return tuple(
        Fact(label=label, value=str(value), note="".join(note))
        for label, value, *note in rows
        if value is not None
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectScore:
    """What the scorers gave one subject of a pair."""

    class_name: str
    win_identity: float
    lose_identity: float
    win_leakage_margin: float
    lose_leakage_margin: float
    repainted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PairCard:
    """One accepted pair of the gallery."""

    id: str
    prompt: str
    source: str
    mode: str
    win: Picture
    lose: Picture
    prior: Picture
    """The winner with M_prior drawn over it."""
    references: tuple[Picture, ...]
    subjects: tuple[SubjectScore, ...]
    win_clip_t: float
    lose_clip_t: float
    margin: float
    reason: str
    record: Mapping[str, Any] = field(default_factory=dict)
    """The pair as it is stored, and where."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectCard:
    """One dropped candidate of the gallery."""

    candidate_id: str
    prompt: str
    source: str
    reason: str
    detail: str
    image: Picture | None
    against: Picture | None = None
    """The picture that it was compared with: a disrupted candidate's parent."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """The reject as it is stored, and where."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetPart:
    """Section 2: what was built, what was dropped and why."""

    version: str
    facts: tuple[Fact, ...]
    funnel: tuple[Count, ...]
    reject_reasons: tuple[Count, ...]
    breakdowns: tuple[tuple[str, tuple[Count, ...]], ...]
    """Title and bars: pairs by source, by mode, by number of subjects, ..."""
    histograms: tuple[Histogram, ...]
    pairs: tuple[PairCard, ...]
    pairs_chosen: str
    """A sentence."""
    rejects: tuple[RejectCard, ...]
    rejects_chosen: str
    stages: tuple[tuple[str, ...], ...] = ()
    """Rows of the table of stages: stage, artefacts, records, seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FocusRow:
    """One map over all shown noise levels."""

    symbol: str
    explain: str
    scale: str
    """What the darkest and the brightest colour mean."""
    maps: tuple[Picture, ...]
    notes: tuple[str, ...] = ()
    """A number under each map, or nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FocusGrid:
    """The maps of one pair over noise levels; every row has len(sigmas) maps."""

    explain: str
    sigmas: tuple[float, ...]
    context: tuple[Picture, ...]
    """Winner, loser, references."""
    rows: tuple[FocusRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPart:
    """Section 3: one training run."""

    objective: str
    facts: tuple[Fact, ...]
    charts: tuple[LineChart, ...]
    buckets: tuple[BucketChart, ...]
    focus: FocusGrid | None
    looks: tuple[LineChart, ...] = ()
    """Validation metrics over steps, where training looked."""
    notes: tuple[str, ...] = ()
    sheets: tuple[Picture, ...] = ()
    """Sample pictures while training, base beside policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricRow:
    """One metric in one group of scenes, base against adapter."""

    metric: str
    title: str
    explain: str
    unit: Unit
    better: Better
    group: str
    scenes: int
    base: Interval | None
    adapter: Interval | None
    difference: Interval | None
    """Paired, adapter - base."""
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleFigure:
    """A number of one scene for both models."""

    title: str
    unit: Unit
    better: Better
    base: float
    adapter: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """Base and adapter side by side for one scene and seed."""

    why: str
    """worst, median, best or random."""
    scene_id: str
    prompt: str
    references: tuple[Picture, ...]
    base: Picture
    adapter: Picture
    figures: tuple[ExampleFigure, ...]
    base_note: str = ""
    adapter_note: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)
    """What was measured on the pictures, and where they lie."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementLine:
    """A metric of one model, or its paired change, by preference scorer and by judge."""

    title: str
    unit: Unit
    group: str
    model: str
    spearman: float | None
    """Rank correlation of the two; None where ranks say nothing."""
    count: int
    """Over how many pictures; scenes, for the change."""
    scorer: Interval
    judge: Interval
    change: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCells:
    """A metric of every model, in their order."""

    title: str
    explain: str
    unit: Unit
    better: Better
    cells: tuple[Interval | None, ...]
    differences: tuple[Interval | None, ...]
    """From the first model; None for itself and where there is none."""
    protocol: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultLine:
    """Pictures with one fault planted, and the share in which the judge found one."""

    fault: str
    pictures: int
    found: float
    by: str
    planted: bool
    """False where nothing was: what is found then is a false alarm."""

    @property
    def ok(self) -> bool:
        """At least nine in ten found, at most one in twenty a false alarm."""
        return self.found >= 0.9 if self.planted else self.found <= 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstCase:
    """A picture with failed subjects."""

    model: str
    prompt: str
    where: str
    """File and row."""
    picture: Picture
    references: tuple[Picture, ...]
    words: str
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredPart:
    """Pictures from any model."""

    models: tuple[str, ...]
    rows: tuple[ModelCells, ...]
    check: tuple[FaultLine, ...]
    worst: tuple[WorstCase, ...]
    notes: tuple[str, ...]
    left_out: tuple[str, ...]
    left_out_more: int
    source: str
    pictures: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """What became of the scenes in which base or adapter failed a subject."""

    scenes: int
    """That both painted."""
    failed: int
    """In which either failed a subject."""
    cured: int
    """The base failed a subject, the adapter none."""
    spoilt: int
    """The adapter failed a subject, the base none."""
    median: Example | None
    """Of the failed ones, by the change in failed subjects, then in identity."""
    cured_shown: tuple[Example, ...]
    spoilt_shown: tuple[Example, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationPart:
    """Section 4: base against adapter under one protocol."""

    protocol: str
    facts: tuple[Fact, ...]
    rows: tuple[MetricRow, ...]
    scatters: tuple[Scatter, ...]
    examples: tuple[Example, ...]
    chosen: str
    """How the examples were chosen, a sentence."""
    notes: tuple[str, ...] = ()
    agreement: tuple[AgreementLine, ...] = ()
    agreement_notes: tuple[str, ...] = ()
    names: tuple[str, str] = ("base", "adapter")
    """What the two models are called."""
    measured: MeasuredPart | None = None
    outcomes: Outcomes | None = None
    """None where one of two models is not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFact:
    """A model that took part."""

    role: str
    name: str
    fingerprint: str
    licence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LineagePart:
    """Section 5: all that is needed to get the same numbers again."""

    facts: tuple[Fact, ...]
    models: tuple[ModelFact, ...]
    commands: tuple[str, ...]
    configs: tuple[tuple[str, str], ...]
    """Title and text (YAML or JSON)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """A whole report; parts that were not run are None and left out."""

    title: str
    what: str
    created: str
    """ISO time of the report, UTC."""
    machine: str
    software: str
    dataset: DatasetPart | None
    training: TrainingPart | None
    evaluation: EvaluationPart | None
    lineage: LineagePart
