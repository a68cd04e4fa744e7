"""The job measure: a table or folder of pictures from any model, judged, then the report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path

from focusdpo.data_schemas.errors import UserError, counted
from focusdpo.data_schemas.runs import EvalRow, Watch, quiet
from focusdpo.evaluation.measure import run as measurement
from focusdpo.evaluation.measure.fitness import check_lines
from focusdpo.evaluation.measure.foreign_plan import plan_pictures
from focusdpo.evaluation.measure.picture_folder import read_folder
from focusdpo.evaluation.measure.picture_rows import PictureTable, read_table
from focusdpo.evaluation.measure.public_layouts import read_layout
from focusdpo.evaluation.measure.run import MeasureResult, Request
from focusdpo.flows.jobs import Exhibit, Job, Page, Steps, Table, Text
from focusdpo.flows.measure.config import EXAMPLE, MeasureRun
from focusdpo.flows.measure.judges import judge_of
from focusdpo.flows.settings import as_yaml
from focusdpo.flows.wiring import vocabulary
from focusdpo.reports.metric_texts import DASH, bounds, mean_text, metric_info
from focusdpo.reports.view import Interval, Unit
from focusdpo.store.addresses import is_remote
from focusdpo.store.outputs import holds, local, opened

REPORT = "report.html"
FIRST_FEW = 12
"""Problems that are told line by line; run.json has them all."""


def table_of(run: MeasureRun) -> PictureTable:
    """What `run.pictures` holds. UserError for what is neither a table nor a folder."""
    source = Path(run.pictures)
    references = Path(run.references) if run.references else None
    if run.pictures == EXAMPLE and not source.exists():
        source, references = _example(run)
    if run.layout is not None:
        return read_layout(run.layout, source, references)
    if source.is_dir():
        return read_folder(source, references)
    if not source.exists():
        raise UserError(f"{source}: there is neither a table nor a folder of pictures")
    return read_table(
        source, pictures=Path(run.within) if run.within else None, references=references
    )


def _example(run: MeasureRun) -> tuple[Path, Path]:
    """The table and its subjects' folder, below `out`. UserError for other judges than the embedded
    one, and for an address."""
    from focusdpo.evaluation.measure.example import REFERENCES, write_example

    if is_remote(run.out) or run.family != "pocket":
        raise UserError("--pictures example: is of the embedded world; give a local --out alone")
    folder = Path(run.out) / EXAMPLE
    return write_example(folder, vocabulary("pocket")[0]), folder / REFERENCES


def request_of(run: MeasureRun) -> Request:
    """What the measurement is told."""
    judge = judge_of(run.family, run.lite, run.evaluate)
    return Request(
        plan=plan_pictures(table_of(run), first=run.first),
        out=run.out,
        judge=judge.fingerprint,
        load=judge.load,
        evaluate=run.evaluate,
        measure=run.measure,
        check=run.check,
        strict=run.strict,
        settings=as_yaml(run),
    )


class Measure(Job[MeasureRun, MeasureResult]):
    """The pictures of `run.pictures`, judged; table and report go to `run.out`."""

    name = "measure"
    config = MeasureRun

    @cached_property
    def request(self) -> Request:
        """Planned once."""
        return request_of(self.run)

    @property
    def folder(self) -> str:
        return self.run.out

    def finished(self) -> bool:
        return measurement.finished(self.request) is not None

    def title(self, result: MeasureResult | None = None) -> str:
        pictures = "" if result is None else f", {counted(result.pictures, 'picture')}"
        return f"{self.run.pictures}{pictures}: {self.run.out}"

    def perform(self, steps: Steps, watch: Watch = quiet) -> MeasureResult:
        judge = partial(self.judge, watch)
        result = steps.step("measure-pictures", "measure-pictures", judge)
        if not self.is_reported(result):
            steps.step("report", "report", partial(write_page, result.out))
        return result

    def judge(self, watch: Watch = quiet) -> MeasureResult:
        """The judging alone, without the page."""
        return measurement.measure(self.request, watch)

    def is_reported(self, result: MeasureResult) -> bool:
        """Whether the page of this very result is there."""
        return result.resumed and holds(result.out, REPORT)

    def changed(self, result: MeasureResult) -> bool:
        return not result.resumed

    def exhibits(self, result: MeasureResult) -> Iterator[Exhibit]:
        yield Text("measurement", "who failed", summary(result))
        rows = [{**asdict(row), "model": result.called(row.model)} for row in result.rows]
        yield Table("measurement-rows", "every metric and group", rows)
        if is_remote(result.out):
            hint = f"`focusdpo report --evaluate {result.out}` writes the page on any machine."
            yield Text("report", "the report", hint)
        else:
            yield Page("report", local(result.out) / REPORT)

    def left_out(self, result: MeasureResult) -> str:
        return f"{counted(len(result.left_out), 'problem')}" if result.left_out else ""


def summary(result: MeasureResult) -> str:
    """Every metric over all scenes as Markdown, a column per model; then the check of the judge and
    what is to be known."""
    names = list(result.names.values())
    heads = [name.replace("|", "\\|") for name in names]
    lines = [f"| metric | {' | '.join(heads)} |", "| --- |" + " --- |" * len(names)]
    for metric in dict.fromkeys(row.metric for row in result.rows if row.group == "all"):
        rows, info = result.of(metric), metric_info(metric)
        cells = [_cell(rows.get(name), info.unit) for name in names]
        lines.append(f"| {info.title} | {' | '.join(cells)} |")
    head = [f"{counted(result.pictures, 'picture')} of {counted(result.scenes, 'scene')}"]
    head += [*result.notes, *(f"left out: {problem}" for problem in result.left_out[:FIRST_FEW])]
    checked = ["```", *check_lines(result.check), "```", ""] if result.check else []
    return "\n".join(["  \n".join(head), "", *checked, *lines])


def _cell(row: EvalRow | None, unit: Unit) -> str:
    if row is None:
        return DASH
    interval = Interval(mean=row.mean, low=row.low, high=row.high)
    return f"{mean_text(interval, unit)} {bounds(interval, unit)}".rstrip()


def write_page(out: str) -> None:
    """The measurement as a page."""
    from focusdpo.reports.report import write_report

    with opened(out, "a report") as output:
        write_report(output.folder / REPORT, evaluate_dir=output.folder)
