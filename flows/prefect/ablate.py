"""Prefect flow `ablate`: a dataset, then a task per cell, then the comparison.

A task waits in a thread for one of the worker processes, which keep their models. One that failed
for a passing reason (a worker that was killed, say) is tried again and goes on from its checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from focusdpo.data_schemas.progress import Watch, quiet
from focusdpo.flows.ablation.plan import Cell
from focusdpo.flows.ablation.run import AblateOutcome, Pending, Workers, dataset_is_there
from focusdpo.flows.ablation.run import ablate as ablate_here
from focusdpo.flows.config import AblateRun
from focusdpo.flows.prefect.build_dataset import build_dataset
from focusdpo.flows.prefect.ephemeral import tether
from focusdpo.flows.prefect.retries import worth_retrying

_AT_WORK: dict[str, tuple[Workers, dict[str, Cell]]] = {}
"""By output folder: its workers and the cells that they were given."""
_WATCH: dict[str, Watch] = {}


@task(
    name="ablation-cell",
    task_run_name="{name}",
    retries=2,
    retry_delay_seconds=[2, 20],
    retry_condition_fn=worth_retrying,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def cell_task(out: str, name: str) -> dict[str, Any]:
    """Train and measure one cell in a worker process."""
    workers, cells = _AT_WORK[out]
    return workers.run(cells[name])


@flow(name="ablate", persist_result=False)
def ablate(run: AblateRun) -> AblateOutcome:
    """Every objective on every kind of pairs with several seeds; the report goes to `run.out`."""
    if not dataset_is_there(run):
        build_dataset(run.build_run())
    with Workers(run.ablation.workers) as workers:
        _AT_WORK[run.out] = (workers, {})

        def submit(cell: Cell) -> Pending:
            _AT_WORK[run.out][1][cell.name] = cell
            return cell_task.submit(run.out, cell.name)

        try:
            outcome = ablate_here(run, submit, _WATCH.get(run.out, quiet))
        finally:
            del _AT_WORK[run.out]
    text = (Path(outcome.report).with_suffix(".md")).read_text("utf-8")
    create_markdown_artifact(text, key="ablation", description="who beats whom")
    link = Path(outcome.report).resolve().as_uri()
    create_link_artifact(link, link_text="report", key="ablation-report")
    return outcome


def run_here(run: AblateRun, watch: Watch) -> AblateOutcome:
    """The flow in this process, with progress."""
    tether()
    _WATCH[run.out] = watch
    try:
        return ablate(run)
    finally:
        del _WATCH[run.out]
