"""Prefect without set-up: environment for a flow run in this process, artefacts, events.

Prefect is imported by the flow modules only, after `prepare` has set its environment; so `--help`,
plans and runs in which nothing is missing never pay for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from focusdpo.data_schemas.errors import UserError

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

    from focusdpo.flows.liveness import bury, sign
    from focusdpo.flows.logs import about, from_environment
    from focusdpo.flows.slots import gpu_slot

    from_environment()
    sign(folder)
    if flow_run.parent_flow_run_id is None:
        bury()
    with about(run=str(flow_run.id), flow=str(flow_run.flow_name)), gpu_slot(gpu):
        yield
