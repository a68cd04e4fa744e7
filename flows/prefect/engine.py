"""Prefect without set-up: a flow run in this process, the GPU slot, and states that tell the truth.

Taken once per run. A limit by task tags would cost a request per task, which SQLite refuses when it
is busy; the client then sleeps.

A worker marks a run as Crashed when the run's process dies, and a server with the automation of
`focusdpo prefect-setup` does when its heartbeats stop. A command line that was killed, or a machine
that lost power, tells nobody. So every run signs with its place and process, and each new one on
the same place looks for runs that say Running while their process is gone.

Prefect is imported by the flow modules only, after `prepare` has set its environment; so `--help`,
plans and runs in which nothing is missing never pay for it.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from focusdpo.data_schemas.errors import UserError

log = logging.getLogger(__name__)

GPU_LIMIT = "focusdpo-gpu"
"""The limit that `focusdpo prefect-setup` makes."""
VARIABLE = "FOCUSDPO_GPU_LIMIT"
"""Names another limit (one per machine, say); it is then taken without a GPU, too. Empty: none."""
LEASE_SECONDS = 120.0
"""After a kill the slot is free again so much later, at most."""


def limit_name() -> str | None:
    """The limit that a run takes here; None when it takes none."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        return named or None
    return GPU_LIMIT if has_gpu() else None


def has_gpu() -> bool:
    """Whether this process may use a CUDA device; asks the system, without torch."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and any(Path("/dev").glob("nvidia[0-9]*"))


@contextmanager
def gpu_slot(wanted: bool = True) -> Iterator[None]:
    """Hold the GPU's slot; waits for it. Where the server has no such limit, none is held."""
    name = limit_name() if wanted else None
    if name is None or not _is_there(name):
        yield
        return
    from prefect.concurrency.sync import concurrency

    # Renewing fails when the server is away for a while: a training of hours goes on then.
    with concurrency(
        name,
        occupy=1,
        strict=True,
        lease_duration=LEASE_SECONDS,
        raise_on_lease_renewal_failure=False,
    ):
        log.debug("holds a slot of %s", name)
        yield


def _is_there(name: str) -> bool:
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            if os.environ.get("PREFECT_API_URL"):
                log.warning(
                    "the server has no limit '%s', so runs may share the GPU; "
                    "`focusdpo prefect-setup` makes it",
                    name,
                )
            return False
    return True


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

    told = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return told.stdout.strip() or None


def _namespace() -> str:
    link = Path("/proc/self/ns/pid")
    return str(link.readlink()) if link.exists() else ""


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text("utf-8").strip()
    except OSError:
        return ""  # not Linux, or not allowed: nothing is known then, and nothing is assumed


def sign(folder: str) -> None:
    """Write on this flow run which process runs it, and on which folder. Inside a flow only.

    Labels, not tags: a tag on a run asks the server for a concurrency slot at every task.
    """
    from prefect.client.orchestration import get_client
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise RuntimeError("sign is for flow runs")
    labels: dict[str, Any] = {f"{LABEL}{name}": value for name, value in here()}
    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(context.flow_run.id, {**labels, f"{LABEL}folder": folder})


def bury() -> list[str]:
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
    """Who runs a flow run, where it signed."""
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


CHOSEN_BY_USER = ("PREFECT_HOME", "PREFECT_API_URL", "PREFECT_PROFILE")
"""When one of these is set, the user has a Prefect of their own and it is used as it is."""

QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_SERVER_LEVEL": "ERROR",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
    "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
    "PREFECT_CLI_COLORS": "false",
}
"""Nothing is sent out, nothing chatters, and a slow or busy machine is waited for."""


def hush() -> None:
    """Let Prefect send nothing out and chatter little, unless the user said otherwise."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def prepare(work_folder: str) -> None:
    """Set Prefect's environment unless the user has: its database lies in `.prefect` of the work
    folder (or of `~/.focusdpo` for a remote one), and the server lives as long as this process."""
    hush()
    if any(os.environ.get(name) for name in CHOSEN_BY_USER):
        return
    remote = "://" in work_folder and not work_folder.startswith("file://")
    base = Path.home() / ".focusdpo" if remote else Path(work_folder.removeprefix("file://"))
    home = (base / ".prefect").resolve()
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{home}: cannot be made ({error.strerror}); Prefect keeps its database there. "
            "Choose a folder that can be written, or set PREFECT_HOME"
        ) from error
    os.environ["PREFECT_HOME"] = str(home)
    os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "true"
    os.environ["PREFECT_PROFILE"] = "ephemeral"


def described() -> str:
    """Where flow runs are recorded, for the log."""
    url = os.environ.get("PREFECT_API_URL")
    return url or f"a server of this process, in {os.environ.get('PREFECT_HOME', '~/.prefect')}"


@contextmanager
def at_work(folder: str, *, gpu: bool) -> Iterator[None]:
    """The frame of every flow's body: the run signs with its process, runs of ours whose process is
    gone are marked, and the GPU's slot is held where `gpu` asks for it.

    `folder` is what the run works on, for people who look for it.
    """
    from prefect.runtime import flow_run

    from focusdpo.flows.progress import about, from_environment

    from_environment()
    sign(folder)
    if flow_run.parent_flow_run_id is None:
        bury()
    with about(run=str(flow_run.id), flow=str(flow_run.flow_name)), gpu_slot(gpu):
        yield
