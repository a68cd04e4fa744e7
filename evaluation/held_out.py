"""The evaluation's scenes: individuals that no model and no dataset has seen.

Settings are chosen on individuals of the split `val`, results are told on those of `held_out`.

Every scene has individuals of its own, so that scenes are independent and a bootstrap over them
means what it says.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from focusdpo.data_schemas.prompts import caption
from focusdpo.data_schemas.scenes import Scene, stable_hash, stable_id
from focusdpo.data_schemas.strict import StrictModel
from focusdpo.pipeline.parts import ReferenceImage
from focusdpo.pocket.world.identities import class_names
from focusdpo.pocket.world.world_subjects import WorldSubject, draw


@dataclass(frozen=True)
class HeldOut:
    """Scenes and the pictures of who stands in them."""

    scenes: list[Scene]
    subjects: dict[str, WorldSubject]
    held_out_classes: tuple[str, ...]
    """Those that no generator and no scorer was trained on."""

    @property
    def references(self) -> Mapping[str, tuple[ReferenceImage, ...]]:
        """Subject id -> pictures."""
        return {name: subject.pictures for name, subject in self.subjects.items()}


class HeldOutConfig(StrictModel):
    """How many scenes of which kind the protocol `pocket` paints."""

    split: Literal["held_out", "val"] = Field(
        "held_out",
        description="whose individuals: held_out to tell results, val to choose settings",
    )
    singles: int = Field(16, ge=0, description="scenes of one subject")
    pairs: int = Field(40, ge=0, description="scenes of two subjects of different classes")
    same_class_pairs: int = Field(8, ge=0, description="scenes of two subjects of one class")
    triples: int = Field(16, ge=0, description="scenes of three subjects")
    new_classes: float = Field(
        0.25, ge=0, le=1, description="share of scenes whose classes no model was trained on"
    )
    references: int = Field(2, ge=1, le=16, description="pictures of a subject")
    seed: int = Field(1, ge=0, lt=2**31, description="decides individuals, backgrounds and noise")

    @property
    def kinds(self) -> list[tuple[int, int, bool]]:
        """(scenes, subjects in each, all of one class)."""
        return [
            (self.singles, 1, False),
            (self.pairs, 2, False),
            (self.same_class_pairs, 2, True),
            (self.triples, 3, False),
        ]


def held_out_scenes(config: HeldOutConfig, backgrounds: tuple[str, ...]) -> HeldOut:
    """The protocol's scenes; equal configs give equal pixels."""
    scenes: list[Scene] = []
    subjects: dict[str, WorldSubject] = {}
    for kind, (count, size, same) in enumerate(config.kinds):
        new = round(count * config.new_classes)
        for number in range(count):
            seed = stable_hash(config.split, config.seed, kind, number) % 2**31
            rng = np.random.default_rng(seed)
            known = class_names(config.split if number < new else "train")
            words = [
                str(word) for word in rng.choice(known, size=1 if same else size, replace=False)
            ]
            name = stable_id(config.split, config.seed, kind, number)
            members = _members(name, words * (size if same else 1), config, seed)
            subjects |= {member.id: member for member in members}
            scenes.append(_scene(name, members, str(rng.choice(backgrounds)), number, seed))
    return HeldOut(scenes, subjects, class_names(config.split))


def _members(name: str, words: list[str], config: HeldOutConfig, seed: int) -> list[WorldSubject]:
    members: list[WorldSubject] = []
    for place, word in enumerate(words):
        subject = _other_than(members, word, config, seed, place)
        member_id = f"{name[:8]}-{place}-{word.replace(' ', '-')}"
        members.append(
            WorldSubject(id=member_id, identity=subject.identity, pictures=subject.pictures)
        )
    return members


def _other_than(
    members: list[WorldSubject], word: str, config: HeldOutConfig, seed: int, place: int
) -> WorldSubject:
    """An individual that can be told by eye from the scene's others of its class."""
    from focusdpo.pocket.world.casting import told_apart

    tries = itertools.count()
    while True:
        own_seed = stable_hash(seed, place, next(tries)) % 2**31
        one = draw(config.split, [word], 1, config.references, own_seed)[0]
        if all(told_apart(one.identity, other.identity) for other in members):
            return one


def _scene(
    name: str, members: list[WorldSubject], background: str, number: int, seed: int
) -> Scene:
    words = tuple(member.identity.class_name for member in members)
    return Scene(
        id=name,
        partition=name,
        subject_ids=tuple(member.id for member in members),
        class_names=words,
        prompt=caption(words, background),
        variant=number,
        seed=seed,
    )
