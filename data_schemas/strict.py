"""What all settings and cards are made of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class StrictModel(BaseModel):
    """Unknown fields are refused, and nothing changes after the check."""

    model_config = ConfigDict(extra="forbid", frozen=True)
