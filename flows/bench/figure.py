"""A figure of `focusdpo bench`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class BenchFigure:
    """A measured figure, and what it should stay under."""

    name: str
    value: float
    unit: str
    limit: float | None = None

    @property
    def ok(self) -> bool | None:
        """None where nothing is promised."""
        return None if self.limit is None else self.value <= self.limit

    @property
    def wanted(self) -> str:
        return "" if self.limit is None else f"<= {self.limit:g}"

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "ok": self.ok}
