"""The records behind a report's figures, as files that lie in the page itself: CSV of charts and
tables, JSON of pairs, rejects and scenes. Nothing is fetched to get at them."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

from focusdpo.flows.reports.chart_data import BucketChart, Count, Histogram, LineChart, Scatter
from focusdpo.flows.reports.view import Interval, MetricRow

Chart: TypeAlias = LineChart | BucketChart | Histogram | Scatter
Row: TypeAlias = Sequence[object]

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""With which a text begins that a spreadsheet would run."""


def chart_csv(chart: Chart) -> str:
    """The numbers that a chart draws, one point a row."""
    return _csv(_points(chart))


def _points(chart: Chart) -> Iterator[Row]:
    if isinstance(chart, LineChart):
        yield ("line", chart.x_label, "value")
        for line in chart.lines:
            yield from ((line.name, x, y) for x, y in zip(line.x, line.y, strict=True))
    elif isinstance(chart, BucketChart):
        yield ("sigma_from", "sigma_to", "mean", "low", "high", "pairs")
        yield from ((b.start, b.stop, b.mean, b.low, b.high, b.count) for b in chart.buckets)
    elif isinstance(chart, Histogram):
        yield ("what", "from", "to", "count")
        for name, _, counts in chart.counts:
            edges = zip(chart.edges[:-1], chart.edges[1:], counts, strict=True)
            yield from ((name, low, high, count) for low, high, count in edges)
    else:
        yield ("scene", *chart.names)
        yield from zip(chart.labels, chart.base, chart.adapter, strict=True)


def counts_csv(items: Iterable[Count]) -> str:
    """Bars: what, how many, in words."""
    return _csv([("what", "count", "meaning"), *((i.label, i.count, i.explain) for i in items)])


def metrics_csv(rows: Iterable[MetricRow]) -> str:
    """The table of an evaluation with all its intervals, unrounded."""
    head = ["metric", "group", "scenes", "better", "verdict"]
    ends = [f"{who}_{end}" for who in ("base", "adapter", "difference") for end in _ENDS]
    table: list[Row] = [[*head, *ends]]
    for row in rows:
        values = [v for one in (row.base, row.adapter, row.difference) for v in _ends(one)]
        table.append([row.metric, row.group, row.scenes, row.better, row.verdict, *values])
    return _csv(table)


_ENDS = ("mean", "low", "high")


def _ends(interval: Interval | None) -> list[object]:
    return [""] * len(_ENDS) if interval is None else list(asdict(interval).values())


def record_json(record: Mapping[str, Any]) -> str:
    """A record as it is stored; what is not finite becomes null."""
    return json.dumps(plain(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def file_uri(text: str, kind: str) -> str:
    """A text as a data URI. `kind`: csv or json."""
    mime = {"csv": "text/csv", "json": "application/json"}[kind]
    data = base64.b64encode(text.encode()).decode()
    return f"data:{mime};charset=utf-8;base64,{data}"


def file_name(title: str, kind: str) -> str:
    """What a download is called: letters, digits and hyphens of its title."""
    words = re.sub(r"[^A-Za-z0-9_]+", "-", title).strip("-").lower()[:60]
    return f"{words or 'records'}.{kind}"


FILTERS: dict[str, Callable[..., Any]] = {
    "chart_csv": chart_csv,
    "counts_csv": counts_csv,
    "metrics_csv": metrics_csv,
    "record_json": record_json,
    "file_uri": file_uri,
    "file_name": file_name,
}
"""For the templates."""


def _csv(table: Iterable[Row]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([_cell(v) for v in row] for row in table)
    return out.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, float):
        return "" if not math.isfinite(value) else f"{value:.6g}"
    if isinstance(value, str) and value.startswith(FORMULA):
        return f"'{value}"
    return value
