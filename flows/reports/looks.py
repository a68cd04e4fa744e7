"""What validation saw while training, from run.json: curves, and which step the adapter holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from focusdpo.flows.reports.chart_data import Line, LineChart, Role
from focusdpo.flows.reports.metrics import metric_info
from focusdpo.flows.reports.view import Fact

_GAINS = ("score", "identity", "leakage_margin")
_HARMS = ("confusion", "duplicate", "missing")
_ROLES: tuple[Role, ...] = ("adapter", "base", "loser", "plain")


def look_charts(run: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[LineChart, ...]:
    """Metrics of every look less the base's, with the step that the adapter holds; nothing where
    training did not look."""
    metric = _settings(config).get("metric", "score")
    gains = tuple(dict.fromkeys((metric, *_GAINS)))
    found = (
        _chart(
            run,
            "What should rise",
            "Less the base's. Score: identity + leakage margin.",
            gains,
        ),
        _chart(
            run,
            "What should not rise",
            "Shares of subjects or scenes, less the base's.",
            tuple(name for name in _HARMS if name not in gains),
        ),
        _chart(
            run,
            "Copy-paste guard",
            "Likeness to the nearest reference in outline and pixels, less the base's. A rise "
            "without a rise of identity means copied pictures.",
            ("copy_paste",),
        ),
    )
    return tuple(chart for chart in found if chart is not None)


def _chart(
    run: Mapping[str, Any], title: str, explain: str, names: Sequence[str]
) -> LineChart | None:
    lines = []
    for name, role in zip(names, _ROLES, strict=False):
        line = _line(_rows(run), name, role)
        if line is not None:
            lines.append(line)
    if not lines:
        return None
    step = run.get("adapter_step")
    return LineChart(
        title=title,
        explain=explain,
        x_label="step",
        lines=tuple(lines),
        level=0.0,
        level_label="base",
        dots=True,
        mark=None if step is None else float(step),
        mark_label="adapter",
    )


def _line(rows: Sequence[Mapping[str, float]], name: str, role: Role) -> Line | None:
    points = [(row["step"], row[name]) for row in rows if math.isfinite(row.get(name, math.nan))]
    if not points:
        return None
    # A fresh adapter is the base.
    steps, values = zip((0.0, 0.0), *points, strict=True)
    return Line(name=_title(name), x=steps, y=values, role=role)


def look_facts(run: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[Fact, ...]:
    """Whose weights the adapter holds, and whether training ended early."""
    rows, looks = _rows(run), _settings(config)
    if not rows:
        return ()
    best = looks.get("keep") == "best"
    metric = _title(looks.get("metric", "score")).lower()
    why = f"best of {len(rows)} looks by {metric}" if best else "the last step"
    return (
        Fact(label="looks at validation", value=str(len(rows))),
        Fact(label="adapter of step", value=str(run.get("adapter_step", "?")), note=why),
        Fact(label="stopped early", value="yes" if run.get("stopped") else "no"),
    )


def look_notes(run: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[str, ...]:
    """A sentence where validation ended the run."""
    if not run.get("stopped"):
        return ()
    patience = _settings(config).get("patience")
    last = f"the last {patience} looks were" if patience and patience > 1 else "the last look was"
    wanted = config.get("steps")
    of = f" of {wanted}" if wanted else ""
    return (
        f"Validation ended training at step {run.get('steps', '?')}{of}: {last} no better "
        "than one before.",
    )


def _rows(run: Mapping[str, Any]) -> list[Mapping[str, float]]:
    return list(run.get("validation") or ())


def _settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("validation") or {}


def _title(name: str) -> str:
    return "Score" if name == "score" else metric_info(name).title
