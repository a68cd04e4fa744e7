"""Which failures of a Prefect task are worth another try."""

from __future__ import annotations

import logging
from typing import Any

from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.build.builder import disk_is_full
from focusdpo.flows.prefect import events

log = logging.getLogger(__name__)


def worth_retrying(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Bad input and a full disk stay as they are; an I/O or model error may pass. The reason is
    logged and becomes an event of the task's run, because a run that needed retries should say so.

    Prefect asks this only while tries are left."""
    error = state.result(raise_on_failure=False)
    again = isinstance(error, (OSError, RuntimeError)) and not (
        isinstance(error, UserError) or disk_is_full(error)
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
