"""How a run tells that it goes on: `watch(phase, done, total, figures)`, called now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Watch = Callable[[str, int, int, Mapping[str, float]], None]
"""Phase, units done, units in all, figures worth showing."""

SHOWN = 3
NOT_SHOWN = {"step", "lr"}
"""A bar has room for a few figures; all of them are in the run's tables."""

LINE_SECONDS = 10.0
"""Where no bar can be drawn (a log file), a line at most this often."""


def quiet(phase: str, done: int, total: int, figures: Mapping[str, float]) -> None:
    """Shows nothing."""


class Bars:
    """Progress bars on stderr, or a line now and then where stderr is no terminal."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._live = console.is_terminal
        self._bars = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._last: dict[str, float] = {}

    def __enter__(self) -> Bars:
        if self._live:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._live:
            self._bars.stop()

    def __call__(self, phase: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        few = [(name, figures[name]) for name in figures if name not in NOT_SHOWN][:SHOWN]
        shown = "  ".join(f"{name} {value:.4g}" for name, value in few)
        if self._live:
            if phase not in self._tasks:
                self._tasks[phase] = self._bars.add_task(phase, total=total, figures=shown)
            self._bars.update(self._tasks[phase], completed=done, total=total, figures=shown)
            return
        now = time.monotonic()
        if done >= total or now - self._last.get(phase, -LINE_SECONDS) >= LINE_SECONDS:
            self._last[phase] = now
            sys.stderr.write(f"{phase}: {done}/{total}  {shown}".rstrip() + "\n")
            sys.stderr.flush()


@contextmanager
def working(what: str) -> Iterator[None]:
    """Says what goes on while nothing can be counted: a spinner, or one line in a log file."""
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(what):
            yield
    else:
        sys.stderr.write(f"{what} ...\n")
        yield
