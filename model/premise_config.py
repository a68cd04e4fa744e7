"""Settings of the check of the method's premise, typed and closed. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class PremiseConfig(BaseModel):
    """What is measured over many pairs: does alignment rise as noise falls?"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sigmas: tuple[float, ...] = Field(
        (0.95, 0.85, 0.7, 0.55, 0.4, 0.25, 0.1, 0.02),
        description="noise levels of maps and curves, two or more; kept from most to least noise",
    )
    kinds: tuple[Literal["keys", "queries", "block_output", "attention"], ...] = Field(
        ("keys", "queries", "block_output", "attention"),
        description="kinds of features in the table, each at every block of the backbone",
    )
    resamples: int = Field(1000, ge=1, description="of the bootstrap over pairs")
    level: float = Field(0.95, gt=0, lt=1, description="of its intervals")
    batch_pairs: int = Field(8, ge=1, description="pairs in one forward pass")

    @field_validator("sigmas")
    @classmethod
    def _descending(cls, sigmas: tuple[float, ...]) -> tuple[float, ...]:
        wanted = tuple(sorted(set(sigmas), reverse=True))
        if len(wanted) < 2 or not 0 < wanted[-1] <= wanted[0] < 1:
            raise ValueError("expected two or more different noise levels above 0 and below 1")
        return wanted
