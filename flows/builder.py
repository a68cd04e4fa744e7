"""The executor of build-dataset: what is missing, stage by stage, partition by partition.

It knows the store and the stages and nothing of Prefect: a chunk of partitions is one call of
`Builder.run_chunk`, which a Prefect task wraps and the direct path calls. The store decides what is
done; running again with everything present loads no model.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.pairs import Pair, Reject
from focusdpo.data_schemas.scenes import Scene
from focusdpo.data_schemas.subjects import Subject
from focusdpo.flows.config import BuildRun
from focusdpo.flows.progress import Watch
from focusdpo.flows.stages import STAGES, Stage, Work
from focusdpo.flows.wiring import Parts
from focusdpo.pipeline.complexity import complexity_map
from focusdpo.pipeline.compose import by_partition
from focusdpo.pipeline.files import FULL
from focusdpo.pipeline.keys import content_key
from focusdpo.pipeline.shard import write_shards
from focusdpo.pipeline.store import Store
from focusdpo.pipeline.versions import DatasetVersion, latest_rows, publish

log = logging.getLogger(__name__)

PARTITION_ERRORS = (UserError, ValueError, RuntimeError, ArithmeticError, OSError)
"""What may go wrong with one partition and leave the others alone. A TypeError or KeyError is a
mistake of ours and stops everything."""

TASKS_PER_STAGE = 8

Status = Literal["made", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Unit:
    """One stage of one partition."""

    stage: str
    partition: str
    key: str
    inputs: tuple[str, ...]
    present: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a unit."""

    stage: str
    partition: str
    status: Status
    seconds: float = 0.0
    """Model computation."""
    message: str = ""


class ChunkFailed(RuntimeError):
    """Some partitions of a chunk failed; what was made is stored."""

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        self.outcomes = list(outcomes)
        bad = [o for o in outcomes if o.status == "failed"]
        super().__init__("; ".join(f"{o.stage} {o.partition}: {o.message}" for o in bad))


@dataclass(frozen=True)
class Plan:
    """All units of a run in order, and which are there already."""

    units: Mapping[tuple[str, str], Unit]

    def missing(self, stage: str | None = None) -> list[Unit]:
        """Units to compute, in order."""
        wanted = (stage,) if stage else tuple(STAGES)
        return [u for u in self.units.values() if not u.present and u.stage in wanted]

    def counts(self) -> dict[str, tuple[int, int]]:
        """Stage -> (units, missing)."""
        total = Counter(u.stage for u in self.units.values())
        absent = Counter(u.stage for u in self.missing())
        return {stage: (total[stage], absent[stage]) for stage in STAGES}


class Builder:
    """One run over one root."""

    def __init__(
        self,
        run: BuildRun,
        store: Store,
        subjects: Sequence[Subject],
        scenes: Sequence[Scene],
        parts: Parts,
    ) -> None:
        self.run = run
        self.store = store
        self.parts = parts
        self.subjects = {subject.id: subject for subject in subjects}
        self.partitions = {name: tuple(own) for name, own in by_partition(scenes).items()}
        self.plan = self._plan()
        self.pictures_shown = 0
        """How many pictures the contact sheet of this run has."""

    def _plan(self) -> Plan:
        units: dict[tuple[str, str], Unit] = {}
        for partition, scenes in self.partitions.items():
            keys: dict[str, str] = {}
            for stage in STAGES.values():
                inputs = self._inputs(stage, scenes, keys)
                key = content_key(
                    stage.name, stage.version, stage.settings(self.run), self._models(stage), inputs
                )
                keys[stage.name] = key
                there = self.store.has(stage.name, key)
                units[stage.name, partition] = Unit(stage.name, partition, key, inputs, there)
        order = {name: at for at, name in enumerate(STAGES)}
        return Plan(dict(sorted(units.items(), key=lambda item: order[item[0][0]])))

    def _inputs(
        self, stage: Stage, scenes: Sequence[Scene], keys: Mapping[str, str]
    ) -> tuple[str, ...]:
        if stage.needs:
            return tuple(keys[name] for name in stage.needs)
        # A scene's id is a hash of its subjects' digests, its prompt and its variant.
        return tuple(f"{scene.id}-{scene.seed}" for scene in scenes)

    def _models(self, stage: Stage) -> str:
        return "+".join(self.parts.fingerprint(role) for role in stage.roles)

    def missing_roles(self) -> list[str]:
        """The models that this run will use, in the order in which it will."""
        stages = dict.fromkeys(unit.stage for unit in self.plan.missing())
        return list(dict.fromkeys(role for name in stages for role in STAGES[name].roles))

    def chunks(self, stage: str) -> list[list[str]]:
        """The partitions of a stage that are missing, in tasks."""
        names = [unit.partition for unit in self.plan.missing(stage)]
        size = self.run.partitions_per_task or max(1, -(-len(names) // TASKS_PER_STAGE))
        return [names[at : at + size] for at in range(0, len(names), size)]

    def run_chunk(
        self, stage: str, partitions: Sequence[str], watch: Watch, *, done: int = 0, total: int = 0
    ) -> list[Outcome]:
        """Compute one stage for some partitions, each stored as soon as it is made.

        One bad partition leaves the others alone; `ChunkFailed` at the end when one failed by more
        than bad input, so that a retry makes sense. A full disk stops at once.
        """
        outcomes = []
        again = False
        for at, partition in enumerate(partitions):
            try:
                outcomes.append(self._run_unit(stage, partition))
            except PARTITION_ERRORS as error:
                if self.run.strict or disk_is_full(error):
                    raise
                again = again or not isinstance(error, UserError)
                log.warning("%s %s failed: %s", stage, partition, error, exc_info=again)
                message = f"{type(error).__name__}: {error}"
                outcomes.append(Outcome(stage, partition, "failed", message=message))
            watch(stage, done + at + 1, total or len(partitions), {})
        if again:
            raise ChunkFailed(outcomes)
        return outcomes

    def _run_unit(self, stage: str, partition: str) -> Outcome:
        unit = self.plan.units[stage, partition]
        if self.store.has(stage, unit.key):
            return Outcome(stage, partition, "made")
        for earlier in STAGES[stage].needs:
            if not self.store.has(earlier, self.plan.units[earlier, partition].key):
                return Outcome(stage, partition, "skipped", message=f"{earlier} is missing")
        self.parts.meter.take()
        output = STAGES[stage].run(self._work(unit))
        seconds = self.parts.meter.take()
        more: dict[str, tuple[type, Sequence[Any]]] = {}
        if output.rejects or stage == "pair":
            more["rejects"] = (Reject, output.rejects)
        self.store.commit(
            stage,
            unit.key,
            output.records,
            STAGES[stage].record,
            images=output.images,
            more=more,
            partition=partition,
            inputs=unit.inputs,
            seconds=seconds,
            versions={"code": str(STAGES[stage].version), "model": self._models(STAGES[stage])},
        )
        return Outcome(stage, partition, "made", seconds)

    def _work(self, unit: Unit) -> Work:
        scenes = self.partitions[unit.partition]
        names = {name for scene in scenes for name in scene.subject_ids}
        return Work(
            run=self.run,
            store=self.store,
            parts=self.parts,
            scenes=scenes,
            subjects={name: self.subjects[name] for name in sorted(names)},
            keys={name: self.plan.units[name, unit.partition].key for name in STAGES},
            prefix=f"{unit.stage}/{unit.key}",
        )

    def finished(self) -> Iterator[tuple[str, str]]:
        """(partition, pair artefact key) of the partitions that are whole."""
        for partition in self.partitions:
            key = self.plan.units["pair", partition].key
            if self.store.has("pair", key):
                yield partition, key

    def publish(self, config: Mapping[str, Any]) -> DatasetVersion:
        """Shards of the new pairs, then the version; the same version when nothing is new."""
        finished = list(self.finished())
        pairs = [p for _, key in finished for p in self.store.read("pair", key, Pair)]
        rejects: Counter[str] = Counter(
            r.reason
            for _, key in finished
            for r in self.store.read("pair", key, Reject, table="rejects")
        )
        if not pairs:
            why = ", ".join(f"{count} {name}" for name, count in rejects.most_common()) or "none"
            raise UserError(
                f"{self.run.root}: no pair was accepted (rejects: {why}); loosen the section "
                "`pair` with --set, or give more subjects"
            )
        rows = write_shards(
            self.store,
            pairs,
            partial(complexity_map, config=self.run.complexity),
            self.run.shard,
            previous=latest_rows(self.store),
            complexity_config=self.run.complexity,
        )
        whole = {partition for partition, _ in finished}
        artefacts = [(u.stage, u.key) for u in self.plan.units.values() if u.partition in whole]
        return publish(
            self.store,
            rows,
            subjects=list(self.subjects.values()),
            artefacts=artefacts,
            config=config,
            rejects=dict(rejects),
            seeds={"compose": self.run.compose.seed, "world": self.run.world.seed},
        )


def disk_is_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a full disk or quota."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        error = error.__cause__
    return False
