"""What a build consists of: a unit per stage and partition, its content key, and whether it is
there. Kept as columns: a plan may hold hundreds of thousands of units."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from focusdpo.data_schemas.scenes import Scene
from focusdpo.flows.build.stages import STAGES, Stage
from focusdpo.flows.config import BuildRun
from focusdpo.flows.wiring import Parts
from focusdpo.store.artefacts import Store
from focusdpo.store.keys import key_maker


@dataclass(frozen=True, slots=True)
class Unit:
    """One stage of one partition."""

    stage: str
    partition: str
    key: str
    inputs: tuple[str, ...]
    present: bool


class Plan:
    """All units of a run in order, and which are there already."""

    def __init__(
        self,
        partitions: Mapping[str, Sequence[Scene]],
        keys: Mapping[str, Sequence[str]],
        present: Mapping[str, bytes],
    ) -> None:
        self._partitions = partitions
        self.names = list(partitions)
        """The partitions."""
        self._places = {name: place for place, name in enumerate(self.names)}
        self._keys = keys
        self._present = present

    def unit(self, stage: str, partition: str) -> Unit:
        """The unit of a stage for a partition."""
        place = self._places[partition]
        needs = STAGES[stage].needs
        inputs = tuple(self._keys[name][place] for name in needs) or scene_inputs(
            self._partitions[partition]
        )
        there = bool(self._present[stage][place])
        return Unit(stage, partition, self._keys[stage][place], inputs, there)

    def key(self, stage: str, partition: str) -> str:
        """The content key of a unit."""
        return self._keys[stage][self._places[partition]]

    def missing(self, stage: str | None = None) -> list[Unit]:
        """Units to compute, in order."""
        return [
            self.unit(name, partition)
            for name in ((stage,) if stage else tuple(STAGES))
            for partition in self.missing_partitions(name)
        ]

    def missing_partitions(self, stage: str) -> list[str]:
        """The partitions for which a stage is to be computed."""
        there = self._present[stage]
        return [name for name, is_there in zip(self.names, there, strict=True) if not is_there]

    def counts(self) -> dict[str, tuple[int, int]]:
        """Stage -> (units, missing)."""
        total = len(self.names)
        return {stage: (total, Counter(self._present[stage])[0]) for stage in STAGES}


def make_plan(
    run: BuildRun, parts: Parts, partitions: Mapping[str, Sequence[Scene]], store: Store
) -> Plan:
    """The plan of a run; a stage's artefacts are listed once, not asked for one by one."""
    keys: dict[str, list[str]] = {}
    present: dict[str, bytes] = {}
    for stage in STAGES.values():
        keys[stage.name] = _keys(stage, run, parts, partitions, keys)
        there = set(store.keys(stage.name))
        present[stage.name] = bytes(key in there for key in keys[stage.name])
    return Plan(partitions, keys, present)


def _keys(
    stage: Stage,
    run: BuildRun,
    parts: Parts,
    partitions: Mapping[str, Sequence[Scene]],
    earlier: Mapping[str, Sequence[str]],
) -> list[str]:
    make = key_maker(stage.name, stage.version, stage.settings(run), model_of(stage, parts))
    if not stage.needs:
        return [make(scene_inputs(scenes)) for scenes in partitions.values()]
    return [make(inputs) for inputs in zip(*(earlier[name] for name in stage.needs), strict=True)]


def scene_inputs(scenes: Sequence[Scene]) -> tuple[str, ...]:
    """What the first stage depends on. A scene's id is a hash of its subjects' digests, its prompt
    and its variant."""
    return tuple(f"{scene.id}-{scene.seed}" for scene in scenes)


def model_of(stage: Stage, parts: Parts) -> str:
    """The fingerprints of a stage's models."""
    return "+".join(parts.fingerprint(role) for role in stage.used(parts))
