"""What a measurement consists of, before any model is loaded: models, scenes, pictures, pairing.

The first model is the folder's `base` and the second its `adapter`, so that every reader of an
evaluation reads this one; further ones are "model 3" and so on. A single model is the `adapter`.
run.json has the names that people gave them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from focusdpo.data_schemas.errors import UserError, counted
from focusdpo.data_schemas.scenes import Scene, stable_hash, stable_id
from focusdpo.evaluation.measure.picture_rows import Asked, PictureRow, PictureTable, Problem
from focusdpo.evaluation.protocols import ADAPTER, BASE

PROTOCOL = "foreign"
MOST_MODELS = 24
ENOUGH = 0.5
"""Share of each model's scenes that two must have in common to be compared by pairs."""


@dataclass(frozen=True, slots=True)
class PlannedPicture:
    """A picture and its place among the results."""

    row: PictureRow
    scene_id: str
    model: str
    """base, adapter, model 3, ..."""
    index: int
    """Which picture of its scene and model."""
    key: str
    """Of all about the picture that decides its numbers, but for models and settings."""

    @property
    def place(self) -> str:
        """Where it lies below the results, but for the suffix."""
        return f"images/{self.model.replace(' ', '-')}/{self.scene_id}-{self.index}"


@dataclass(frozen=True, slots=True)
class ForeignPlan:
    """All pictures, model by model and in the table's order."""

    source: str
    names: Mapping[str, str]
    """base, adapter, ... -> the model's name."""
    pictures: Sequence[PlannedPicture]
    scenes: Mapping[str, Scene]
    subjects: Mapping[str, Asked]
    problems: Sequence[Problem]
    layout: str
    """The public benchmark that it is, or nothing."""

    @property
    def protocol(self) -> str:
        """As every table prints it."""
        return f"{PROTOCOL}/{self.layout}" if self.layout else PROTOCOL

    @property
    def key(self) -> str:
        """Digest of all that was asked."""
        digest = hashlib.blake2b(f"{self.protocol}\n".encode(), digest_size=16)
        for model, name in self.names.items():
            digest.update(f"{model}\t{name}\n".encode())
        for picture in self.pictures:
            digest.update(
                f"{picture.model}\t{picture.scene_id}\t{picture.index}\t{picture.key}\n".encode()
            )
        for problem in self.problems:
            digest.update(f"{problem}\n".encode())
        return digest.hexdigest()


def plan_pictures(table: PictureTable, *, first: str | None = None) -> ForeignPlan:
    """The plan of a table. `first` names the model that others are compared with; without, it is
    the first in the table. UserError for an unknown one, too many models, and no usable row."""
    if not table.rows:
        shown = "; ".join(str(problem) for problem in table.problems[:3])
        raise UserError(f"{table.source}: none of its rows can be measured. {shown}")
    names = list(dict.fromkeys(row.model for row in table.rows))
    if len(names) > MOST_MODELS:
        raise UserError(
            f"{table.source}: {counted(len(names), 'model')}, at most {MOST_MODELS}; the column "
            "`model` names what painted a picture"
        )
    if first is not None:
        if first not in names:
            raise UserError(f"--first {first}: no such model; there are {', '.join(names)}")
        names.remove(first)
        names.insert(0, first)
    ids = _ids(len(names))
    model_of = dict(zip(names, ids, strict=True))
    stamps = _Stamps()
    scenes: dict[tuple[object, ...], Scene] = {}
    counts: dict[tuple[str, str], int] = {}
    subjects: dict[str, Asked] = {}
    pictures = []
    problems = list(table.problems)
    for row in table.rows:
        asked = (row.prompt, *(subject.name for subject in row.subjects))
        scene = scenes.get(asked) or scenes.setdefault(asked, _scene(row))
        model = model_of[row.model]
        try:
            key = stable_id(
                *(stamps.of(row.image), row.quarter, row.prompt, row.boxes),
                *map(stamps.who, row.subjects),
            )
        except OSError as error:
            where = f"{table.source}, line {row.line}"
            problems.append(Problem(where, f"{row.image}: cannot be read ({error.strerror})"))
            continue
        at = counts.get((model, scene.id), 0)
        counts[model, scene.id] = at + 1
        subjects.update((subject.name, subject) for subject in row.subjects)
        pictures.append(PlannedPicture(row, scene.id, model, at, key))
    order = {model: n for n, model in enumerate(ids)}
    pictures.sort(key=lambda picture: (order[picture.model], picture.row.line))
    by_id = {scene.id: scene for scene in scenes.values()}
    names_of = dict(zip(ids, names, strict=True))
    return ForeignPlan(table.source, names_of, pictures, by_id, subjects, problems, table.layout)


def _ids(count: int) -> list[str]:
    return (
        [ADAPTER] if count == 1 else [BASE, ADAPTER, *(f"model {n}" for n in range(3, count + 1))]
    )


def _scene(row: PictureRow) -> Scene:
    names = tuple(subject.name for subject in row.subjects)
    return Scene(
        id=stable_id("foreign", *names, row.prompt),
        partition=stable_id("foreign", *sorted(names)),
        subject_ids=names,
        class_names=tuple(subject.class_name for subject in row.subjects),
        prompt=row.prompt,
        variant=0,
        seed=stable_hash("foreign", *names, row.prompt) % 2**31,
    )


class _Stamps:
    """Files by name, size and time: 100,000 pictures are not read to plan them."""

    def __init__(self) -> None:
        self._who: dict[int, str] = {}

    def of(self, path: Path) -> str:
        """OSError for a file that is gone."""
        stat = os.stat(path)  # noqa: PTH116 - half the time of Path.stat, and there are many
        return f"{path}|{stat.st_size}|{stat.st_mtime_ns}"

    def who(self, subject: Asked) -> str:
        """A subject with its pictures and masks."""
        known = self._who.get(id(subject))
        if known is None:
            files = [*subject.references, *filter(None, subject.masks)]
            known = stable_id(subject.name, subject.class_name, *map(self.of, files))
            self._who[id(subject)] = known
        return known


@dataclass(frozen=True, slots=True)
class Pairing:
    """How two models are compared."""

    scenes: frozenset[str]
    """Which scenes of both; empty: each by its own, unpaired."""
    note: str
    """What a page must say; empty where both painted the same scenes."""


def pairing(ours: Sequence[str], theirs: Sequence[str], names: tuple[str, str]) -> Pairing:
    """Whether two models painted the same scenes, from the ids of what could be measured."""
    mine, others = set(ours), set(theirs)
    both = mine & others
    if mine == others:
        return Pairing(frozenset(both), "")
    overlap = (
        f"{names[0]} painted {counted(len(mine), 'scene')} and {names[1]} {len(others)}, "
        f"{len(both)} of them the same"
    )
    if both and len(both) >= ENOUGH * max(len(mine), len(others)):
        return Pairing(frozenset(both), f"{overlap}: they are compared on these, by pairs.")
    return Pairing(
        frozenset(),
        f"{overlap}: the difference is of the means, unpaired, and holds what the scenes differ "
        "in.",
    )
