"""What a pocket model was made from, for machines: NAME.card.json beside the weights.

It lies apart from NAME.json, whose bytes are part of a model's fingerprint. A recipe writes it from
its configuration; tests hold it against the files and against what the recipes draw.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from focusdpo.data_schemas.errors import UserError
from focusdpo.pocket.classes import BACKGROUNDS, Split, class_names
from focusdpo.pocket.weightfiles import WEIGHTS, file_digest, weight_path

STEP_SEEDS = 1_000_000
"""The batch of step s of a training of seed k has seed k * STEP_SEEDS + s."""


class Stream(BaseModel):
    """What one stage of a training was shown. All is a function of its batches' seeds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    seed: int = Field(description="of the stage")
    first_batch_seed: int
    end_batch_seed: int = Field(
        description="exclusive; the last batches were drawn only where there is batch"
        " normalisation to be measured"
    )
    plan: Literal["scenes", "views"] = Field(
        description="how a batch is drawn: samples.scene_plan, or samples.lookalikes with"
        " identity.view_plan"
    )
    per_batch: int = Field(description="scenes, or individuals, of a batch")
    items: int = Field(description="scenes, bodies or individuals that gradients were taken on")
    items_are: str
    identities_split: Split
    classes_split: Literal["train", "all"] = Field(
        description="all: also classes that no other model was trained on"
    )
    classes: int
    backgrounds: tuple[str, ...] = BACKGROUNDS
    placement: str = (
        "anywhere, by each scene's own 31-bit seed, which decides its background too and is drawn"
        " from the batch's seed"
    )
    spoilt: bool = Field(True, description="like painted pictures (samples.spoil)")


class Lineage(BaseModel):
    """Where a model's weights come from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    weights: str = Field("", description="blake2b of NAME.safetensors, 32 hexadecimal digits")
    architecture: tuple[str, ...] = Field(description="library and class of each network")
    init_seed: int
    starts_from: str = Field("", description="model that some initial weights were copied from")
    streams: tuple[Stream, ...]
    shared: tuple[str, ...] = (
        "renderer: focusdpo.pocket.world and the class shapes in focusdpo.pocket.assets",
        "backgrounds",
        "cells (class, hue bin, pattern) of the split train",
        "faults of small painters: samples.spoil and samples.ragged",
    )
    """What the trainings of all these models have in common."""


def stream(
    stage: str,
    seed: int,
    batches: int,
    *,
    plan: Literal["scenes", "views"],
    per_batch: int,
    items: int,
    items_are: str,
    classes: Literal["train", "all"],
) -> Stream:
    """A stage that saw `batches` batches at most, individuals of the training split."""
    first = seed * STEP_SEEDS
    known = class_names(None if classes == "all" else classes)
    return Stream(
        stage=stage,
        seed=seed,
        first_batch_seed=first,
        end_batch_seed=first + batches,
        plan=plan,
        per_batch=per_batch,
        items=items,
        items_are=items_are,
        identities_split="train",
        classes_split=classes,
        classes=len(known),
    )


def lineage_path(name: str, folder: Path = WEIGHTS) -> Path:
    """Where a model's lineage lies."""
    return folder / f"{name}.card.json"


def write_lineage(lineage: Lineage, folder: Path) -> Lineage:
    """Write it with the hash of the weights that lie in `folder`."""
    known = lineage.model_copy(update={"weights": file_digest(weight_path(lineage.name, folder))})
    partial = lineage_path(lineage.name, folder).with_suffix(".partial")
    partial.write_text(known.model_dump_json(indent=1) + "\n")
    partial.replace(lineage_path(lineage.name, folder))
    return known


def read_lineage(name: str, folder: Path = WEIGHTS) -> Lineage:
    """The lineage of a model. UserError for a missing or broken file."""
    path = lineage_path(name, folder)
    try:
        return Lineage.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise UserError(
            f"{path}: no lineage of the pocket model {name!r} ({error}); install the package again"
        ) from error


def words_of(lineage: Lineage) -> str:
    """Lines of a card."""
    drawn = "; ".join(
        f"{stream.stage}: batch seeds {stream.first_batch_seed} to {stream.end_batch_seed - 1},"
        f" {stream.classes} classes, split {stream.identities_split}"
        for stream in lineage.streams
    )
    start = f", some copied from {lineage.starts_from}" if lineage.starts_from else ""
    return (
        f"- Seeds: initial weights {lineage.init_seed}{start}; {drawn}.\n"
        f"- For machines: `{lineage.name}.card.json`.\n"
    )
