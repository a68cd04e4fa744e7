"""Prefect flow `train`: a dataset version -> an adapter.

One task: training has checkpoints of its own, and a retry goes on from the newest.
"""

from __future__ import annotations

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from focusdpo.data_schemas.progress import Watch, quiet
from focusdpo.flows.config import TrainRun
from focusdpo.flows.prefect import artefacts, events
from focusdpo.flows.prefect.engine import at_work
from focusdpo.flows.prefect.ephemeral import tether
from focusdpo.flows.prefect.retries import worth_retrying
from focusdpo.flows.train.run import TrainOutcome
from focusdpo.flows.train.run import train as train_here
from focusdpo.store.outputs import holds

_WATCH: dict[str, Watch] = {}


@task(
    name="train-adapter",
    retries=2,
    retry_delay_seconds=[2, 20],
    retry_condition_fn=worth_retrying,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def train_adapter(run: TrainRun) -> TrainOutcome:
    """The whole training, from the newest checkpoint."""
    return train_here(run, _WATCH.get(run.out, quiet))


@flow(
    name="train",
    persist_result=False,
    on_failure=[events.on_failure],
    on_crashed=[events.on_failure],
)
def train(run: TrainRun) -> TrainOutcome:
    """A dataset version -> an adapter in `run.out`."""
    with at_work(run.out, gpu=not holds(run.out, "run.json")):
        outcome = train_adapter(run)
        artefacts.text("adapter", summary(outcome), "what was trained")
        if outcome.validation:
            artefacts.table("adapter-validation", outcome.validation, "looks while training")
        by = "train" if flow_run.parent_flow_run_id is None else "a part of another flow"
        events.trained(outcome, by)
        return outcome


def run_here(run: TrainRun, watch: Watch) -> TrainOutcome:
    """The flow in this process, with progress."""
    tether()
    _WATCH[run.out] = watch
    try:
        return train(run)
    finally:
        del _WATCH[run.out]


def summary(outcome: TrainOutcome) -> str:
    """The run as Markdown."""
    rows = "".join(f"| {name} | {value:.4g} |\n" for name, value in outcome.final.items())
    return (
        f"# Adapter from dataset {outcome.version}\n\n{outcome.objective}, {outcome.steps} steps "
        f"on {outcome.pairs} pairs in {outcome.seconds:.0f} s: `{outcome.adapter}`\n\n"
        f"| figure | last |\n| --- | --- |\n{rows}"
    )
