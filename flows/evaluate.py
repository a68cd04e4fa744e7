"""Prefect flow `evaluate`: base against adapter on held-out identities, then the report."""

from __future__ import annotations

import logging
from pathlib import Path

from prefect import flow, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from focusdpo.flows.config import EvaluateRun
from focusdpo.flows.evaluation import EvaluateResult
from focusdpo.flows.evaluation import evaluate as evaluate_here
from focusdpo.flows.progress import Watch, quiet
from focusdpo.flows.report import write_report
from focusdpo.flows.retries import worth_retrying

log = logging.getLogger(__name__)

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
    return write_report(Path(run.out) / "report.html", evaluate_dir=Path(run.out))


@flow(name="evaluate", persist_result=False)
def evaluate(run: EvaluateRun) -> EvaluateResult:
    """Base against `run.adapter`; the table and pictures go to `run.out`."""
    result = evaluate_adapter(run)
    page = report(run)
    create_markdown_artifact(table(result), key="evaluation", description="base against adapter")
    create_link_artifact(page.resolve().as_uri(), link_text="report", key="report")
    return result


def run_here(run: EvaluateRun, watch: Watch) -> EvaluateResult:
    """The flow in this process, with progress."""
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
