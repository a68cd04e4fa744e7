"""Prefect flow `retrain`: build, decide, train, evaluate, promote or keep; each job a flow of its
own below this one, with its tasks, retries and artefacts.

The GPU's slot is held by these, one after another: this flow holds none, or they would wait for it.
"""

from __future__ import annotations

from typing import Any, cast

from prefect import flow

from focusdpo.data_schemas.progress import Watch, quiet
from focusdpo.flows.build.run import BuildResult
from focusdpo.flows.config import RetrainRun
from focusdpo.flows.prefect import artefacts, events
from focusdpo.flows.prefect.build_dataset import build_dataset
from focusdpo.flows.prefect.engine import at_work
from focusdpo.flows.prefect.ephemeral import tether
from focusdpo.flows.prefect.evaluate import evaluate
from focusdpo.flows.prefect.train import train
from focusdpo.flows.retrain.promotion import history
from focusdpo.flows.retrain.run import Clock, RetrainOutcome, Steps, now
from focusdpo.flows.retrain.run import retrain as retrain_here
from focusdpo.store.outputs import local

_HANDED: dict[str, tuple[Watch, Clock]] = {}

SHOWN = 50
"""Candidates in the table of the history."""

AS_FLOWS = Steps(
    build=lambda run, watch: cast(BuildResult, build_dataset(run)),
    train=lambda run, watch: train(run),
    evaluate=lambda run, watch: evaluate(run),
)


@flow(
    name="retrain",
    persist_result=False,
    on_failure=[events.on_failure],
    on_crashed=[events.on_failure],
)
def retrain(run: RetrainRun) -> RetrainOutcome:
    """New subjects -> a better adapter in `run.out`, or the reason why the old one stays."""
    watch, clock = _HANDED.get(run.out, (quiet, now))
    with at_work(run.out, gpu=False):
        outcome = retrain_here(run, AS_FLOWS, watch, clock)
        artefacts.text("retrain", summary(outcome), outcome.decision)
        rows = [row(one) for one in history(local(run.out))[-SHOWN:]]
        if rows:
            artefacts.table("retrain-history", rows[::-1], "candidates, newest first")
        if outcome.decision in ("promoted", "kept"):
            events.decided(outcome)
        return outcome


def run_here(run: RetrainRun, watch: Watch, clock: Clock = now) -> RetrainOutcome:
    """The flow in this process, with progress."""
    tether()
    _HANDED[run.out] = (watch, clock)
    try:
        return retrain(run)
    finally:
        del _HANDED[run.out]


def row(one: dict[str, Any]) -> dict[str, Any]:
    """A candidate as a line of the history."""
    found = one.get("comparison") or {}
    return {
        "candidate": one.get("candidate"),
        "decision": one["decision"],
        "dataset": one.get("version"),
        "new pairs": one.get("new_pairs"),
        "metric": found.get("metric"),
        "difference": found.get("difference"),
        "low": found.get("low"),
        "high": found.get("high"),
        "against": found.get("against"),
        "reason": one.get("reason") or one.get("because"),
        "when": one.get("decided") or one.get("started"),
    }


def summary(outcome: RetrainOutcome) -> str:
    """The night as Markdown."""
    lines = [
        f"# {outcome.decision}",
        f"{outcome.reason}.",
        f"Dataset `{outcome.version}`, {outcome.new_pairs} new pairs. In use: "
        f"`{outcome.adapter or 'the base alone'}`",
    ]
    return "\n\n".join(lines)
