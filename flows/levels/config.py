"""What `noise-levels` paints on. Imports no torch and no Prefect."""

from __future__ import annotations

from pydantic import Field, field_validator

from focusdpo.data_schemas.strict import StrictModel


class LevelsConfig(StrictModel):
    """Which candidates are painted on, and from which noise levels."""

    sigmas: tuple[float, ...] = Field(
        (0.99, 0.95, 0.9, 0.85, 0.75, 0.6, 0.4),
        min_length=2,
        description="noise levels that pictures are painted on from; kept from most to least noise",
    )
    candidates: int = Field(
        48, ge=2, description="most candidates of each kind: failed at a subject, and right"
    )
    seed: int = Field(0, ge=0, description="of the new noise and of the bootstrap")
    resamples: int = Field(2000, ge=100, description="of the bootstrap over candidates")
    level: float = Field(0.95, gt=0, lt=1, description="of its intervals")

    @field_validator("sigmas")
    @classmethod
    def _descending(cls, sigmas: tuple[float, ...]) -> tuple[float, ...]:
        wanted = tuple(sorted(set(sigmas), reverse=True))
        if len(wanted) < 2 or not 0 < wanted[-1] <= wanted[0] <= 1:
            raise ValueError("expected two or more different noise levels above 0, at most 1")
        return wanted
