"""What each metric means, when a difference counts, and which sentence a report may open with;
times and users' words in text."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from focusdpo.data_schemas.scenes import stable_hash
from focusdpo.reports.view import Better, Interval, MetricRow, Unit, Verdict

MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"
"""Stands for a number that has no meaning or was not measured."""


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """How to name and read a metric."""

    title: str
    explain: str
    unit: Unit
    better: Better


_UNITS: dict[str, Unit] = {
    "share": "rate",
    "cosine": "cosine",
    "correlation": "cosine",
    "degrees": "degrees",
}


def metric_info(name: str) -> MetricInfo:
    """What the tables of metrics say of it; an unknown one goes by its name and is not judged."""
    from focusdpo.evaluation.dreambench_metrics import BENCH_METRICS
    from focusdpo.evaluation.measure.judging import FOREIGN_METRICS
    from focusdpo.evaluation.measure.published import PUBLISHED_METRICS
    from focusdpo.evaluation.metrics import METRICS

    tables = (METRICS, BENCH_METRICS, FOREIGN_METRICS, PUBLISHED_METRICS)
    metric = next((table[name] for table in tables if name in table), None)
    if metric is None:
        return MetricInfo(name.replace("_", " "), "", "number", "neither")
    return MetricInfo(
        metric.label, metric.meaning, _UNITS.get(metric.unit, "number"), metric.better
    )


def in_sentence(title: str) -> str:
    """A metric's title within a sentence; an abbreviation stays as it is."""
    return title if title[1:2].isupper() else title[:1].lower() + title[1:]


FEWEST = 10
"""Scenes below which a bootstrap interval is too narrow to be believed."""


def judge(difference: Interval | None, better: Better, scenes: int) -> Verdict:
    """Better or worse only when the whole interval of adapter - base lies on one side of zero;
    unchanged when every scene is; no judgement on fewer than `FEWEST` scenes."""
    if difference is None or better == "neither":
        return "not judged"
    if scenes < FEWEST:
        return "too few scenes"
    low, high = difference.low, difference.high
    if low == high == 0:
        return "unchanged"
    if better == "lower":
        low, high = -high, -low
    if low > 0:
        return "better"
    return "worse" if high < 0 else "undecided"


_DECIMALS: dict[Unit, int] = {"cosine": 3, "rate": 1, "degrees": 1, "number": 3}
_SUFFIX: dict[Unit, str] = {"cosine": "", "rate": " %", "degrees": "°", "number": ""}


def number(value: float, unit: Unit, *, signed: bool = False, decimals: int | None = None) -> str:
    """A value in its unit: cosines with three decimals, rates in per cent, angles in degrees.

    A signed rate is a difference and so in percentage points (pp).
    """
    if not math.isfinite(value):
        return DASH
    suffix = " pp" if signed and unit == "rate" else _SUFFIX[unit]
    return _digits(value, unit, signed, decimals) + suffix


def _digits(value: float, unit: Unit, signed: bool, decimals: int | None) -> str:
    shown = _DECIMALS[unit] if decimals is None else decimals
    scaled = round(100 * value if unit == "rate" else value, shown) + 0.0  # no minus zero
    if signed and scaled == 0:
        return f"{0:.{shown}f}"
    return f"{scaled:{'+' if signed else ''}.{shown}f}".replace("-", MINUS)


def decimals_of(interval: Interval, unit: Unit) -> int:
    """As many decimals as tell the interval's ends apart, at most 4."""
    width = (interval.high - interval.low) * (100 if unit == "rate" else 1)
    if not 0 < width < math.inf:
        return _DECIMALS[unit]
    return min(4, max(_DECIMALS[unit], 1 - math.floor(math.log10(width))))


def mean_text(interval: Interval, unit: Unit, *, signed: bool = False) -> str:
    """The mean in its unit, with the decimals that its interval deserves."""
    return number(interval.mean, unit, signed=signed, decimals=decimals_of(interval, unit))


def bounds(interval: Interval, unit: Unit, *, signed: bool = False) -> str:
    """The interval in brackets, its unit left to the mean beside it; nothing where it has none."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return ""
    decimals = decimals_of(interval, unit)
    ends = (_digits(v, unit, signed, decimals) for v in (interval.low, interval.high))
    return f"[{', '.join(ends)}]"


def difference_text(interval: Interval, unit: Unit) -> str:
    """A difference and its interval, as in "+0.020 [+0.010, +0.030]"."""
    return f"{mean_text(interval, unit, signed=True)} {bounds(interval, unit, signed=True)}".strip()


@dataclass(frozen=True, slots=True)
class KeyFigure:
    """A difference shown large in the header."""

    title: str
    value: str
    interval: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Headline:
    """The report's first sentence, its second, and the figures below."""

    text: str
    detail: str = ""
    figures: tuple[KeyFigure, ...] = ()


HEADLINE_METRICS = ("failed", "identity", "leakage_margin", "confusion")
DECIDING = ("failed", "identity", "leakage_margin")
"""Metrics that the claim of better focus rests on."""


def headline(rows: Sequence[MetricRow], protocol: str, who: str = "the adapter") -> Headline:
    """The key result in one sentence with its interval; it says undecided where it is."""
    overall = {row.metric: row for row in rows if row.group == "all" and row.difference}
    deciding = [overall[name] for name in DECIDING if name in overall]
    if not deciding:
        return Headline("The evaluation holds no comparison of base and adapter.")
    order: tuple[Verdict, ...] = ("better", "worse", "undecided", "unchanged", "too few scenes")
    groups = [(verdict, [row for row in deciding if row.verdict == verdict]) for verdict in order]
    text = "; ".join(_clause(verdict, rows, who) for verdict, rows in groups if rows)
    counts = sorted({row.scenes for row in deciding})
    scenes = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    figures = tuple(
        key_figure(row.title, row.difference, row.unit, row.verdict)
        for name in HEADLINE_METRICS
        if (row := overall.get(name)) is not None and row.difference is not None
    )
    return Headline(f"{text[0].upper()}{text[1:]}.", _detail(overall, scenes, protocol), figures)


def _clause(verdict: Verdict, rows: Sequence[MetricRow], who: str) -> str:
    names = and_list([in_sentence(row.title) for row in rows])
    if verdict in ("better", "worse"):
        verb = "improves" if verdict == "better" else "worsens"
        parts = [f"{in_sentence(row.title)} by {_with_bounds(row)}" for row in rows]
        return f"{who} {verb} {and_list(parts)}"
    are = "are" if len(rows) > 1 else "is"
    if verdict == "unchanged":
        return f"{names} {are} unchanged"
    if verdict == "too few scenes":
        return f"{names}: too few scenes to tell"
    numbers = and_list([_with_bounds(row) for row in rows])
    every = "both" if len(rows) == 2 else "all"
    hold = f"{every} intervals hold zero" if len(rows) > 1 else "the interval holds zero"
    return f"{names} {are} undecided: {numbers}, {hold}"


def and_list(words: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join([*([", ".join(words[:-1])] if words[:-1] else []), *words[-1:]])


def _with_bounds(row: MetricRow) -> str:
    assert row.difference is not None
    return difference_text(row.difference, row.unit)


def _detail(rows: dict[str, MetricRow], scenes: str, protocol: str) -> str:
    others = [row for name, row in rows.items() if name not in DECIDING]
    worse = [in_sentence(row.title) for row in others if row.verdict == "worse"]
    better = [in_sentence(row.title) for row in others if row.verdict == "better"]
    split = "validation" if protocol.endswith("/val") else "held-out"
    parts = [f"Brackets are 95 % bootstrap intervals, paired over {scenes} {split} scenes."]
    if better:
        parts.append(f"Also better: {', '.join(better)}.")
    if worse:
        parts.append(f"Worse: {', '.join(worse)}.")
    if not worse:
        parts.append("No other metric is measurably worse.")
    return " ".join(parts)


def key_figure(
    title: str, difference: Interval, unit: Unit, verdict: Verdict, level: float = 0.95
) -> KeyFigure:
    """A difference for the header, with the level of its interval."""
    return KeyFigure(
        title=title,
        value=mean_text(difference, unit, signed=True),
        interval=f"{100 * level:.4g} % {bounds(difference, unit, signed=True)}",
        verdict=verdict,
    )


def choose(
    scores: Sequence[tuple[str, float]], *, extremes: int, randoms: int, seed: str = "report"
) -> list[tuple[str, str]]:
    """Which scenes to show, from (scene id, adapter - base oriented so that more is better).

    Returns (why, scene id): worst, median, best by score, and random ones drawn by a hash of the
    ids alone, so that a rerun shows the same and nobody picks. No scene is shown twice.
    """
    ranked = [name for name, _ in sorted(scores, key=lambda item: (item[1], item[0]))]
    count = min(extremes, len(ranked) // 3)
    middle = (len(ranked) - count) // 2
    shown = {
        "worst": ranked[:count],
        "median": ranked[middle : middle + count],
        "best": ranked[len(ranked) - count :][::-1],
    }
    taken = {name for names in shown.values() for name in names}
    rest = sorted(set(ranked) - taken)
    random.Random(stable_hash(seed, *rest)).shuffle(rest)
    shown["random"] = sorted(rest[:randoms])
    return [(why, name) for why, names in shown.items() for name in names]


def seconds_text(seconds: float) -> str:
    """3 h 4 min, 2 min 5 s or 7.3 s."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
    if seconds >= 60:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{seconds:.1f} s"


def time_of(run: Mapping[str, Any]) -> str | None:
    """The time that a run's record tells; None where it tells none."""
    seconds = run.get("seconds")
    return seconds_text(float(seconds)) if isinstance(seconds, int | float) else None


_MARKUP = re.compile(r"([\\`*_{}\[\]#+!|<>~&$])")


def one_line(text: object) -> str:
    """Text that any Markdown shows as it is, on one line: no markup, no HTML, no control signs."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    plain = plain.replace("://", ":\u200b//")  # no address becomes a link by itself
    return _MARKUP.sub(r"\\\1", plain)


def code(text: object) -> str:
    """Text between Markdown's backticks, on one line: nothing in it ends them."""
    return "".join(c if c.isprintable() else " " for c in str(text)).replace("`", "'")
