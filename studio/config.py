"""What the studio is started with, and where it keeps what it makes."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.config import STUDIO_TOKEN, StudioRun
from focusdpo.store.addresses import is_remote

OWN = ".studio"
"""Below the folder of runs: jobs, subjects that are not saved yet, and what was painted last."""


def runs_folder(config: StudioConfig) -> Path:
    """The folder in which jobs put training runs, evaluations and exports: the first of --runs, or
    one beside the root."""
    if config.runs:
        first = config.runs[0]
        return first.absolute().parent if (first / "run.yaml").exists() else first.absolute()
    if is_remote(config.root):
        return Path("runs").absolute()
    root = Path(config.root).absolute()
    return root.with_name(f"{root.name}-runs")


def jobs_folder(config: StudioConfig) -> Path:
    return runs_folder(config) / OWN / "jobs"


def drafts_folder(config: StudioConfig) -> Path:
    return runs_folder(config) / OWN / "drafts"


def paintings_folder(config: StudioConfig) -> Path:
    return runs_folder(config) / OWN / "paintings"


SHORTEST_TOKEN = 16


class StudioConfig(StudioRun):
    """Where the studio looks, and who may look through it."""

    def check(self) -> StudioConfig:
        """The same; UserError when strangers could look in."""
        if self.token is None and not is_loopback(self.host):
            raise UserError(
                f"--host {self.host}: reachable from other machines, so a token is needed; give "
                f"--token SECRET (or {STUDIO_TOKEN}), or keep --host 127.0.0.1 and use an "
                "SSH tunnel"
            )
        if self.token is not None and len(self.token) < SHORTEST_TOKEN:
            raise UserError(
                f"--token: {len(self.token)} characters, expected at least {SHORTEST_TOKEN}; "
                'make one with `python -c "import secrets; print(secrets.token_urlsafe())"`'
            )
        return self


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own, unreachable from others."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
