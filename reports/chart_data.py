"""What the charts of a report show: numbers and words, no drawing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
