"""Prefect flow `build-dataset`: a task per stage and chunk of partitions, then publish.

Prefect schedules, retries and shows; what is done is the store's to say, so its task cache is off.
Tasks have no tags: for each tagged task the server looks for a concurrency limit, in a transaction
that a busy SQLite refuses, and the client then sleeps for two seconds.
"""

from __future__ import annotations

import logging
from typing import Any, cast

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.states import Completed

from focusdpo.data_schemas.progress import Watch, quiet
from focusdpo.flows.build.builder import Builder, ChunkFailed, Outcome
from focusdpo.flows.build.preview import FIRST
from focusdpo.flows.build.run import BuildResult, Chunk, Prepared, execute, prepare
from focusdpo.flows.config import BuildRun
from focusdpo.flows.prefect import artefacts, events
from focusdpo.flows.prefect.engine import at_work
from focusdpo.flows.prefect.ephemeral import tether
from focusdpo.flows.prefect.retries import worth_retrying
from focusdpo.flows.progress import about
from focusdpo.flows.retrain.monitoring import Noted, note
from focusdpo.store.versions import DatasetVersion

log = logging.getLogger(__name__)


@task(
    name="stage",
    task_run_name="{chunk.stage} {chunk.number} of {chunk.tasks}",
    retries=2,
    retry_delay_seconds=[2, 20],
    retry_condition_fn=worth_retrying,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def run_stage(builder: Builder, chunk: Chunk, watch: Watch) -> list[Outcome]:
    """One stage of a chunk of partitions."""
    return builder.run_chunk(
        chunk.stage, chunk.partitions, watch, done=chunk.done, total=chunk.total
    )


@task(
    name="publish",
    retries=2,
    retry_delay_seconds=[2, 20],
    retry_condition_fn=worth_retrying,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def publish_version(builder: Builder, config: dict[str, Any]) -> DatasetVersion:
    """Shards of new pairs and the dataset version."""
    return builder.publish(config)


def dispatch(builder: Builder, chunk: Chunk, watch: Watch) -> list[Outcome]:
    """A chunk as a Prefect task; what failed after all retries comes back as outcomes."""
    with about(stage=chunk.stage):
        state = run_stage(builder, chunk, watch, return_state=True)
        outcomes = state.result(raise_on_failure=False)
        if isinstance(outcomes, ChunkFailed):
            outcomes = outcomes.outcomes
        if isinstance(outcomes, BaseException):
            raise outcomes
        for one in outcomes:
            with about(partition=one.partition):
                log.info("%s: %s in %.2f s %s", one.stage, one.status, one.seconds, one.message)
    return list(outcomes)


def run_flow(prepared: Prepared, watch: Watch) -> Noted:
    """The flow's body: run what is missing through tasks, tell Prefect what came out."""
    result = note(execute(prepared, dispatch, watch, publish_version), prepared.builder.run.alert)
    by = "build-dataset" if flow_run.parent_flow_run_id is None else "a part of another flow"
    tell(result, prepared)
    if result.new:
        events.published(result, by)
    for message in result.alerts:
        events.yield_dropped(result, message, by)
    return result


def tell(result: Noted, prepared: Prepared) -> None:
    """The run on Prefect's page."""
    artefacts.text("dataset", summary(result), "what this build did")
    rows = [
        {"stage": name, "partitions": total, "computed": result.made.get(name, 0)}
        for name, (total, _) in prepared.builder.plan.counts().items()
    ]
    artefacts.table("dataset-yield", rows, f"{result.pairs} pairs in version {result.version}")
    if result.rejects:
        shares = sum(result.rejects.values())
        artefacts.table(
            "dataset-rejects",
            [
                {"rejected because": name, "count": count, "share": round(count / shares, 3)}
                for name, count in sorted(result.rejects.items(), key=lambda one: -one[1])
            ],
            f"rejects of version {result.version}",
        )
    files = prepared.builder.store.files
    if result.made.get("generate") and files.exists(FIRST):
        artefacts.picture("dataset-sheet", files.read(FIRST), "first pictures of this build")


_HANDED: dict[str, tuple[Prepared, Watch]] = {}
"""A plan made before the engine started, handed to the flow in the same process by its root."""


@flow(
    name="build-dataset",
    persist_result=False,
    on_failure=[events.on_failure],
    on_crashed=[events.on_failure],
)
def build_dataset(run: BuildRun) -> Any:
    """Subjects -> a dataset version of preference pairs in `run.root`."""
    handed = _HANDED.get(run.root)
    prepared, watch = handed if handed is not None else (prepare(run), quiet)
    with at_work(run.root, gpu=bool(prepared.builder.plan.missing())):
        result = run_flow(prepared, watch)
    if not result.whole:
        left = len(result.failed) + len(result.problems)
        return Completed(message=f"{left} subjects or partitions were left out", data=result)
    return result


def run_here(prepared: Prepared, watch: Watch) -> BuildResult:
    """The flow in this process, with the plan that is already made."""
    run = prepared.builder.run
    tether()
    _HANDED[run.root] = (prepared, watch)
    try:
        return cast(BuildResult, build_dataset(run))
    finally:
        _HANDED.pop(run.root)


def summary(result: Noted) -> str:
    """The run as Markdown: what was computed, what was left out, where it lies."""
    rows = "".join(f"| {stage} | {count} |\n" for stage, count in result.made.items())
    rejects = "".join(f"| {reason} | {count} |\n" for reason, count in result.rejects.items())
    left = "".join(f"- {line}\n" for line in [*result.problems, *result.failed])
    alerts = "".join(f"**{line}**\n\n" for line in result.alerts)
    return (
        f"# Dataset {result.version}\n\n{alerts}{result.pairs} pairs in `{result.root}`, "
        f"{result.partitions} partitions; {result.model_seconds:.1f} s of model computation, "
        f"{result.wall_seconds:.1f} s in all.\n\n"
        f"| stage | partitions computed |\n| --- | --- |\n{rows or '| none | 0 |'}\n\n"
        f"| rejected because | count |\n| --- | --- |\n{rejects or '| nothing | 0 |'}\n"
        + (f"\n## Left out\n\n{left}" if left else "")
    )
