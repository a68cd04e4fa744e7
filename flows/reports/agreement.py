"""Whether the preference scorer and the judge see the same change: lines and a verdict in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from focusdpo.flows.reports.metrics import metric_info
from focusdpo.flows.reports.view import AgreementLine, Interval

DIFFERENCE = "adapter - base"


def agreement_lines(rows: Sequence[Mapping[str, Any]]) -> tuple[AgreementLine, ...]:
    """AgreementRow dicts as the report shows them, in their order."""
    lines = []
    for row in rows:
        info = metric_info(str(row["metric"]))
        scorer, judge = (
            Interval(**{end: float(row[f"{who}_{end}"]) for end in ("mean", "low", "high")})
            for who in ("scorer", "judge")
        )
        lines.append(
            AgreementLine(
                title=info.title,
                unit=info.unit,
                group=str(row["group"]),
                model=str(row["model"]),
                spearman=None if row["spearman"] is None else float(row["spearman"]),
                count=int(row["count"]),
                scorer=scorer,
                judge=judge,
                change=row["model"] == DIFFERENCE,
            )
        )
    return tuple(lines)


def agreement_notes(lines: Sequence[AgreementLine]) -> tuple[str, ...]:
    """A sentence per metric on the change over all scenes."""
    return tuple(
        f"{line.title}: {_words(_side(line.scorer), _side(line.judge))}."
        for line in lines
        if line.change and line.group == "all"
    )


def _side(difference: Interval) -> int:
    """1 above zero, -1 below, 0 when the interval holds it. Both metrics are better higher."""
    return int(difference.low > 0) - int(difference.high < 0)


def _words(scorer: int, judge: int) -> str:
    if scorer == judge:
        return {
            1: "scorer and judge both see a gain",
            -1: "scorer and judge both see a loss",
            0: "neither scorer nor judge sees a change",
        }[scorer]
    if scorer * judge < 0:
        return "scorer and judge see opposite changes, so the scorer is no guide here"
    if judge == 0:
        seen = "gain" if scorer > 0 else "loss"
        return f"only the scorer sees a {seen}: its own preferences, not what the judge measures"
    return f"only the judge sees a {'gain' if judge > 0 else 'loss'}; the scorer is undecided"
