"""The command measure."""

from __future__ import annotations

from typing import Any

from focusdpo.data_schemas.errors import counted
from focusdpo.evaluation.protocols import BASE
from focusdpo.flows.commands.options import PREFECT, Incomplete, say
from focusdpo.flows.commands.run import say_licences
from focusdpo.flows.console import Bars
from focusdpo.flows.measure.config import MeasureRun
from focusdpo.flows.runner import carry_out


def measure(run: MeasureRun, prefect: PREFECT = None) -> dict[str, Any]:
    """Measure pictures from any model: which subjects are missing, doubled or in another's looks,
    with intervals, paired where several models painted the same scenes (docs/measure.md).

    What cannot be measured is left out by name, and the exit code is then 3. The same command goes
    on after a stop.
    """
    from focusdpo.flows.measure.run import FIRST_FEW, REPORT, Measure

    if run.lite is None:
        say_licences(run.family)
    with Bars() as watch:
        result = carry_out(Measure(run), watch, prefect=prefect)
    for problem in result.left_out[:FIRST_FEW]:
        say(f"left out: {problem}")
    if len(result.left_out) > FIRST_FEW:
        say(f"left out: {len(result.left_out) - FIRST_FEW} more (run.json)")
    show(result)
    say(f"{result.out}/{REPORT}" + (" (finished before)" if result.resumed else ""))
    summary = result.as_dict()
    return Incomplete(summary) if result.left_out else summary


def show(result: Any) -> None:
    """The check of the judge, then the table over all scenes."""
    from focusdpo.evaluation.measure.fitness import check_lines, fit

    for line in check_lines(result.check) if result.check else ():
        say(line)
    if not fit(result.check):
        say("the judge is not fit for these subjects: read the numbers below with care")
    say(f"{counted(result.pictures, 'picture')} of {counted(result.scenes, 'scene')}")
    for note in result.notes:
        say(f"  {note}")
    names = result.names
    say(f"{'metric':<20}" + "".join(f"{name[:24]:>28}" for name in names.values()))
    for metric in dict.fromkeys(row.metric for row in result.rows if row.group == "all"):
        by_model = {
            row.model: row for row in result.rows if row.metric == metric and row.group == "all"
        }
        cells = [_cell(by_model.get(model)) for model in names]
        say(f"{metric:<20}" + "".join(f"{cell:>28}" for cell in cells))
        for model in names:
            gap = by_model.get(f"{model} - {BASE}")
            if gap is not None and metric == "failed":
                say(f"  {names[model]} - {names[BASE]}: {_cell(gap, signed=True)}")


def _cell(row: Any, *, signed: bool = False) -> str:
    if row is None:
        return "-"
    sign = "+" if signed else ""
    return f"{row.mean:{sign}.3f} [{row.low:{sign}.3f}, {row.high:{sign}.3f}]"
