"""Prefect flow `evaluate`: base against adapter on held-out identities, then the report."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from focusdpo.data_schemas.progress import Watch, quiet
from focusdpo.evaluation.folder import GRID, EvaluateResult
from focusdpo.flows.config import EvaluateRun
from focusdpo.flows.evaluate.run import evaluate as evaluate_here
from focusdpo.flows.evaluate.run import finished
from focusdpo.flows.prefect import artefacts, events
from focusdpo.flows.prefect.engine import at_work
from focusdpo.flows.prefect.ephemeral import tether
from focusdpo.flows.prefect.retries import worth_retrying
from focusdpo.reports.report import write_report
from focusdpo.store.addresses import is_remote
from focusdpo.store.outputs import holds, local, opened

_WATCH: dict[str, Watch] = {}


@task(
    name="evaluate-adapter",
    retries=2,
    retry_delay_seconds=[2, 20],
    retry_condition_fn=worth_retrying,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def evaluate_adapter(run: EvaluateRun) -> EvaluateResult:
    """Paint, judge, compare."""
    return evaluate_here(run, _WATCH.get(run.out, quiet))


@task(name="report", cache_policy=NO_CACHE, persist_result=False)
def report(run: EvaluateRun) -> Path:
    """The evaluation as a page."""
    with opened(run.out, "a report") as out:
        return write_report(out.folder / "report.html", evaluate_dir=out.folder)


@flow(
    name="evaluate",
    persist_result=False,
    on_failure=[events.on_failure],
    on_crashed=[events.on_failure],
)
def evaluate(run: EvaluateRun) -> EvaluateResult:
    """Base against `run.adapter`; the table and pictures go to `run.out`."""
    with at_work(run.out, gpu=finished(run) is None):
        result = evaluate_adapter(run)
        page = report(run)
        tell(result, page)
        return result


def tell(result: EvaluateResult, page: Path) -> None:
    """The evaluation on Prefect's page."""
    artefacts.text("evaluation", table(result), "base against adapter")
    artefacts.table("evaluation-rows", [asdict(row) for row in result.rows], "every group")
    if holds(result.out, GRID):
        sheet = local(result.out, GRID) / GRID
        artefacts.picture("evaluation-sheet", sheet.read_bytes(), "what base and adapter painted")
    if is_remote(result.out):
        told = f"`focusdpo report --evaluate {result.out}` writes the page on any machine."
        artefacts.text("report", told, "the report")
    else:
        artefacts.page("report", page)


def run_here(run: EvaluateRun, watch: Watch) -> EvaluateResult:
    """The flow in this process, with progress."""
    tether()
    _WATCH[run.out] = watch
    try:
        return evaluate(run)
    finally:
        del _WATCH[run.out]


def table(result: EvaluateResult) -> str:
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
    about = [f"{result.scenes} scenes, `{result.adapter}`", *result.notes]
    return f"# Protocol {protocol}\n\n" + "  \n".join(about) + "\n\n" + "\n".join(lines)
