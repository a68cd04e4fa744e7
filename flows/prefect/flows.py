"""Jobs as Prefect's flows, their steps as its tasks: one wrapper for all.

Prefect schedules, retries and shows; what is done is the store's to say, so its task cache is off.
Tasks have no tags: for each tagged task the server looks for a concurrency limit, in a transaction
that a busy SQLite refuses, and the client then sleeps for two seconds. The GPU's slot is taken once
per run for the same reason.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from prefect import Flow, Task, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import BaseModel

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.build.builder import disk_is_full
from focusdpo.flows.console import Watch, about, from_environment, quiet
from focusdpo.flows.jobs import Job, Pending, ResultT, Steps
from focusdpo.flows.prefect import events
from focusdpo.flows.prefect.display import display
from focusdpo.flows.prefect.gpu_slot import gpu_slot
from focusdpo.flows.prefect.liveness import label_run, mark_dead_runs, rename_run
from focusdpo.flows.terminal import may_pass

log = logging.getLogger(__name__)


class TaskSteps(Steps):
    """Steps as tasks, jobs within jobs as flows below this one."""

    def step(self, kind: str, title: str, work: Callable[[], ResultT]) -> ResultT:
        return _task(kind, title, work)()

    def start(self, kind: str, title: str, work: Callable[[], ResultT]) -> Pending[ResultT]:
        return cast(Pending[ResultT], _task(kind, title, work).submit())

    def job(self, job: Job[Any, ResultT], watch: Watch) -> ResultT:
        return run_as_flow(job, watch)


def _task(kind: str, title: str, work: Callable[[], ResultT]) -> Task[[], ResultT]:
    @task(
        name=kind,
        task_run_name=title,
        retries=2,
        retry_delay_seconds=[2, 20],
        retry_condition_fn=worth_retrying,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    def step() -> ResultT:
        return work()

    return step


def worth_retrying(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Bad input and a full disk stay as they are; an I/O or model error may pass. The reason is
    logged and becomes an event of the task's run, because a run that needed retries should say so.

    Prefect asks this only while tries are left."""
    error = state.result(raise_on_failure=False)
    again = isinstance(error, (OSError, RuntimeError)) and not (
        isinstance(error, UserError)
        or disk_is_full(error)
        or (isinstance(error, OSError) and not may_pass(error))
    )
    if again:
        reason = f"{type(error).__name__}: {error}"
        log.warning("%s: another try because of %s", run.name, reason)
        events.emit(
            events.RETRIED,
            f"prefect.task-run.{run.id}",
            run.name,
            {"reason": reason, "try": run.run_count + 1, "of": task.retries + 1},
            task.name,
        )
    return again


def flow_of(
    kind: type[Job[Any, Any]], planned: Job[Any, Any] | None = None, watch: Watch = quiet
) -> Flow[..., Any]:
    """The flow of a kind of job. Its one parameter is the run, so that Prefect checks every field
    by the same model and no unknown one gets in. `planned`: the job itself, where this process has
    made it already; else the flow makes it from its parameter."""

    def run_job(run: BaseModel) -> Any:
        if planned is None:  # by a deployment: this process stands where its worker put it
            log.info("relative paths start in %s", Path.cwd())
        job = kind(run) if planned is None else planned
        with _framed(job):
            result = job.perform(TaskSteps(), watch)
            _publish(job, result)
        left_out = job.left_out(result)
        return Completed(message=left_out, data=result) if left_out else result

    run_job.__annotations__["run"] = kind.config
    run_job.__doc__ = kind.__doc__
    as_flow = flow(
        name=kind.name,
        persist_result=False,
        on_failure=[events.on_failure],
        on_crashed=[events.on_failure],
    )
    return as_flow(run_job)


def run_as_flow(job: Job[Any, ResultT], watch: Watch = quiet) -> ResultT:
    """A job as a flow in this process; below the flow that calls this, if any does."""
    return cast(ResultT, flow_of(type(job), job, watch)(job.run))


@contextmanager
def _framed(job: Job[Any, Any]) -> Iterator[None]:
    """What surrounds every job in a flow: the run is labelled with its process, runs of ours whose
    process is gone are marked, and the GPU's slot is held where the job needs it."""
    from_environment()
    label_run(job.folder, job.title())
    if flow_run.parent_flow_run_id is None:
        mark_dead_runs()
    ids = {"run": str(flow_run.id), "flow": str(flow_run.flow_name)}
    with about(**ids), gpu_slot(job.needs_gpu):
        yield


def _publish(job: Job[Any, ResultT], result: ResultT) -> None:
    """What a job has to show and to tell, on the server."""
    rename_run(job.title(result))
    if job.changed(result):
        for exhibit in job.exhibits(result):
            display(exhibit)
    within = flow_run.parent_flow_run_id is not None
    for event in job.events(result):
        by = "a part of another flow" if within else job.name
        events.emit(event.name, event.resource, event.title, event.payload, by)
        if event.message:
            events.notify(event.name, event.message, event.payload)
