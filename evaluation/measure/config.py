"""What `measure` may be told about judging pictures from anywhere."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from focusdpo.data_schemas.strict import StrictModel

LayoutName = Literal["xversebench-single", "xversebench-multi", "multibanana", "scr", "psrbench"]
"""Public benchmarks whose folders are read (`public_layouts.LAYOUTS`)."""


class MeasureConfig(StrictModel):
    """How references are cut out, pictures kept and faults planted."""

    reference_side: int = Field(
        512, ge=32, le=4096, description="most pixels a side of a reference that is cut out"
    )
    tolerance: int = Field(
        24, ge=0, le=255, description="largest channel difference to the corner colour that still "
        "counts as background, in a reference without alpha or mask",
    )  # fmt: skip
    in_place: float = Field(
        0.5, gt=0, le=1, description="least share of an instance within a subject's box, where "
        "boxes are told",
    )  # fmt: skip
    shown_side: int = Field(
        512, ge=64, le=4096, description="most pixels a side of pictures as pages show them"
    )
    composites: int = Field(
        24, ge=2, le=1000, description="pictures of each fault that --check plants"
    )
    seed: int = Field(0, ge=0, description="decides what is planted")
