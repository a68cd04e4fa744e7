"""How a run tells that it goes on, and what it leaves behind: artefacts, evaluation rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

SCHEMA_VERSION = 1
"""Version of the store's layout and records; a root of another version is refused."""

Watch = Callable[[str, int, int, Mapping[str, float]], None]
"""`watch(phase, done, total, figures)`: phase, units done, units in all, figures worth showing."""


def quiet(phase: str, done: int, total: int, figures: Mapping[str, float]) -> None:
    """Shows nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefact:
    """An immutable result of one stage for one partition."""

    stage: str
    key: str
    partition: str
    inputs: tuple[str, ...]
    """Content keys of what it was made from."""
    count: int
    """How many records it holds."""
    seconds: float
    """Model computation that made it."""
    files: dict[str, str]
    """File name -> blake2b of its bytes."""
    versions: dict[str, str] = field(default_factory=dict)
    """code: version of the stage; config: digest; model: fingerprint; packages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRow:
    """One metric of one model (or the paired difference) over the evaluation's scenes."""

    protocol: str
    metric: str
    group: str
    """all, 1 subject, 2 subjects, 3 subjects, held-out classes, ..."""
    model: str
    """base, adapter, or adapter - base."""
    mean: float
    low: float
    high: float
    """95 % bootstrap interval over scenes."""
    scenes: int
