"""Prefect flow `build-dataset`: a task per stage and chunk of partitions, then publish.

Prefect schedules, retries and shows; what is done is the store's to say, so its task cache is off.
Tasks have no tags: for each tagged task the server looks for a concurrency limit, in a transaction
that a busy SQLite refuses, and the client then sleeps for two seconds.
"""

from __future__ import annotations

import logging
from typing import Any, cast

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect.states import Completed

from focusdpo.flows.builder import Builder, ChunkFailed, Outcome
from focusdpo.flows.building import BuildResult, Chunk, Prepared, execute, prepare
from focusdpo.flows.config import BuildRun
from focusdpo.flows.progress import Watch, quiet
from focusdpo.flows.retries import worth_retrying
from focusdpo.pipeline.versions import DatasetVersion

log = logging.getLogger(__name__)

PUBLISHED = "focusdpo.dataset.published"
"""The event that a new dataset version emits; never for a run in which nothing changed."""


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
    state = run_stage(builder, chunk, watch, return_state=True)
    outcomes = state.result(raise_on_failure=False)
    if isinstance(outcomes, ChunkFailed):
        return outcomes.outcomes
    if isinstance(outcomes, BaseException):
        raise outcomes
    return list(outcomes)


def run_flow(prepared: Prepared, watch: Watch) -> BuildResult:
    """The flow's body: run what is missing through tasks, tell Prefect what came out."""
    result = execute(prepared, dispatch, watch, publish_version)
    create_markdown_artifact(summary(result), key="dataset", description="what this build did")
    if result.new:
        emit_event(
            PUBLISHED,
            resource={
                "prefect.resource.id": f"focusdpo.dataset.{result.version}",
                "prefect.resource.name": result.root,
            },
            payload={"root": result.root, "version": result.version, "pairs": result.pairs},
        )
    return result


_HANDED: dict[str, tuple[Prepared, Watch]] = {}
"""A plan made before the engine started, handed to the flow in the same process by its root."""


@flow(name="build-dataset", persist_result=False)
def build_dataset(run: BuildRun) -> Any:
    """Subjects -> a dataset version of preference pairs in `run.root`."""
    handed = _HANDED.get(run.root)
    prepared, watch = handed if handed is not None else (prepare(run), quiet)
    result = run_flow(prepared, watch)
    if not result.whole:
        left = len(result.failed) + len(result.problems)
        return Completed(message=f"{left} subjects or partitions were left out", data=result)
    return result


def run_here(prepared: Prepared, watch: Watch) -> BuildResult:
    """The flow in this process, with the plan that is already made."""
    run = prepared.builder.run
    _HANDED[run.root] = (prepared, watch)
    try:
        return cast(BuildResult, build_dataset(run))
    finally:
        _HANDED.pop(run.root)


def summary(result: BuildResult) -> str:
    """The run as Markdown: what was computed, what was left out, where it lies."""
    rows = "".join(f"| {stage} | {count} |\n" for stage, count in result.made.items())
    rejects = "".join(f"| {reason} | {count} |\n" for reason, count in result.rejects.items())
    left = "".join(f"- {line}\n" for line in [*result.problems, *result.failed])
    return (
        f"# Dataset {result.version}\n\n{result.pairs} pairs in `{result.root}`, "
        f"{result.partitions} partitions; {result.model_seconds:.1f} s of model computation, "
        f"{result.wall_seconds:.1f} s in all.\n\n"
        f"| stage | partitions computed |\n| --- | --- |\n{rows or '| none | 0 |'}\n\n"
        f"| rejected because | count |\n| --- | --- |\n{rejects or '| nothing | 0 |'}\n"
        + (f"\n## Left out\n\n{left}" if left else "")
    )
