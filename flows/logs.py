"""The log as JSON lines, each with the ids of what it is about: run, flow, stage, partition.

focusdpo --log-json run.jsonl build-dataset ...      FOCUSDPO_LOG_JSON=run.jsonl for workers
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path

from focusdpo.data_schemas.errors import UserError

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
        handler = logging.FileHandler(target, encoding="utf-8")
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
