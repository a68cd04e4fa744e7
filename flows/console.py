"""How a run tells that it goes on: `watch(phase, done, total, figures)`, what is waited for, notes
for people, and the log as JSON lines.

focusdpo --log-json run.jsonl build-dataset ...      FOCUSDPO_LOG_JSON=run.jsonl for workers
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.runs import Watch as Watch
from focusdpo.data_schemas.runs import quiet as quiet
from focusdpo.flows.terminal import printable

SHOWN = 3
NOT_SHOWN = {"step", "lr"}
"""A bar has room for a few figures; all of them are in the run's tables."""

LINE_SECONDS = 10.0
"""Where no bar can be drawn (a log file), a line at most this often."""


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
        self._begun: dict[str, tuple[float, int]] = {}
        """When a phase was first told of, and how far it was."""

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
        if phase not in self._begun or done < self._begun[phase][1]:
            self._begun[phase] = now, done
        if done >= total or now - self._last.get(phase, -LINE_SECONDS) >= LINE_SECONDS:
            self._last[phase] = now
            left = time_left(*self._begun[phase], now, done, total)
            sys.stderr.write(f"{phase}: {done}/{total}  {shown}".rstrip() + f"{left}\n")
            sys.stderr.flush()


def time_left(began: float, begun: int, now: float, done: int, total: int) -> str:
    """ "  about 3 min left", at the pace since a phase was first told of; "" while there is none
    and at its end."""
    if not begun < done < total:
        return ""
    seconds = (now - began) / (done - begun) * (total - done)
    if seconds < 60:
        return f"  about {max(1, round(seconds))} s left"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"  about {minutes} min left"
    return f"  about {seconds / 3600:.1f} h left"


@contextmanager
def working(what: str) -> Iterator[None]:
    """Says what goes on while nothing can be counted: a spinner, or one line in a log file."""
    what = printable(what)
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(escape(what)):
            yield
    else:
        sys.stderr.write(f"{what} ...\n")
        yield


VARIABLE = "FOCUSDPO_LOG_JSON"
OWN = "focusdpo"
"""The logger above all of ours."""

_ABOUT: ContextVar[dict[str, str] | None] = ContextVar("about", default=None)
_COMMAND = uuid.uuid4().hex
"""Stands for the run's id outside a flow: one per process."""


@contextmanager
def about(**ids: str) -> Iterator[None]:
    """Every line that is logged inside has these ids, beside those around it."""
    token = _ABOUT.set({**(_ABOUT.get() or {}), **ids})
    try:
        yield
    finally:
        _ABOUT.reset(token)


WAITING = logging.getLogger(f"{OWN}.waiting")
"""What is waited for; only a command line shows it."""
MOMENT = 0.5
"""Seconds in which nobody wonders."""
_HOLDER = re.compile(r"%[-#0 +]*[\d.]*[a-zA-Z]")


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Says what is waited for, where it takes longer than a moment."""
    late = threading.Timer(MOMENT, WAITING.info, (what,))
    late.daemon = True
    late.start()
    try:
        yield
    finally:
        late.cancel()


class Notes(logging.Handler):
    """The log for people, on whatever is stderr now: bars take its place while they are drawn.

    One line for each kind of note: those that the same line of code says with other numbers or
    names are counted, and told at the end. Libraries' warnings are about what is ours to mend, so
    they are left out. `every`: without such a choice, and with the names of loggers."""

    def __init__(self, *, every: bool = False) -> None:
        super().__init__()
        self._every = every
        self._first: dict[tuple[str, str], str] = {}
        self._others: Counter[tuple[str, str]] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.name == WAITING.name:
            text, kind = f"{text} ...", text
        else:
            ours = record.name.partition(".")[0] == OWN
            if not (ours or self._every) and record.levelno < logging.ERROR:
                return
            kind = str(record.msg) if re.search(r"\w", _HOLDER.sub("", str(record.msg))) else text
        key = (record.name, kind)
        first = key not in self._first
        if first or self._every:
            self._first.setdefault(key, text)
            self._write(self._line(record, text))
        elif text != self._first[key] and record.name != WAITING.name:
            self._others[key] += 1

    def close(self) -> None:
        """Tell how many notes were left out."""
        for key, count in self._others.items():
            first = self._first[key]
            shown = first if len(first) <= SHORT else f"{first[:SHORT]}..."
            self._write(f"{count} more like this: {shown} (-v tells each)")
        self._others.clear()
        super().close()

    def _line(self, record: logging.LogRecord, text: str) -> str:
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        if record.name == WAITING.name:
            return text
        if self._every:
            return f"{record.levelname} {record.name}: {text}"
        return f"{record.levelname.lower()}: {text}"

    def _write(self, line: str) -> None:
        sys.stderr.write(printable(line) + "\n")
        sys.stderr.flush()


SHORT = 60
"""Letters of a note that is only mentioned."""


def log_to_people(verbose: int) -> None:
    """Set up the log of a command line: 0 warnings, 1 more, 2 everything."""
    logging.basicConfig(handlers=[Notes(every=verbose > 0)], level=logging.WARNING)
    logging.captureWarnings(True)
    logging.getLogger(OWN).setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)])
    if os.environ.get("RANK", "0") == "0":  # of several processes, the first
        WAITING.setLevel(logging.INFO)
    # Libraries with a handler of their own; tokenizers and OpenMP: no forks here.
    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error" if verbose == 0 else "warning",
        "DIFFUSERS_VERBOSITY": "error" if verbose == 0 else "warning",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(name, value)


class JsonLines(logging.Formatter):
    """One JSON object per record; `time` in UTC, `run` always there."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "run": _COMMAND,
            **(_ABOUT.get() or {}),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def to_file(path: str | Path) -> None:
    """Append our log to a file as JSON lines, from level INFO on. UserError when it cannot be
    written. Called again for the same file it does nothing."""
    target = Path(path).absolute()
    logger = logging.getLogger(OWN)
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler) and handler.baseFilename == str(target):
            return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(target, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UserError(f"{target}: the log cannot be written there ({error.strerror})") from error
    handler.setFormatter(JsonLines())
    if not logger.isEnabledFor(logging.INFO):
        _hold_back(logger)
        logger.setLevel(logging.INFO)
    logger.addHandler(handler)


def _hold_back(logger: logging.Logger) -> None:
    """Other handlers go on showing what they have shown so far."""
    level = logger.getEffectiveLevel()
    for handler in [*logger.handlers, *logging.getLogger().handlers]:
        handler.setLevel(max(handler.level, level))


def from_environment() -> None:
    """What `--log-json` does, for processes that no command line starts."""
    if path := os.environ.get(VARIABLE):
        to_file(path)
