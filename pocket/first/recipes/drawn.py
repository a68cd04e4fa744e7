"""Which individuals and scenes the trainings drew, found without rendering a pixel.

The batches are planned by the recipes' own functions, so this is what a recipe shows its model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from focusdpo.pocket.first.identities import Identity, class_names
from focusdpo.pocket.first.recipes.identity import view_plan
from focusdpo.pocket.first.recipes.samples import lookalikes, scene_plan
from focusdpo.pocket.lineage import Stream


@dataclass(frozen=True)
class Drawn:
    """What one training saw, those batches included that only measured its normalisation."""

    individuals: frozenset[Identity]
    scene_seeds: frozenset[int]
    """Each decides background and placement of a scene, not who stands in it."""

    @property
    def cells(self) -> frozenset[tuple[str, int, str]]:
        """Class, hue bin and pattern of the individuals."""
        return frozenset(one.cell for one in self.individuals)


def drawn(streams: tuple[Stream, ...]) -> Drawn:
    """The individuals and scenes of all stages of a training by one of the packaged recipes."""
    individuals: set[Identity] = set()
    seeds: set[int] = set()
    for one in streams:
        for batch_seed in range(one.first_batch_seed, one.end_batch_seed):
            people, scenes = _batch(one, batch_seed)
            individuals.update(people)
            seeds.update(scenes)
    return Drawn(frozenset(individuals), frozenset(seeds))


def _batch(one: Stream, seed: int) -> tuple[list[Identity], list[int]]:
    classes = class_names(None if one.classes_split == "all" else one.classes_split)
    if one.plan == "views":
        people = lookalikes(classes, one.identities_split, one.per_batch // 4, seed)
        scenes, _, count = view_plan(len(people), seed)
        return people, scenes[: -(-len(people) // count)]
    rng = np.random.default_rng([seed, 0x5A])
    rows, scenes = scene_plan(rng, one.per_batch, classes, one.identities_split)
    return [person for row in rows for person in row], scenes
