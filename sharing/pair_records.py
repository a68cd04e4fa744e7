"""A pair as other programs tell it: two pictures, a prompt, subjects, and files in one folder.

A foreign layout carries what its own format has no place for as this record, in a field that its
readers pass over.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from focusdpo.data_schemas.pairs import PairSource
from focusdpo.data_schemas.shards import Split
from focusdpo.data_schemas.strict import StrictModel

PairLayout = Literal["plain", "flow-factory", "simpletuner", "verl-omni"]
OURS = "focusdpo"
"""The field of a foreign record that holds ours."""
ROWS = f"{OURS}.jsonl"
"""SimpleTuner reads folders alone: our records stand beside them."""
BACKEND = "multidatabackend.json"
"""SimpleTuner's list of folders."""
NUM_SUBJECTS = 3
"""Most subjects of a pair, as of a scene."""
Box = tuple[float, float, float, float]


class SubjectRecord(StrictModel):
    """A subject of a pair; files relative to the table's folder."""

    reference: str = Field(min_length=1, description="a picture of it")
    class_name: str | None = Field(None, min_length=1, description="the prompt's word for it")
    subject_id: str | None = Field(None, min_length=1, description="who it is, over all pairs")
    reference_mask: str | None = Field(None, description="where it is in its reference")
    mask: str | None = Field(None, description="where it stands in the winner")
    box: Box | None = Field(
        None, description="the same as x0, y0, x1, y1 in pixels, end exclusive; a mask goes before"
    )
    licence: str = Field("", description="licence or owner of the reference")


class PairRecord(StrictModel):
    """A winner and a loser for one prompt; files relative to the table's folder."""

    win: str = Field(min_length=1, description="the better picture")
    lose: str = Field(min_length=1, description="the worse picture")
    prompt: str = Field(min_length=1)
    subjects: tuple[SubjectRecord, ...] = Field(min_length=1, max_length=NUM_SUBJECTS)
    prior: str | None = Field(None, description="mask of the region in which the two differ")
    pair_id: str | None = Field(None, pattern=r"^[A-Za-z0-9_-]{1,64}$")
    source: PairSource | None = Field(
        None, description="disrupt: the loser is a repainted winner; rank: it was painted anew"
    )
    mode: str = Field("import", min_length=1, description="how the loser was made")
    split: Split | None = None

    @field_validator("prompt")
    @classmethod
    def _says_something(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError("the prompt is empty")
        return prompt

    @model_validator(mode="after")
    def _subjects_differ(self) -> PairRecord:
        names = [subject.subject_id for subject in self.subjects if subject.subject_id is not None]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"subject {twice[0]} is there twice")
        return self

    def files(self) -> list[str]:
        """All that it names."""
        names = [self.win, self.lose, self.prior]
        for subject in self.subjects:
            names += [subject.reference, subject.reference_mask, subject.mask]
        return [name for name in names if name]

    def as_json(self) -> dict[str, Any]:
        """Without what is not told."""
        return self.model_dump(mode="json", exclude_none=True)


class ImportConfig(StrictModel):
    """How pairs from elsewhere are read."""

    size: int = Field(
        0,
        ge=0,
        le=4096,
        description="side to which pictures are scaled and cropped around their middle; 0: as they "
        "are, all of one size",
    )
    tolerance: int = Field(
        12, ge=0, le=255, description="largest channel difference that is still the same pixel"
    )
    grow: float = Field(
        1 / 64,
        ge=0,
        le=0.5,
        description="rim around a region in which winner and loser differ, as a share of the "
        "picture's height",
    )
    everywhere: float = Field(
        0.6,
        gt=0,
        le=1,
        description="a pair that differs in more than this share is one of two paintings (source "
        "rank): its prior is where the subjects stand",
    )
    gates: bool = Field(
        False, description="drop also what the section `pair` would drop of pairs of our own"
    )
