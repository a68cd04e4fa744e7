"""Charts as data and as inline SVG, coloured by CSS classes so that they follow light and dark.

The view box is as wide as a phone, so text keeps its size there. Every text and attribute passes
through `element`, which escapes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from markupsafe import Markup, escape

from focusdpo.reports.metric_texts import in_sentence
from focusdpo.reports.view import (
    BucketChart,
    Histogram,
    Interval,
    Line,
    LineChart,
    MetricRow,
    Scatter,
)

WIDTH, HEIGHT = 420, 230
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 12, 40


def element(tag: str, *children: str | Markup, **attributes: object) -> Markup:
    """An SVG element; `class_` is class, other underscores become hyphens; all is escaped."""
    text = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(_number(value))}"'
        for name, value in attributes.items()
    )
    return Markup(f"<{tag}{text}>{''.join(escape(child) for child in children)}</{tag}>")


def _number(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def nice_ticks(low: float, high: float, target: int = 5) -> list[float]:
    """Round values (1, 2, 2.5 or 5 times a power of ten) that cover low..high from within."""
    span = high - low
    # Where floats can no longer tell neighbours apart there is one tick.
    if not math.isfinite(span) or span <= 1e-12 * max(abs(low), abs(high), 1e-200):
        return [low]
    rough = span / max(target, 1)
    exponent = math.floor(math.log10(rough))
    power = 10.0**exponent
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 3 - exponent) for index in range(first, last + 1)]


def tick_text(value: float) -> str:
    """A tick's label, with a true minus sign."""
    text = f"{value:.0e}" if value and abs(value) < 1e-3 else f"{value:.4g}"
    return text.replace("-", "\N{MINUS SIGN}")


class _Frame:
    """Maps data to the view box and draws the axes."""

    def __init__(self, xs: Iterable[float], ys: Iterable[float], *, zero: bool = False) -> None:
        x = [v for v in xs if math.isfinite(v)] or [0.0, 1.0]
        y = [v for v in ys if math.isfinite(v)] or [0.0, 1.0]
        self.x0, self.x1 = min(x), max(x)
        self.y0, self.y1 = (min(*y, 0.0) if zero else min(y)), max(y)
        if self.x1 <= self.x0:
            self.x0, self.x1 = self.x0 - 0.5, self.x1 + 0.5
        if self.y1 <= self.y0:
            pad = abs(self.y0) * 0.1 or 0.5
            self.y0, self.y1 = self.y0 - pad, self.y1 + pad
        pad = (self.y1 - self.y0) * 0.06
        self.y0, self.y1 = (self.y0 if zero and self.y0 == 0 else self.y0 - pad), self.y1 + pad

    def x(self, value: float) -> float:
        return LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM)

    def axes(self, x_label: str) -> list[Markup]:
        parts = []
        for tick in nice_ticks(self.y0, self.y1):
            y = self.y(tick)
            parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
            label = tick_text(tick)
            parts.append(element("text", label, x=LEFT - 7, y=y + 4, text_anchor="end"))
        for tick in nice_ticks(self.x0, self.x1):
            x, y = self.x(tick), HEIGHT - BOTTOM + 16
            parts.append(element("text", tick_text(tick), x=x, y=y, text_anchor="middle"))
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(
            element("text", x_label, x=middle, y=HEIGHT - 5, text_anchor="middle", class_="axis")
        )
        return parts

    def level(self, value: float, label: str) -> list[Markup]:
        y = self.y(value)
        parts = [element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="level")]
        if label:
            above = y - 5 if y - TOP > 14 else y + 13
            parts.append(
                element("text", label, x=WIDTH - RIGHT, y=above, text_anchor="end", class_="axis")
            )
        return parts

    def mark(self, value: float, label: str) -> list[Markup]:
        """A vertical line; its label stands at its top, at the side where there is room."""
        x = self.x(value)
        parts = [element("line", x1=x, x2=x, y1=TOP, y2=HEIGHT - BOTTOM, class_="level")]
        if label:
            left = x > WIDTH / 2
            at = {"x": x - 5 if left else x + 5, "text_anchor": "end" if left else "start"}
            parts.append(element("text", label, y=TOP + 10, **at, class_="axis"))
        return parts


def _svg(label: str, parts: Sequence[Markup]) -> Markup:
    return element(
        "svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label, class_="chart"
    )


def _path(points: Iterable[tuple[float, float]]) -> str:
    """An SVG path with gaps at NaN; a point between two gaps is a dot."""
    runs: list[list[str]] = [[]]
    for x, y in points:
        if math.isfinite(x) and math.isfinite(y):
            runs[-1].append(f"{x:.1f} {y:.1f}")
        elif runs[-1]:
            runs.append([])
    return "".join(f"M{'L'.join(run)}{'' if run[1:] else 'h0'}" for run in runs if run)


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Centred mean over at most `window` finite neighbours; NaN where there is none."""
    half = window // 2
    out = []
    for index in range(len(values)):
        near = [v for v in values[max(0, index - half) : index + half + 1] if math.isfinite(v)]
        out.append(sum(near) / len(near) if near else math.nan)
    return out


def line_chart(chart: LineChart) -> Markup:
    """Curves with axes; with `smooth` the raw points are faint and a running mean is drawn."""
    ys = [y for line in chart.lines for y in line.y]
    marks = [chart.mark] if chart.mark is not None else []
    frame = _Frame(
        [*(x for line in chart.lines for x in line.x), *marks],
        [*ys, *([chart.level] if chart.level is not None else [])],
    )
    parts = frame.axes(chart.x_label)
    for line in chart.lines:
        parts += _curve(frame, line, smooth=chart.smooth)
        if chart.dots:
            parts += [
                element("circle", cx=frame.x(x), cy=frame.y(y), r=3.2, class_=f"dot {line.role}")
                for x, y in zip(line.x, line.y, strict=True)
                if math.isfinite(y)
            ]
    if chart.level is not None:
        parts += frame.level(chart.level, chart.level_label)
    for at in marks:
        parts += frame.mark(at, chart.mark_label)
    ends = "; ".join(
        f"{line.name} ends at {tick_text(known[-1])}"
        for line in chart.lines
        if (known := [y for y in line.y if math.isfinite(y)])
    )
    return _svg(f"{chart.title}. {ends}.", parts)


def _curve(frame: _Frame, line: Line, *, smooth: bool) -> list[Markup]:
    def path(values: Sequence[float], class_: str) -> Markup:
        d = _path((frame.x(x), frame.y(y)) for x, y in zip(line.x, values, strict=True))
        return element("path", d=d, class_=f"curve {line.role} {class_}")

    if not smooth or len(line.y) < 20:
        return [path(line.y, "mean")]
    window = len(line.y) // 10  # the same for every curve, and printed with the chart
    return [path(line.y, "raw"), path(running_mean(line.y, window), "mean")]


def bucket_chart(chart: BucketChart) -> Markup:
    """Means with intervals at the middle of each sigma bucket, joined; sigma 0 at the left."""
    full = [b for b in chart.buckets if b.count > 0]
    frame = _Frame([0.0, 1.0], [v for b in full for v in (b.low, b.high, b.mean)], zero=True)
    parts = frame.axes("sigma (0 clean, 1 noise)")
    centres = [(frame.x((b.start + b.stop) / 2), frame.y(b.mean)) for b in full]
    for (x, y), b in zip(centres, full, strict=True):
        parts.append(
            element(
                "line", x1=x, x2=x, y1=frame.y(b.low), y2=frame.y(b.high), class_="whisker adapter"
            )
        )
        parts.append(element("circle", cx=x, cy=y, r=3.5, class_="dot adapter"))
    parts.append(element("path", d=_path(centres), class_="curve adapter thin"))
    words = ", ".join(f"{tick_text(b.start)}: {tick_text(round(b.mean, 3))}" for b in full)
    return _svg(f"{chart.title} by sigma bucket. {words}.", parts)


def histogram_chart(chart: Histogram) -> Markup:
    """Overlaid outlines of counts, one per role."""
    top = max((max(counts, default=0) for _, _, counts in chart.counts), default=0)
    frame = _Frame(chart.edges, [0, top or 1], zero=True)
    parts = frame.axes(chart.x_label)
    for _, role, counts in chart.counts:
        steps = [(frame.x(chart.edges[0]), frame.y(0))]
        for index, count in enumerate(counts):
            y = frame.y(count)
            steps += [(frame.x(chart.edges[index]), y), (frame.x(chart.edges[index + 1]), y)]
        steps.append((frame.x(chart.edges[-1]), frame.y(0)))
        parts.append(element("path", d=_path(steps), class_=f"area {role}"))
    names = ", ".join(f"{name}: {sum(counts)}" for name, _, counts in chart.counts)
    return _svg(f"{chart.title}. {names}.", parts)


def scatter_chart(chart: Scatter) -> Markup:
    """Base across, adapter up, one dot a scene; on the dashed diagonal nothing changed. Dots on
    the adapter's side are filled, the others hollow."""
    both = [*chart.base, *chart.adapter]
    frame = _Frame(both, both)
    frame.x0, frame.x1 = frame.y0, frame.y1
    parts = frame.axes(f"{chart.names[0]}: {in_sentence(chart.title)}")
    parts.append(element("text", chart.names[1], x=LEFT + 6, y=TOP + 10, class_="axis"))
    ends = {"x1": frame.x(frame.x0), "y1": frame.y(frame.y0)}
    ends |= {"x2": frame.x(frame.x1), "y2": frame.y(frame.y1)}
    parts.append(element("line", **ends, class_="level"))
    sign = -1 if chart.better == "lower" else 1
    won = lost = 0
    for base, adapter, label in zip(chart.base, chart.adapter, chart.labels, strict=True):
        change = sign * (adapter - base)
        won, lost = won + (change > 0), lost + (change < 0)
        words = f"{label}: {tick_text(round(base, 3))} to {tick_text(round(adapter, 3))}"
        side = "better" if change > 0 else "worse" if change < 0 else "same"
        at = {"cx": frame.x(base), "cy": frame.y(adapter), "r": 3.4}
        parts.append(element("circle", element("title", words), **at, class_=f"scene {side}"))
    return _svg(f"{chart.title} of every scene: {won} better, {lost} worse.", parts)


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
