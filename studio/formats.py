"""How numbers and times are written on pages."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from markupsafe import Markup, escape

from focusdpo.flows.reports.bars import forest_row
from focusdpo.flows.reports.chart_data import Unit
from focusdpo.flows.reports.charts import bucket_chart, line_chart
from focusdpo.flows.reports.images import data_uri
from focusdpo.flows.reports.metrics import bounds, mean_text, number
from focusdpo.flows.reports.view import Interval


def count(value: int) -> str:
    """1234567 as 1 234 567, with spaces that do not break."""
    return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def score(value: float | None, digits: int = 3) -> str:
    """A score with its sign as a minus, not a hyphen; a dash where there is none."""
    if value is None or value != value:
        return "–"
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def size(value: float) -> str:
    """Bytes in the unit that suits."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def words(name: str) -> str:
    """missing_subject as missing subject."""
    return name.replace("_", " ")


def day(when: str) -> str:
    """2026-11-28T10:11:12.345+00:00 as 2026-11-28 10:11."""
    return when[:16].replace("T", " ")


def percent(part: float, whole: float) -> str:
    """A share; a dash of nothing."""
    return f"{100 * part / whole:.0f}\N{NARROW NO-BREAK SPACE}%" if whole else "–"


def symbol(text: str) -> Markup:
    """M_prior, M_s, x_t, ... as letters with a subscript; all else escaped."""
    return Markup(re.sub(r"\b(M|e|x)_(prior|s|d|w|l|t)\b", r"\1<sub>\2</sub>", str(escape(text))))


def interval(value: Interval | None, unit: Unit, signed: bool = False) -> Markup:
    """Mean and interval in their unit."""
    if value is None:
        return Markup("–")
    return Markup("{} <small>{}</small>").format(
        mean_text(value, unit, signed=signed), bounds(value, unit, signed=signed)
    )


FILTERS: dict[str, Callable[..., Any]] = {
    "count": count,
    "score": score,
    "size": size,
    "words": words,
    "day": day,
    "percent": percent,
    "symbol": symbol,
    "interval": interval,
    "value": number,
    "line_chart": line_chart,
    "bucket_chart": bucket_chart,
    "forest_row": forest_row,
    "data_uri": data_uri,
}
