"""How a run tells that it goes on: `watch(phase, done, total, figures)`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

Watch = Callable[[str, int, int, Mapping[str, float]], None]
"""Phase, units done, units in all, figures worth showing."""


def quiet(phase: str, done: int, total: int, figures: Mapping[str, float]) -> None:
    """Shows nothing."""
