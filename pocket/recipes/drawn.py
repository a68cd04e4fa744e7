"""Which individuals and scenes the trainings drew, found without rendering a pixel.

The batches are planned by the recipes' own functions, so this is what a recipe shows its model.
"""

from __future__ import annotations

from dataclasses import dataclass

from focusdpo.pocket.classes import class_names
from focusdpo.pocket.lineage import Stream
from focusdpo.pocket.recipes.scorer_samples import lookalikes, scene_plan, view_plan
from focusdpo.pocket.world.identities import Identity


@dataclass(frozen=True)
class Drawn:
    """What one training saw, those batches included that only measured its normalisation."""

    individuals: frozenset[Identity]
    scene_seeds: frozenset[int]
    """Each decides background and placement of a scene, not who stands in it."""


def drawn(streams: tuple[Stream, ...]) -> Drawn:
    """The individuals and scenes of all stages of a training by one of the packaged recipes."""
    individuals: set[Identity] = set()
    seeds: set[int] = set()
    for each in streams:
        for batch_seed in range(each.first_batch_seed, each.end_batch_seed):
            people, scenes = _batch(each, batch_seed)
            individuals.update(people)
            seeds.update(scenes)
    return Drawn(frozenset(individuals), frozenset(seeds))


def _batch(each: Stream, seed: int) -> tuple[list[Identity], list[int]]:
    classes = class_names(None if each.classes_split == "all" else each.classes_split)
    if each.plan == "views":
        people = lookalikes(classes, each.identities_split, each.per_batch // 4, seed)
        scenes, _, count = view_plan(len(people), seed)
        return people, scenes[: -(-len(people) // count)]
    casts, seeds, _ = scene_plan(seed, each.per_batch, classes, each.identities_split)
    return [subject for cast in casts for subject in cast], seeds
