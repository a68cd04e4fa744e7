"""Prefect without set-up: environment for a flow run in this process, artefacts, events.

Prefect is imported by the flow modules only, after `prepare` has set its environment; so `--help`,
plans and runs in which nothing is missing never pay for it.
"""

from __future__ import annotations

import os
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


def prepare(work_folder: str) -> None:
    """Set Prefect's environment unless the user has: its database lies in `.prefect` of the work
    folder (or of `~/.focusdpo` for a remote one), and the server lives as long as this process."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
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
