"""Settings of storage that is not a local disk. They say how bytes travel and never which, so they
come from the environment and not from a run's configuration: no content key depends on them."""

from __future__ import annotations

import os
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from focusdpo.data_schemas.errors import UserError

PREFIX = "FOCUSDPO_STORAGE_"


class RemoteConfig(BaseModel):
    """Retries, time limits and parts. Each field is read from FOCUSDPO_STORAGE_<FIELD>."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> RemoteConfig:
        """UserError that names a variable which says nothing usable."""
        given = {
            name: environment[PREFIX + name.upper()]
            for name in cls.model_fields
            if PREFIX + name.upper() in environment
        }
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(f"{PREFIX}{str(first['loc'][0]).upper()}: {first['msg']}") from error
