"""Validation metrics along training: for the page, and as an SVG that stands alone."""

from __future__ import annotations

import io
import math
from typing import get_args

from focusdpo.data_schemas.ablations import Ablation
from focusdpo.flows.reports.chart_data import Line, LineChart, Role
from focusdpo.flows.reports.metrics import metric_info

SERIES: tuple[Role, ...] = tuple(role for role in get_args(Role) if role.startswith("series"))
COLOURS = (
    "#8a6d3b", "#d1730f", "#b23a48", "#0b7a75", "#5b4bb5", "#07598c", "#7a7a7a", "#a8559b",
)  # fmt: skip
"""Of `series0` and so on; the page's are in `ablation.css`."""


def curve_charts(ablation: Ablation, *, deciding: bool) -> list[LineChart]:
    """A chart per metric that was looked at, the deciding ones or the others; a line per
    objective, always in the same colour."""
    labels = {arm.objective: arm.label for arm in ablation.arms}
    objectives = list(dict.fromkeys([*labels, *(p.objective for p in ablation.curves)]))
    drawn = [name for name in objectives if any(p.objective == name for p in ablation.curves)]
    charts = []
    for metric in dict.fromkeys(point.metric for point in ablation.curves):
        if (metric in ablation.deciding) != deciding:
            continue
        lines = []
        for place, name in enumerate(drawn):
            points = sorted(
                (p.step, p.value)
                for p in ablation.curves
                if p.objective == name and p.metric == metric and math.isfinite(p.value)
            )
            if points:
                steps, values = zip(*points, strict=True)
                role = SERIES[place % len(SERIES)]
                lines.append(Line(name=labels.get(name, name), x=steps, y=values, role=role))
        title = metric_info(metric).title
        charts.append(
            LineChart(
                title=f"{title}: difference to the base",
                explain="",
                x_label="training step",
                lines=tuple(lines),
                level=0.0,
                level_label="base",
            )
        )
    return [chart for chart in charts if chart.lines]


def curves_svg(charts: list[LineChart]) -> bytes:
    """The charts side by side under one legend; the same bytes for the same curves."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    settings = {"svg.hashsalt": "focusdpo", "font.size": 9, "svg.fonttype": "path"}
    with rc_context(settings):
        figure = Figure(figsize=(4.2 * len(charts), 4.0), layout="constrained")
        axes = figure.subplots(1, len(charts), squeeze=False)[0]
        for axis, chart in zip(axes, charts, strict=True):
            axis.axhline(0, color="#5f5a52", linewidth=0.8, linestyle="--")
            for line in chart.lines:
                colour = COLOURS[SERIES.index(line.role)]
                axis.plot(line.x, line.y, color=colour, label=_plain(line.name), marker=".")
            axis.set_title(_plain(chart.title), fontsize=10)
            axis.set_xlabel(chart.x_label)
            axis.spines[["top", "right"]].set_visible(False)
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def _plain(text: str) -> str:
    """No mathtext: a dollar sign is a dollar sign. A leading underscore would hide a label."""
    return text.replace("$", r"\$").lstrip("_") or "?"
