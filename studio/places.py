"""Where the studio keeps what it makes: runs beside the root, its own state below them."""

from __future__ import annotations

from pathlib import Path

from focusdpo.data_schemas.addresses import is_remote
from focusdpo.studio.settings import StudioConfig

OWN = ".studio"
"""Below the folder of runs: jobs, and subjects that are not saved yet."""


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
