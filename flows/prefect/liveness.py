"""Which process runs a flow run, and whether it still lives: states that tell the truth.

A worker marks a run as Crashed when the run's process dies, and a server with the automation of
`focusdpo prefect-setup` does when its heartbeats stop. A command line that was killed, or a machine
that lost power, tells nobody. So every run is labelled with its place and process, and each new one
on the same place looks for runs that say Running while their process is gone.
"""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict

log = logging.getLogger(__name__)

FLOWS = ("build-dataset", "train", "evaluate", "ablate", "retrain")
"""Names of our flows."""
LABEL = "focusdpo."
"""What the names of our labels on a flow run begin with."""


class Place(BaseModel):
    """Where a process runs, and which one it is."""

    model_config = ConfigDict(frozen=True)

    host: str
    machine: str
    """The system's own id, which outlives a reboot; empty where it has none."""
    boot: str
    """Changes with each start of the system."""
    namespace: str
    """Of process ids: a container counts its own."""
    pid: int
    started: str
    """When the process began, by the system's clock: a pid is used again."""


def here() -> Place:
    """This process."""
    pid = os.getpid()
    return Place(
        host=socket.gethostname(),
        machine=_first_line("/etc/machine-id"),
        boot=_first_line("/proc/sys/kernel/random/boot_id"),
        namespace=_namespace(),
        pid=pid,
        started=started_of(pid) or "",
    )


def is_gone(place: Place) -> bool:
    """Whether a process surely ended: it ran on this machine and is not there any more. False for
    other machines, of which nothing is known here."""
    me = here()
    if (place.host, place.boot, place.namespace) == (me.host, me.boot, me.namespace):
        return started_of(place.pid) != place.started
    rebooted = bool(me.machine and me.boot and place.boot) and me.boot != place.boot
    return rebooted and (place.host, place.machine) == (me.host, me.machine)


def started_of(pid: int) -> str | None:
    """When a process began; None when there is none of that id, or it ended and nobody took note
    of it yet."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return None if Path("/proc/self").exists() else _began(pid)
    # The name in brackets may hold anything; fields are counted from behind it.
    state, *fields = text.rpartition(")")[2].split()
    return None if state in "ZX" else fields[18]


def _began(pid: int) -> str | None:
    """The same where the system has no /proc."""
    import subprocess

    process = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return process.stdout.strip() or None


def _namespace() -> str:
    link = Path("/proc/self/ns/pid")
    return str(link.readlink()) if link.exists() else ""


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text("utf-8").strip()
    except OSError:
        return ""  # not Linux, or not allowed: nothing is known then, and nothing is assumed


def label_run(folder: str, name: str) -> None:
    """Write on this flow run which process runs it, on which folder, and its name. Inside a flow
    only.

    Labels, not tags: a tag on a run asks the server for a concurrency slot at every task.
    """
    from prefect.client.orchestration import get_client
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise RuntimeError("label_run is for flow runs")
    labels: dict[str, Any] = {f"{LABEL}{name}": value for name, value in here()}
    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(context.flow_run.id, {**labels, f"{LABEL}folder": folder})
    rename_run(name)


def rename_run(name: str) -> None:
    """Call this flow run so on Prefect's pages. Inside a flow only."""
    from prefect.client.orchestration import get_client
    from prefect.runtime import flow_run

    with get_client(sync_client=True) as client:
        client.update_flow_run(UUID(flow_run.id), name=name)


def mark_dead_runs() -> list[str]:
    """Mark runs of ours as Crashed that say Running while their process is gone; their names."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        FlowFilter,
        FlowFilterName,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType

    going = [StateType.RUNNING, StateType.CANCELLING]
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=list(FLOWS))),
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=going))
            ),
        )
        gone = [(run, place) for run in runs if (place := place_of(run)) and is_gone(place)]
        for run, place in gone:
            _mark(client, run, place)
    return [run.name for run, _ in gone]


def place_of(run: Any) -> Place | None:
    """Who runs a flow run, where it is labelled."""
    own = {
        name.removeprefix(LABEL): value
        for name, value in (run.labels or {}).items()
        if name.startswith(LABEL)
    }
    own.pop("folder", None)
    return Place(**own) if set(own) == set(Place.model_fields) else None


def _mark(client: Any, run: Any, place: Place) -> None:
    """Crashed, for the run and for its tasks that say they are at work."""
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterId,
        TaskRunFilter,
        TaskRunFilterState,
        TaskRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.states import Crashed

    message = (
        f"its process {place.pid} on {place.host} ended without a word (killed, or the machine "
        "stopped); what was finished is stored, and the same run goes on from there"
    )
    log.warning("flow run %s: %s", run.name, message)
    going = [StateType.RUNNING, StateType.PENDING, StateType.SCHEDULED]
    tasks = client.read_task_runs(
        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])),
        task_run_filter=TaskRunFilter(
            state=TaskRunFilterState(type=TaskRunFilterStateType(any_=going))
        ),
    )
    for task in tasks:
        client.set_task_run_state(task.id, Crashed(message=message), force=True)
    client.set_flow_run_state(run.id, Crashed(message=message), force=True)
