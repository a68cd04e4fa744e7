"""Individuals of the pocket world as subjects: pictures with alpha and a subject.yaml each.

They go the way of a user's own folder. Build-dataset takes individuals of the training split;
evaluation takes held-out ones, which no model and no dataset has seen (split by construction, see
`pocket/classes.py`).
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml
from PIL import Image as PillowImage
from pydantic import BaseModel, ConfigDict, Field

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.scenes import stable_hash
from focusdpo.pipeline.parts import ReferenceImage
from focusdpo.pocket.world.identities import (
    Identity,
    Split,
    class_names,
    draw_of_split,
    sample_identities,
)

if TYPE_CHECKING:  # torch is loaded where scenes are rendered
    pass

log = logging.getLogger(__name__)

MARKER = ".pocket-subjects.json"
"""Says that a folder was written whole by `export`, and from which settings."""


class WorldConfig(BaseModel):
    """Which individuals of the pocket world a run works on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    subjects: int = Field(
        16, ge=1, le=2000, description="individuals of the training split to build from"
    )
    alike: int = Field(
        4, ge=1, le=50, description="individuals of each class, which a generator may mix up"
    )
    references: int = Field(2, ge=1, le=16, description="pictures of each")
    seed: int = Field(7, ge=0, lt=2**31, description="decides which individuals")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldSubject:
    """An individual with its pictures."""

    id: str
    identity: Identity
    pictures: tuple[ReferenceImage, ...]


def draw(
    split: Split, classes: Sequence[str], count: int, references: int, seed: int
) -> list[WorldSubject]:
    """`count` individuals of a split with `references` pictures each, classes drawn evenly."""
    return _photographed(sample_identities(split, classes, count, seed), references, seed)


def _photographed(identities: Sequence[Identity], references: int, seed: int) -> list[WorldSubject]:
    from focusdpo.pocket.world.world import render_references

    found = []
    for number, identity in enumerate(identities):
        seeds = [stable_hash("reference", seed, number, k) % 2**31 for k in range(references)]
        images, masks = render_references([identity] * references, seeds)
        pixels = np.rint(images.numpy() * 255).astype(np.uint8).transpose(0, 2, 3, 1)
        pictures = tuple(
            ReferenceImage(np.ascontiguousarray(image), mask)
            for image, mask in zip(pixels, masks.numpy(), strict=True)
        )
        name = f"{identity.class_name.replace(' ', '-')}-{number:02d}"
        found.append(WorldSubject(id=name, identity=identity, pictures=pictures))
    return found


def export(folder: Path, config: WorldConfig) -> int:
    """Write the individuals of a build to `folder`, one folder each; how many were written.

    Nothing is done when the folder holds just these. UserError when it holds anything else.
    """
    wanted = config.model_dump(mode="json")
    marker = folder / MARKER
    if marker.exists():
        if json.loads(marker.read_text("utf-8"))["config"] == wanted:
            return 0
        log.info("%s: other individuals are wanted; written anew", folder)
        shutil.rmtree(folder)
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(
            f"{folder}: holds something else than pocket subjects; choose an empty or new folder"
        )
    subjects = _photographed(_of_build(config), config.references, config.seed)
    for subject in subjects:
        _write(folder / subject.id, subject)
    drawn = {subject.id: asdict(subject.identity) for subject in subjects}
    text = json.dumps({"config": wanted, "identities": drawn}, indent=1)
    marker.write_text(text + "\n", encoding="utf-8")
    return len(subjects)


def _of_build(config: WorldConfig) -> list[Identity]:
    """Individuals of the training split, `alike` of each class, that can be told apart by eye."""
    from focusdpo.pocket.world.casting import told_apart

    rng = np.random.default_rng([config.seed, 0x5B])
    words = [str(word) for word in rng.permutation(class_names("train"))]
    people: list[Identity] = []
    while len(people) < config.subjects:
        word = words[len(people) // config.alike % len(words)]
        one = draw_of_split("train", [word], rng)
        if all(told_apart(one, other) for other in people if other.class_name == word):
            people.append(one)
    return people


def _write(folder: Path, subject: WorldSubject) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(subject.pictures):
        alpha = picture.mask.astype(np.uint8)[..., None] * np.uint8(255)
        rgba = PillowImage.fromarray(np.concatenate([picture.image, alpha], axis=2), "RGBA")
        rgba.save(folder / f"{number:02d}.png")
    about = {
        "class_name": subject.identity.class_name,
        "licence": "MIT (3D emoji renders, recoloured)",
    }
    (folder / "subject.yaml").write_text(yaml.safe_dump(about, sort_keys=False), encoding="utf-8")
