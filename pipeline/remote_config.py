"""Settings of storage that is not a local disk. They say how bytes travel and never which, so they
come from the environment and not from a run's configuration: no content key depends on them."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from focusdpo.data_schemas.environment import EnvironmentConfig


class RemoteConfig(EnvironmentConfig):
    """Retries, time limits and parts. Each field is read from FOCUSDPO_STORAGE_<FIELD>."""

    prefix: ClassVar[str] = "FOCUSDPO_STORAGE_"

    attempts: int = Field(9, ge=1, le=50, description="tries of a request before it counts as lost")
    first_wait: float = Field(0.2, ge=0, description="seconds before the second try; then doubled")
    longest_wait: float = Field(20.0, ge=0, description="seconds between two tries at most")
    connect_timeout: float = Field(10.0, gt=0, description="seconds to wait for a connection")
    read_timeout: float = Field(60.0, gt=0, description="seconds to wait for bytes that must come")
    part_mib: int = Field(
        16,
        ge=5,
        le=5000,
        description="MiB of a part; what is written without a condition and has two parts or more "
        "travels in parts",
    )
    parts_at_once: int = Field(4, ge=1, le=64, description="parts of one file that travel together")
