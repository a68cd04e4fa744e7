"""Which process runs a flow run, and whether it still lives: states that tell the truth.

A worker marks a run as Crashed when the run's process dies, and a server with the automation of
`focusdpo prefect-setup` does when its heartbeats stop. A command line that was killed, or a machine
that lost power, tells nobody. So every run is labelled with its machine and process, and each new
one on the same machine looks for runs that say Running while their process is gone.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas import filters
from prefect.client.schemas.objects import StateType
from prefect.runtime import flow_run
from prefect.states import Crashed

from focusdpo.data_schemas import environment

log = logging.getLogger(__name__)

FLOWS = ("build-dataset", "train", "evaluate", "ablate", "retrain")
"""Names of our flows."""
FOLDER, PROCESS, MACHINE = "focusdpo.folder", "focusdpo.process", "focusdpo.machine"
"""Our labels on a flow run. No tags: one asks the server for a concurrency slot at every task."""


def label_run(folder: str, name: str) -> None:
    """Write on this flow run which process runs it, on which folder, and its name. Inside a flow
    only."""
    labels: dict[str, Any] = {PROCESS: environment.me(), MACHINE: machine(), FOLDER: folder}
    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(UUID(flow_run.id), labels)
    rename_run(name)


def rename_run(name: str) -> None:
    """Call this flow run so on Prefect's pages. Inside a flow only."""
    with get_client(sync_client=True) as client:
        client.update_flow_run(UUID(flow_run.id), name=name)


def machine() -> str:
    """The system's own id, for hosts of the same name; empty where it has none."""
    try:
        return Path("/etc/machine-id").read_text("utf-8").strip()
    except OSError:
        return ""  # not Linux, or not allowed: then the host's name alone tells


def is_gone(labels: dict[str, Any]) -> bool:
    """Whether the process of a flow run with these labels surely ended: it ran on this machine and
    is not there any more. False for other machines, of which nothing is known here."""
    process = labels.get(PROCESS)
    mine = labels.get(MACHINE) == machine()
    return bool(process and mine and environment.is_dead(str(process)))


def mark_dead_runs() -> None:
    """Mark runs of ours as Crashed that say Running while their process is gone, and their tasks
    that say they are at work."""
    running = filters.FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.CANCELLING])
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_filter=filters.FlowFilter(name=filters.FlowFilterName(any_=list(FLOWS))),
            flow_run_filter=filters.FlowRunFilter(state=filters.FlowRunFilterState(type=running)),
        )
        for run in runs:
            if is_gone(run.labels):
                _mark(client, run)


def _mark(client: SyncPrefectClient, run: Any) -> None:
    message = (
        f"{environment.told(str(run.labels[PROCESS]))} ended without a word (killed, or the "
        "machine stopped); what was finished is stored, and the same run goes on from there"
    )
    log.warning("flow run %s: %s", run.name, message)
    working = filters.TaskRunFilterStateType(
        any_=[StateType.RUNNING, StateType.PENDING, StateType.SCHEDULED]
    )
    tasks = client.read_task_runs(
        flow_run_filter=filters.FlowRunFilter(id=filters.FlowRunFilterId(any_=[run.id])),
        task_run_filter=filters.TaskRunFilter(state=filters.TaskRunFilterState(type=working)),
    )
    for task in tasks:
        client.set_task_run_state(task.id, Crashed(message=message), force=True)
    client.set_flow_run_state(run.id, Crashed(message=message), force=True)
