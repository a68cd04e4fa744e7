"""Prefect flow `train`: a dataset version -> an adapter.

One task: training has checkpoints of its own, and a retry goes on from the newest.
"""

from __future__ import annotations

import logging

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event

from focusdpo.flows.config import TrainRun
from focusdpo.flows.progress import Watch, quiet
from focusdpo.flows.retries import worth_retrying
from focusdpo.flows.training import TrainOutcome
from focusdpo.flows.training import train as train_here

log = logging.getLogger(__name__)

TRAINED = "focusdpo.adapter.trained"

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


@flow(name="train", persist_result=False)
def train(run: TrainRun) -> TrainOutcome:
    """A dataset version -> an adapter in `run.out`."""
    outcome = train_adapter(run)
    create_markdown_artifact(summary(outcome), key="adapter", description="what was trained")
    emit_event(
        TRAINED,
        resource={
            "prefect.resource.id": f"focusdpo.adapter.{outcome.version}",
            "prefect.resource.name": outcome.adapter,
        },
        payload={"adapter": outcome.adapter, "out": outcome.out, "version": outcome.version},
    )
    return outcome


def run_here(run: TrainRun, watch: Watch) -> TrainOutcome:
    """The flow in this process, with progress."""
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
