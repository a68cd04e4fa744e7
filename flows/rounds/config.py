"""How many rounds there are. Imports no torch and no Prefect."""

from __future__ import annotations

from pydantic import Field

from focusdpo.data_schemas.strict import StrictModel


class RoundsConfig(StrictModel):
    """Rounds of build, train, evaluate."""

    count: int = Field(
        3,
        ge=1,
        le=20,
        description="rounds: the first paints with the base, each other with the adapter of the "
        "one before; `train.steps` is each round's",
    )
