"""A `ReportData` as one self-contained HTML page: templates, filters, downloads, policy.

Everything that comes from users or files passes jinja2's autoescape or `report_charts.element`.
The page carries a content security policy that allows its own style and script by hash, pictures
as data URIs, and nothing else: it cannot ask the network for anything.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from markupsafe import Markup, escape

from focusdpo.reports import charts, thumbnails
from focusdpo.reports.measure_section import measured_headline
from focusdpo.reports.metric_texts import (
    DASH,
    FEWEST,
    MINUS,
    Headline,
    bounds,
    headline,
    judge,
    mean_text,
    number,
)
from focusdpo.reports.view import (
    BucketChart,
    Count,
    EvaluationPart,
    Example,
    ExampleFigure,
    Fact,
    Histogram,
    Interval,
    LineChart,
    MetricRow,
    Picture,
    ReportData,
    Scatter,
    Unit,
    Verdict,
    facts,
)

if TYPE_CHECKING:
    from jinja2 import Environment

Chart: TypeAlias = LineChart | BucketChart | Histogram | Scatter
Row: TypeAlias = Sequence[object]
Item = TypeVar("Item")

FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # noqa: RUF001
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
        values = [
            v for interval in (row.base, row.adapter, row.difference) for v in _ends(interval)
        ]
        table.append([row.metric, row.group, row.scenes, row.better, row.verdict, *values])
    return _csv(table)


_ENDS = ("mean", "low", "high")


def _ends(interval: Interval | None) -> list[object]:
    return [""] * len(_ENDS) if interval is None else list(asdict(interval).values())


def record_json(record: object) -> str:
    """A record, or a whole report, as `as_json`."""
    return json.dumps(as_json(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


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
    return no_formula(value)


def no_formula(value: object) -> object:
    """A cell of which no spreadsheet makes a formula; the full-width signs count in some."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


TEMPLATES = "templates"
WHY_ORDER = ("worst", "median", "best", "random")


def render(data: ReportData) -> str:
    """The report as HTML. Raises nothing on hostile text: it is escaped."""
    evaluation = data.evaluation
    rows = evaluation.rows if evaluation else ()
    return page(
        "report.html.j2",
        data=data,
        headline=_headline(data),
        hero=_lead(evaluation) if evaluation else None,
        hero_note=_lead_note(evaluation) if evaluation else "",
        hero_pair=_median(sorted(data.dataset.pairs, key=lambda pair: pair.margin))
        if data.dataset
        else None,
        header_facts=_header_facts(data),
        main_rows=[row for row in rows if row.group == "all"],
        forests=_forests(rows),
        groups=by_metric(rows),
    )


def page(
    template: str,
    *,
    styles: Sequence[str] = ("report.css",),
    filters: Mapping[str, Callable[..., Any]] | None = None,
    **values: Any,
) -> str:
    """A page of the report's kind: one file that asks the network for nothing, its style and script
    named by their hashes in its policy."""
    style, script = "".join(asset(name) for name in styles), asset("report.js")
    env = environment()
    env.filters.update(filters or {})
    return env.get_template(template).render(
        style=Markup(style),
        script=Markup(script),
        style_hash=source_hash(style),
        script_hash=source_hash(script),
        pixel_art=thumbnails.PIXEL_ART,
        fewest=FEWEST,
        **values,
    )


def as_json(value: Any) -> Any:
    """The report as JSON types; a picture is its size, words and blake2b, not its bytes; NaN and
    infinity become null."""
    if isinstance(value, Picture):
        digest = hashlib.blake2b(value.data, digest_size=16).hexdigest()
        return {
            "alt": value.alt,
            "mime": value.mime,
            "size": [value.width, value.height],
            "blake2b": digest,
        }
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple | list):
        return [as_json(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _lead(evaluation: EvaluationPart) -> Example | None:
    """The scene that the report begins with."""
    if evaluation.outcomes and evaluation.outcomes.median:
        return evaluation.outcomes.median
    return _median([example for example in evaluation.examples if example.why == "median"])


def _lead_note(evaluation: EvaluationPart) -> str:
    outcomes, (base, adapter) = evaluation.outcomes, evaluation.names
    if outcomes and outcomes.median:
        return (
            f"Not the best scene: the median one of the {outcomes.failed} (of {outcomes.scenes}) in"
            f" which {base} or {adapter} failed a subject, by the change in failed subjects, then"
            " in matched identity."
        )
    return "Not the best scene: the median one by the change of matched identity."


def asset(name: str) -> str:
    """A file of the templates' folder."""
    return (resources.files("focusdpo.reports") / TEMPLATES / name).read_text(encoding="utf-8")


def source_hash(text: str) -> str:
    """The policy's name for an inline style or script."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"sha256-{digest}"


def environment() -> Environment:
    """jinja2 with the report's filters; all text is escaped, an unknown name is an error."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    env = Environment(
        loader=FunctionLoader(asset),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters.update(
        FILTERS,
        data_uri=thumbnails.data_uri,
        line_chart=charts.line_chart,
        bucket_chart=charts.bucket_chart,
        scatter_chart=charts.scatter_chart,
        histogram_chart=charts.histogram_chart,
        bar=charts.bar,
        forest_row=charts.forest_row,
        forest_axis=charts.forest_axis,
        thousands=lambda value: f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}"),
        percent=lambda value: f"{value:.0f}\N{NARROW NO-BREAK SPACE}%",
        two=lambda value: f"{value:.2f}".replace("-", MINUS),
        value=number,
        interval=_interval,
        symbol=_symbol,
        keep_brackets=_keep_brackets,
        moved=_moved,
        example_verdict=_example_verdict,
        order_why=lambda groups: sorted(groups, key=lambda item: WHY_ORDER.index(item[0])),
    )
    return env


def _interval(value: Interval | None, unit: Unit, signed: bool = False) -> Markup:
    if value is None:
        return Markup(DASH)
    return Markup('<span class="iv"><b>{}</b> <small>{}</small></span>').format(
        mean_text(value, unit, signed=signed), bounds(value, unit, signed=signed)
    )


def _symbol(text: str) -> Markup:
    """The text with M_prior, M_s, M_d, e_w, e_l as letters with a subscript."""
    return Markup(re.sub(r"\b(M|e)_(prior|s|d|w|l)\b", r"\1<sub>\2</sub>", str(escape(text))))


def _keep_brackets(text: str) -> str:
    """No line break inside an interval."""
    return re.sub(r"\[[^\]]*\]", lambda match: match[0].replace(" ", "\N{NO-BREAK SPACE}"), text)


def _example_verdict(figure: ExampleFigure) -> Verdict:
    """Of one picture there is no interval: the sign decides, unless both print alike."""
    if number(figure.base, figure.unit) == number(figure.adapter, figure.unit):
        return "unchanged"
    change = figure.adapter - figure.base
    return judge(Interval(mean=change, low=change, high=change), figure.better, FEWEST)


def _moved(chart: Scatter) -> str:
    """How many scenes moved which way, in words."""
    sign = -1 if chart.better == "lower" else 1
    changes = [sign * (a - b) for a, b in zip(chart.adapter, chart.base, strict=True)]
    won, lost = sum(c > 0 for c in changes), sum(c < 0 for c in changes)
    same = len(changes) - won - lost
    end = f", {same} unchanged" if same else ""
    return f"{won} scenes better (filled), {lost} worse (hollow){end}"


@dataclass(frozen=True, slots=True)
class _Forest:
    title: str
    axis: str
    half: float
    scale: float
    rows: tuple[MetricRow, ...]


_FOREST_TITLES: dict[Unit, tuple[str, str, float]] = {
    "cosine": ("Similarities", "cosine", 1.0),
    "rate": ("Rates", "percentage points", 100.0),
    "degrees": ("Angles", "degrees", 1.0),
    "number": ("Other", "the metric's own unit", 1.0),
}


def _forests(rows: Sequence[MetricRow]) -> list[_Forest]:
    """One panel per unit, so that rows of a panel share a true axis."""
    out = []
    for unit, (title, axis, scale) in _FOREST_TITLES.items():
        members = tuple(
            row
            for row in rows
            if row.unit == unit
            and row.group == "all"
            and row.difference is not None
            and row.better != "neither"
        )
        if members:
            out.append(_Forest(title, axis, charts.forest_scale(members), scale, members))
    return out


def by_metric(rows: Sequence[MetricRow]) -> list[tuple[str, str, list[MetricRow]]]:
    """Per metric its rows of all groups, where there is more than one group."""
    rows_by_metric: dict[str, list[MetricRow]] = {}
    for row in rows:
        rows_by_metric.setdefault(row.metric, []).append(row)
    return [
        (members[0].title, members[0].better, members)
        for members in rows_by_metric.values()
        if len(members) > 1
    ]


def _headline(data: ReportData) -> Headline:
    if data.evaluation and data.evaluation.measured:
        return measured_headline(data.evaluation.measured)
    if data.evaluation:
        return headline(data.evaluation.rows, data.evaluation.protocol)
    parts = []
    if data.dataset:
        pairs = next((f.value for f in data.dataset.facts if f.label == "pairs"), "?")
        parts.append(f"{pairs} preference pairs")
    if data.training:
        steps = next((f.value for f in data.training.facts if f.label == "steps"), "?")
        parts.append(f"{steps} training steps with {data.training.objective}")
    detail = (
        "Base and adapter have not been compared yet, so this report makes no claim of quality."
    )
    return Headline(" and ".join(parts) or "An empty report.", detail)


def _median(ranked: Sequence[Item]) -> Item | None:
    return ranked[len(ranked) // 2] if ranked else None


def _header_facts(data: ReportData) -> tuple[Fact, ...]:
    return facts(
        ("dataset version", data.dataset and data.dataset.version),
        ("objective", data.training and data.training.objective),
        ("evaluation protocol", data.evaluation and data.evaluation.protocol),
        ("focusdpo", data.software),
        ("report made", data.created),
        ("machine", data.machine),
    )
