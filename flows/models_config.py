"""Which checkpoints play which role: the `models` section of a run. Imports no torch.

A new backbone or part costs its module, its config and one line here.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

BACKGROUNDS = (
    "a wooden table",
    "a sandy beach",
    "a city street",
    "a green meadow",
    "a snowy path",
    "a stone floor",
    "a red carpet",
    "a kitchen counter",
    "a mossy rock",
    "a rooftop at sunset",
)


class ModelsConfig(BaseModel):
    """Checkpoints and their settings, a section per role."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str = Field(
        "auto", description="where models run: cpu, cuda, cuda:1; auto: the first GPU, else cpu"
    )
    backgrounds: tuple[str, ...] = Field(
        BACKGROUNDS, min_length=1, description="places that prompts name, after 'on'"
    )


Family = str | ModelsConfig
"""Which models do the work: an embedded suite by name, or checkpoints."""
