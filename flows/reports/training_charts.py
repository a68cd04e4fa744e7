"""Charts of a training run: over steps from `steps.parquet`, by noise level from
`buckets.parquet`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from focusdpo.flows.reports.chart_data import Bucket, BucketChart, Line, LineChart, Role

POINTS = 400
"""Curves of longer runs are means over so many equal spans of steps."""

Columns = Mapping[str, NDArray[np.float64]]


def thin(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    """x and y as they are, or as means over `POINTS` equal spans; NaN where a span has no y."""
    if len(x) > POINTS:
        spans = np.array_split(np.arange(len(x)), POINTS)
        x = np.array([x[span].mean() for span in spans])
        y = np.array([_mean(y[span]) for span in spans])
    return tuple(float(v) for v in x), tuple(float(v) for v in y)


def _mean(values: NDArray[np.float64]) -> float:
    present = values[np.isfinite(values)]
    return float(present.mean()) if present.size else math.nan


def curve_charts(steps: Columns, config: Mapping[str, Any]) -> tuple[LineChart, ...]:
    """What changed over steps; curves that this objective has none of are left out."""
    saturation = config.get("guards", {}).get("saturation")
    charts = [
        _chart(
            steps,
            "Loss",
            "Dashed: log 2, the loss of a policy equal to the reference policy.",
            [("loss", "loss", "adapter")],
            level=math.log(2) if _present(steps, "logit") else None,
            level_label="log 2",
        ),
        _chart(
            steps,
            "Implicit accuracy",
            "Share of pairs whose winner the policy favours more than the reference policy does.",
            [("implicit_accuracy", "accuracy", "adapter")],
            level=0.5,
            level_label="chance",
        ),
        _chart(
            steps,
            "What is left of a pair's gradient",
            "sigmoid(\N{MINUS SIGN}logit), mean over pairs: 1/2 at the start, 0 when a pair is "
            "learned and teaches nothing more. Dashed: where training warns (guards.saturation).",
            [("pair_gradient", "pair gradient", "adapter")],
            level=saturation,
            level_label="saturated" if saturation is not None else "",
        ),
        _chart(
            steps,
            "SDPO's scale on the loser's gradient",
            "1: the loser is pushed away at full strength; 0: not at all, since that would raise "
            "the winner's error.",
            [("safeguard", "scale", "adapter")],
        ),
        _chart(
            steps,
            "Error against the reference policy",
            "Winner: e_w minus e_w of the reference policy; loser alike, unweighted. Below zero "
            "the policy fits that image better. Healthy: the winner does not rise.",
            [("win_gap", "winner", "winner"), ("lose_gap", "loser", "loser")],
            level=0.0,
        ),
        _chart(
            steps,
            "Where the weighted error lies",
            "Shares of W e: subject tokens still to be learned (M_s), those already matched, "
            "background.",
            [
                ("share_structure", "M_s", "winner"),
                ("share_matched", "matched", "base"),
                ("share_background", "background", "loser"),
            ],
        ),
        _chart(
            steps,
            "Token confusion",
            "Share of a subject's tokens that resemble another subject's reference most "
            "(scenes of two or three).",
            [("token_confusion", "confusion", "adapter")],
        ),
        _chart(
            steps,
            "Gradient norm",
            "Before clipping.",
            [("grad_norm", "gradient norm", "adapter")],
        ),
    ]
    return tuple(chart for chart in charts if chart is not None)


def _present(steps: Columns, name: str) -> bool:
    return name in steps and bool(np.isfinite(steps[name]).any())


def _chart(
    steps: Columns,
    title: str,
    explain: str,
    columns: Sequence[tuple[str, str, Role]],
    *,
    level: float | None = None,
    level_label: str = "",
) -> LineChart | None:
    lines = []
    for column, name, role in columns:
        if not _present(steps, column):
            continue
        x, y = thin(steps["step"], steps[column])
        lines.append(Line(name=name, x=x, y=y, role=role))
    if not lines:
        return None
    return LineChart(
        title=title,
        explain=explain,
        x_label="step",
        lines=tuple(lines),
        level=level,
        level_label=level_label,
        smooth=True,
    )


_BUCKETS = (
    (
        "alignment",
        "A(t): alignment",
        "How much of each subject's own place its reference finds by features, mean over steps.",
    ),
    (
        "structure_share",
        "|M_s| / |M_prior|",
        "Share of the subject region that the features do not match yet, so that the loss looks "
        "there. It should fall towards clean images.",
    ),
    ("implicit_accuracy", "Implicit accuracy", "By noise level, over the whole run."),
    (
        "pair_gradient",
        "What is left of a pair's gradient",
        "sigmoid(\N{MINUS SIGN}logit): 1/2 at the start, 0 when a pair is learned.",
    ),
    ("win_gap", "e_w against the reference policy", "Winner's error, policy minus reference."),
    ("lose_gap", "e_l against the reference policy", "Loser's error, policy minus reference."),
    (
        "safeguard",
        "SDPO's scale on the loser's gradient",
        "1: pushed away at full strength; 0: not at all.",
    ),
)


def bucket_charts(rows: Columns) -> tuple[BucketChart, ...]:
    """Means over the whole run by tenth of sigma."""
    charts = []
    for column, title, explain in _BUCKETS:
        if _present(rows, column):
            buckets = _buckets(rows, column)
            charts.append(BucketChart(title=title, explain=explain, buckets=buckets))
    return tuple(charts)


def _buckets(rows: Columns, column: str) -> tuple[Bucket, ...]:
    """Weighted means over all steps with normal intervals of the mean."""
    out = []
    for bucket in np.unique(rows["bucket"]):
        inside = (rows["bucket"] == bucket) & np.isfinite(rows[column]) & (rows["count"] > 0)
        if not inside.any():
            continue
        values, counts = rows[column][inside], rows["count"][inside]
        mean = float(np.average(values, weights=counts))
        spread = math.sqrt(float(np.average((values - mean) ** 2, weights=counts)))
        half = 1.96 * spread / math.sqrt(max(1, int(inside.sum()) - 1))
        start, stop = (float(rows[name][inside][0]) for name in ("sigma_low", "sigma_high"))
        out.append(
            Bucket(
                start=start,
                stop=stop,
                mean=mean,
                low=mean - half,
                high=mean + half,
                count=int(counts.sum()),
            )
        )
    return tuple(out)
