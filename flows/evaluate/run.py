"""The job evaluate: the run's settings and models handed to the evaluation, then the report."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from focusdpo.data_schemas.errors import counted
from focusdpo.data_schemas.runs import Watch, quiet
from focusdpo.evaluation import run as evaluation
from focusdpo.evaluation.folder import GRID, EvaluateResult, result_with
from focusdpo.evaluation.protocols import ADAPTER, BASE, Plan, Request, plan_of
from focusdpo.flows.config import EvaluateRun
from focusdpo.flows.fit.demand import PAINTING_AND_JUDGING
from focusdpo.flows.fit.supply import require_fit
from focusdpo.flows.jobs import Exhibit, Job, Page, Picture, Steps, Table, Text
from focusdpo.flows.settings import as_yaml
from focusdpo.flows.wiring import free_parts, suite
from focusdpo.reports.evaluation_section import metric_rows
from focusdpo.reports.metric_texts import DASH, difference_text, mean_text
from focusdpo.reports.view import Interval, Unit
from focusdpo.store.addresses import is_remote
from focusdpo.store.outputs import holds, local, opened

REPORT = "report.html"


def request_of(run: EvaluateRun) -> Request:
    """What the evaluation is told."""
    return Request(
        protocol=run.protocol,
        adapter=run.adapter,
        out=run.out,
        base_from=run.base_from,
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
    with contextlib.ExitStack() as leaving:
        painting = None
        if finished(run) is None:
            free_parts(run.family, PAINTING_AND_JUDGING)
            if run.num_processes != 1:
                from focusdpo.flows.evaluate.painters import Painters

                painting = leaving.enter_context(Painters(run)).painting
            else:
                require_fit("evaluate", run.family)
        return evaluation.evaluate(request_of(run), watch, painting)


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

    @functools.cached_property
    def plan(self) -> Plan:
        """What it paints. UserError for bad data or an absent adapter."""
        return plan_of(request_of(self.run))

    def finished(self) -> bool:
        return result_with(self.run.out, self.plan.key) is not None

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
        yield Table("evaluation-rows", "every metric and group", verdicts(result))
        sheet = None
        if holds(result.out, GRID):
            sheet = (local(result.out, GRID) / GRID).read_bytes()
            yield Picture("evaluation-sheet", "what base and adapter painted", sheet)
        if is_remote(result.out):
            hint = f"`focusdpo report --evaluate {result.out}` writes the page on any machine."
            yield Text("report", "the report", hint)
        else:
            yield Page("report", local(result.out) / REPORT, sheet)


def _report(out: str) -> None:
    """The evaluation as a page."""
    from focusdpo.reports.report import write_report

    with opened(out, "a report") as output:
        write_report(output.folder / REPORT, evaluate_dir=output.folder)


def verdicts(result: EvaluateResult) -> list[dict[str, Any]]:
    """A row per metric and group, as the report judges them."""
    return [
        {
            "metric": row.title,
            "group": row.group,
            BASE: _mean(row.base, row.unit),
            ADAPTER: _mean(row.adapter, row.unit),
            "adapter - base": difference_text(row.difference, row.unit) if row.difference else DASH,
            "better": row.better,
            "verdict": row.verdict,
            "scenes": row.scenes,
        }
        for row in metric_rows(result.rows)
    ]


def _mean(interval: Interval | None, unit: Unit) -> str:
    return DASH if interval is None else mean_text(interval, unit)


def summary(result: EvaluateResult) -> str:
    """The metrics over all scenes as Markdown, each with its verdict."""
    names = ("metric", BASE, ADAPTER, "adapter - base", "verdict", "scenes")
    lines = [
        f"| {' | '.join(names)} |",
        f"|{' --- |' * len(names)}",
        *(
            f"| {' | '.join(str(row[name]) for name in names)} |"
            for row in verdicts(result)
            if row["group"] == "all"
        ),
    ]
    protocol = result.rows[0].protocol if result.rows else "-"
    about = [f"{counted(result.scenes, 'scene')}, `{result.adapter}`", *result.notes]
    return f"# Protocol {protocol}\n\n" + "  \n".join(about) + "\n\n" + "\n".join(lines)
