"""What `measure` is told."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from focusdpo.evaluation.measure.config import LayoutName, MeasureConfig
from focusdpo.evaluation.protocols import EvaluateConfig
from focusdpo.flows.config import Address, Run
from focusdpo.flows.settings import Option

EXAMPLE = "example"
"""As `pictures`: the table that ships, written beside the results."""


class MeasureRun(Run):
    """`measure`: pictures from any model -> who failed, with intervals, in `out`."""

    sends: ClassVar[bool] = True
    pictures: Annotated[Address, Option("--pictures", metavar="TABLE")] = Field(
        description="a table with a row per picture (.csv, .jsonl, .parquet), or a folder in the "
        "layout of docs/measure.md; `example` is one that ships"
    )
    out: Annotated[Address, Option("--out")] = Field(
        description="folder or address of the measurement"
    )
    references: Annotated[Address | None, Option("--references", metavar="DIR")] = Field(
        None, description="a folder of pictures per subject, for rows that name subjects alone"
    )
    within: Annotated[Address | None, Option("--within", metavar="DIR")] = Field(
        None, description="folder that the table's paths are relative to; without it the table's"
    )
    lite: Annotated[Address | None, Option("--lite", metavar="DIR")] = Field(
        None,
        description="weights of the small judge of photographs, in place of the preset's "
        "(docs/measure.md)",
    )
    layout: Annotated[LayoutName | None, Option("--layout")] = Field(
        None,
        title="Public benchmark",
        description="--pictures is a folder of results of this public benchmark; --references is "
        "then the benchmark's own folder",
    )
    first: Annotated[str | None, Option("--first", metavar="MODEL")] = Field(
        None, description="the model that others are compared with; without it the table's first"
    )
    check: Annotated[bool, Option("--check")] = Field(
        False, description="first plant faults into your references and tell how many are found"
    )
    strict: Annotated[bool, Option("--strict")] = Field(
        False, description="stop at the first row that cannot be measured"
    )
    evaluate: EvaluateConfig = Field(EvaluateConfig(), description="thresholds, intervals, batches")
    measure: MeasureConfig = Field(MeasureConfig(), description="references, pages, planted faults")
