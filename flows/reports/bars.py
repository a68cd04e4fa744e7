"""Bars and forest rows of the report: inline SVG placed by percentages, so that any width fits."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from focusdpo.flows.reports.charts import element, nice_ticks, tick_text
from focusdpo.flows.reports.view import Interval, MetricRow


def bar(count: float, most: float, class_: str = "") -> Markup:
    """A horizontal bar, count / most of the full width."""
    share = 100.0 * count / most if most > 0 else 0.0
    rect = element(
        "rect", width=f"{max(share, 0.4 if count else 0):.2f}%", height="100%", class_="fill"
    )
    return element("svg", rect, class_=f"bar {class_}".strip(), aria_hidden="true")


def forest_scale(rows: Sequence[MetricRow]) -> float:
    """Half width of the axis: covers every interval of the rows."""
    reach = max(
        (
            max(abs(row.difference.low), abs(row.difference.high))
            for row in rows
            if row.difference is not None
        ),
        default=0.0,
    )
    return reach * 1.08 if reach > 0 and math.isfinite(reach) else 0.1


def forest_row(row: MetricRow, half: float) -> Markup:
    """One interval about a zero line; the right half is always the adapter's favour."""
    if row.difference is None:
        return Markup("")
    sign = -1.0 if row.better == "lower" else 1.0

    def place(value: float) -> str:
        return f"{50 + 50 * max(-1.0, min(1.0, sign * value / half)):.2f}%"

    d: Interval = row.difference
    class_ = row.verdict.replace(" ", "-")
    parts = [
        element("line", x1="50%", x2="50%", y1="0", y2="100%", class_="level"),
        element(
            "line",
            x1=place(d.low),
            x2=place(d.high),
            y1="50%",
            y2="50%",
            class_=f"interval {class_}",
        ),
        element("circle", cx=place(d.mean), cy="50%", r=4.5, class_=f"mean {class_}"),
    ]
    return element("svg", *parts, class_="forest", aria_hidden="true")


def forest_axis(half: float, *, scale: float = 1.0) -> Markup:
    """Ticks under forest rows: distance from zero in favour of one side."""
    parts = []
    for tick in nice_ticks(-half * scale, half * scale, 4):
        at = 50 + 50 * tick / (half * scale)
        anchor = "start" if at < 6 else "end" if at > 94 else "middle"
        text = tick_text(abs(tick))
        parts.append(element("text", text, x=f"{at:.2f}%", y="12", text_anchor=anchor))
    return element("svg", *parts, class_="forest-axis", aria_hidden="true")
