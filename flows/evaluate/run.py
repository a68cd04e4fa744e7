"""The job evaluate: the run's settings and models handed to the evaluation, then the report."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import asdict

from focusdpo.data_schemas.errors import counted
from focusdpo.data_schemas.progress import Watch, quiet
from focusdpo.evaluation import run as evaluation
from focusdpo.evaluation.folder import GRID, EvaluateResult
from focusdpo.evaluation.protocols import Request
from focusdpo.flows.config import EvaluateRun
from focusdpo.flows.fit.demand import PAINTING_AND_JUDGING
from focusdpo.flows.fit.supply import require_fit
from focusdpo.flows.jobs import Exhibit, Job, Page, Picture, Steps, Table, Text
from focusdpo.flows.settings import as_yaml
from focusdpo.flows.wiring import free_parts, suite
from focusdpo.store.addresses import is_remote
from focusdpo.store.outputs import holds, local, opened

REPORT = "report.html"


def request_of(run: EvaluateRun) -> Request:
    """What the evaluation is told."""
    return Request(
        protocol=run.protocol,
        adapter=run.adapter,
        out=run.out,
        data=run.data,
        suite=run.suite,
        models=suite(run.family),
        named=run.models.model_dump() if run.models is not None else {},
        evaluate=run.evaluate,
        held_out=run.held_out,
        dreambench=run.dreambench,
        own_scenes=run.own_scenes,
        ingest=run.ingest,
        settings=as_yaml(run),
    )


def evaluate(run: EvaluateRun, watch: Watch = quiet) -> EvaluateResult:
    """Base against `run.adapter`, written to `run.out`. UserError as `evaluation.run.evaluate`."""
    if finished(run) is None:
        free_parts(run.family, PAINTING_AND_JUDGING)
        require_fit("evaluate", run.family)
    return evaluation.evaluate(request_of(run), watch)


def finished(run: EvaluateRun) -> EvaluateResult | None:
    """The result of this very evaluation, when it is there already. Loads no model."""
    return evaluation.finished(request_of(run))


class Evaluate(Job[EvaluateRun, EvaluateResult]):
    """Base against `run.adapter`; the table, pictures and report go to `run.out`."""

    name = "evaluate"
    config = EvaluateRun

    @property
    def folder(self) -> str:
        return self.run.out

    def finished(self) -> bool:
        return finished(self.run) is not None

    def title(self, result: EvaluateResult | None = None) -> str:
        scenes = "" if result is None else f", {counted(result.scenes, 'scene')}"
        return f"{self.run.adapter} by {self.run.protocol}{scenes}: {self.run.out}"

    def perform(self, steps: Steps, watch: Watch = quiet) -> EvaluateResult:
        paint = functools.partial(evaluate, self.run, watch)
        result = steps.step("evaluate-adapter", "evaluate-adapter", paint)
        if not result.resumed or not holds(result.out, REPORT):
            steps.step("report", "report", functools.partial(_report, result.out))
        return result

    def changed(self, result: EvaluateResult) -> bool:
        return not result.resumed

    def exhibits(self, result: EvaluateResult) -> Iterator[Exhibit]:
        yield Text("evaluation", "base against adapter", summary(result))
        yield Table("evaluation-rows", "every group", [asdict(row) for row in result.rows])
        if holds(result.out, GRID):
            grid = local(result.out, GRID) / GRID
            yield Picture("evaluation-sheet", "what base and adapter painted", grid.read_bytes())
        if is_remote(result.out):
            hint = f"`focusdpo report --evaluate {result.out}` writes the page on any machine."
            yield Text("report", "the report", hint)
        else:
            yield Page("report", local(result.out) / REPORT)


def _report(out: str) -> None:
    """The evaluation as a page."""
    from focusdpo.reports.report import write_report

    with opened(out, "a report") as output:
        write_report(output.folder / REPORT, evaluate_dir=output.folder)


def summary(result: EvaluateResult) -> str:
    """The rows over all scenes as Markdown."""
    lines = [
        "| metric | model | mean | 95 % interval | scenes |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {row.metric} | {row.model} | {row.mean:.4f} | {row.low:.4f} to {row.high:.4f} "
            f"| {row.scenes} |"
            for row in result.rows
            if row.group == "all"
        ),
    ]
    protocol = result.rows[0].protocol if result.rows else "-"
    about = [f"{counted(result.scenes, 'scene')}, `{result.adapter}`", *result.notes]
    return f"# Protocol {protocol}\n\n" + "  \n".join(about) + "\n\n" + "\n".join(lines)
