"""A painted picture and what it tells of how it was made, in the PNG's text chunks.

Every field of `About` is a chunk `focusdpo:<field>`: words as they are, everything else as JSON. No
time and no host is in it, so that the same order gives the same bytes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage
from PIL.PngImagePlugin import PngInfo
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.images import DECODE_ERRORS, contact_sheet

PREFIX = "focusdpo:"


class ReferenceUsed(BaseModel):
    """A picture that the generator was shown."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str = Field(description="as it was given")
    sha256: str = Field(description="of the file's bytes")


class About(BaseModel):
    """All that decides a picture's pixels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str = Field(description="of focusdpo")
    prompt: str
    class_names: tuple[str, ...]
    references: tuple[ReferenceUsed, ...]
    seeds: tuple[int, ...] = Field(description="one per picture of the sheet")
    columns: int = Field(1, ge=1, description="of the sheet")
    adapter: str | None = Field(None, description="folder, as it was given")
    adapter_digest: str | None = Field(None, description="sha256 of its weights")
    preset: str = Field(description="shipped preset or YAML file, as it was given")
    settings: dict[str, Any] = Field(description="resolved: models, sampling, reading of pictures")
    fingerprint: str = Field(description="of the base's weights and settings")

    def as_made(self) -> dict[str, Any]:
        """What two pictures must share to be the same; where files lay does not matter."""
        told = self.model_dump(mode="json", exclude={"adapter", "preset"})
        told["references"] = [one.sha256 for one in self.references]
        return told


@dataclass(frozen=True, eq=False)
class Painted:
    """One picture, or a sheet of several."""

    image: PillowImage.Image
    about: About

    def png(self) -> bytes:
        """The file's bytes: same picture, same bytes."""
        info = PngInfo()
        for name, value in self.about.model_dump(mode="json").items():
            if value is not None:
                text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
                info.add_text(f"{PREFIX}{name}", text)
        sink = io.BytesIO()
        self.image.save(sink, format="PNG", pnginfo=info)
        return sink.getvalue()

    def save(self, path: str | Path) -> Path:
        """Write the PNG; it appears whole. UserError when it cannot be written."""
        path = Path(path)
        part = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(self.png())
            part.replace(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
        return path


def sheet(pictures: Sequence[Painted], columns: int | None = None) -> Painted:
    """Pictures of one order in rows; a single one stays as it is."""
    if len(pictures) == 1:
        return pictures[0]
    columns = min(columns or 8, len(pictures))
    arrays = [np.asarray(one.image, dtype=np.uint8) for one in pictures]
    seeds = tuple(seed for one in pictures for seed in one.about.seeds)
    about = pictures[0].about.model_copy(update={"seeds": seeds, "columns": columns})
    return Painted(contact_sheet(arrays, columns=columns), about)


def read_about(path: str | Path) -> About:
    """What a PNG tells of itself. UserError when it is none, or not from `focusdpo generate`."""
    try:
        with PillowImage.open(path, formats=("PNG",)) as image:
            image.load()
            text = dict(getattr(image, "text", {}))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (*DECODE_ERRORS, PillowImage.DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable PNG ({error})") from error
    told = {name.removeprefix(PREFIX): one for name, one in text.items() if name.startswith(PREFIX)}
    if not told:
        raise UserError(f"{path}: tells nothing of its making; it is not from `focusdpo generate`")
    words = {
        name for name, one in About.model_fields.items() if one.annotation in (str, str | None)
    }
    try:
        return About.model_validate(
            {name: one if name in words else json.loads(one) for name, one in told.items()}
        )
    except (ValidationError, ValueError) as error:
        raise UserError(
            f"{path}: what it tells of its making cannot be read; it is damaged or from another "
            "version of focusdpo"
        ) from error
