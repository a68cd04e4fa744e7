"""What a build knows (its partitions, plan, reviews), and how it computes what is missing in this
process. The store decides what is done; running again with everything present loads no model.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

from focusdpo.data_schemas.errors import TakenAway, UserError
from focusdpo.data_schemas.pairs import Reject
from focusdpo.data_schemas.runs import Watch
from focusdpo.data_schemas.scenes import Scene
from focusdpo.data_schemas.subjects import Subject
from focusdpo.flows.build.likeness import LEAKING, compare_pairs, subject_notes
from focusdpo.flows.build.plan import Plan, Unit, make_plan, model_of
from focusdpo.flows.build.stages import STAGES, Work
from focusdpo.flows.build.yields import gather
from focusdpo.flows.config import BuildRun
from focusdpo.flows.console import about
from focusdpo.flows.fit.lost_card import card_is_lost
from focusdpo.flows.fit.out_of_memory import out_of_memory
from focusdpo.flows.wiring import Parts
from focusdpo.pipeline.audit import Audit, Ruling
from focusdpo.pipeline.complexity import complexity_map, map_settings
from focusdpo.pipeline.compose import by_partition, compose
from focusdpo.pipeline.shard import write_shards
from focusdpo.pipeline.upkeep.garbage import last_sweep
from focusdpo.store.artefacts import Store
from focusdpo.store.local import FULL
from focusdpo.store.outputs import local
from focusdpo.store.remote import Lost
from focusdpo.store.versions import DatasetVersion, Superseded, publish

log = logging.getLogger(__name__)

PARTITION_ERRORS = (UserError, ValueError, RuntimeError, ArithmeticError, OSError)
"""What may go wrong with one partition and leave the others alone. A TypeError or KeyError is a
mistake of ours and stops everything."""

TASKS_PER_STAGE = 8

Status = Literal["made", "found", "busy", "failed", "skipped"]
"""`found`: another builder has made it meanwhile; `busy`: another is at it now."""


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


def painting_adapter(run: BuildRun) -> str | None:
    """The folder here of the adapter that candidates are painted with. UserError when it is not
    there."""
    address = run.generate.adapter
    return None if address is None else str(local(address))


class Executor(Protocol):
    """Where the stages of a build are computed: in this process (`Builder`), or by workers
    (flows/build/cluster)."""

    def missing_roles(self) -> list[str]:
        """The models that this process will use, in the order in which it will."""
        ...

    def chunks(self, stage: str) -> list[list[str]]:
        """The partitions of a stage that are missing, in tasks."""
        ...

    def run_chunk(
        self,
        stage: str,
        partitions: Sequence[str],
        watch: Watch,
        done: int = 0,
        total: int = 0,
    ) -> list[Outcome]:
        """Compute one stage for some partitions, each stored as soon as it is made; `done` of
        `total` partitions were computed before. `ChunkFailed` where another try makes sense."""
        ...

    def close(self) -> None:
        """Let go of whatever computes; called when all stages are done, and after an error."""
        ...


class Builder:
    """One run over one root."""

    def __init__(
        self,
        run: BuildRun,
        store: Store,
        subjects: Sequence[Subject],
        backgrounds: Sequence[str],
        parts: Parts,
    ) -> None:
        self.run = run
        self.store = store
        self.parts = parts
        self.subjects = {subject.id: subject for subject in subjects}
        self.backgrounds = tuple(backgrounds)
        self._made: set[str] = set()
        self._swept: bytes | None = None
        self.notes: list[str] = []
        """What somebody should know of the pictures; nothing is left out for it."""
        self.pictures_shown = 0
        """How many pictures the contact sheet of this run has."""

    @functools.cached_property
    def partitions(self) -> dict[str, tuple[Scene, ...]]:
        """Partition -> its scenes. UserError when subjects and settings give none."""
        scenes = compose(list(self.subjects.values()), self.backgrounds, self.run.compose)
        return {name: tuple(members) for name, members in by_partition(scenes).items()}

    def keep_first(self, scenes: int) -> None:
        """From now on only the first partitions count that hold so many scenes together."""
        kept: dict[str, tuple[Scene, ...]] = {}
        for name, members in self.partitions.items():
            if sum(map(len, kept.values())) >= scenes:
                break
            kept[name] = members
        self.__dict__["partitions"] = kept
        self.__dict__.pop("plan", None)

    @functools.cached_property
    def ruling(self) -> Ruling:
        """What reviews come to, as they were when first asked, or last published."""
        return Ruling.of(Audit(self.store).reviews())

    @functools.cached_property
    def plan(self) -> Plan:
        """What is there and what is missing, as it was when first asked."""
        self._swept = last_sweep(self.store)
        return make_plan(self.run, self.parts, self.partitions, self.store)

    def plan_again(self) -> None:
        """Plan anew if something was removed from the root since the plan was made."""
        if "plan" in self.__dict__ and last_sweep(self.store) != self._swept:
            del self.plan

    def missing_roles(self) -> list[str]:
        """The models that this run will use, in the order in which it will."""
        stages = [stage for stage, (_, absent) in self.plan.counts().items() if absent]
        return list(
            dict.fromkeys(role for name in stages for role in STAGES[name].used(self.parts))
        )

    def chunks(self, stage: str) -> list[list[str]]:
        """The partitions of a stage that are missing, in tasks."""
        names = self.plan.missing_partitions(stage)
        size = self.run.partitions_per_task or max(1, -(-len(names) // TASKS_PER_STAGE))
        return [names[at : at + size] for at in range(0, len(names), size)]

    def run_chunk(
        self, stage: str, partitions: Sequence[str], watch: Watch, done: int = 0, total: int = 0
    ) -> list[Outcome]:
        """Compute one stage for some partitions, each stored as soon as it is made.

        One bad partition leaves the others alone; `ChunkFailed` at the end when one failed by more
        than bad input, so that a retry makes sense. A full disk stops at once. What another builder
        is at comes last: by then it may have made it.
        """
        outcomes: list[Outcome] = []
        again = False
        left = list(partitions)
        for wait in (False, True):
            busy = []
            for partition in left:
                try:
                    with about(partition=partition):
                        outcome = self._run_unit(stage, partition, wait)
                except PARTITION_ERRORS as error:
                    self._require_root(error)
                    lasting = disk_is_full(error) or out_of_memory(error) or card_is_lost(error)
                    if self.run.strict or lasting or isinstance(error, (Lost, TakenAway)):
                        raise
                    again = again or not isinstance(error, UserError)
                    log.warning("%s %s failed: %s", stage, partition, error, exc_info=again)
                    message = f"{type(error).__name__}: {error}"
                    outcome = Outcome(stage, partition, "failed", message=message)
                if outcome.status == "busy":
                    busy.append(partition)
                    continue
                outcomes.append(outcome)
                watch(stage, done + len(outcomes), total or len(partitions), {})
            left = busy
        if again:
            raise ChunkFailed(outcomes)
        return outcomes

    def _require_root(self, error: BaseException) -> None:
        """TakenAway where a file is missed because the whole root is, whatever noticed it first."""
        if not isinstance(error, FileNotFoundError):
            return
        local = self.store.files.local
        if local is not None and not local.exists():
            raise TakenAway(
                f"{local}: was taken away; run the same command again: what was finished is kept"
            ) from error

    def close(self) -> None:
        """Nothing is held: models stay in this process for what comes after."""

    def _run_unit(self, stage: str, partition: str, wait: bool) -> Outcome:
        unit = self.plan.unit(stage, partition)
        if self.store.has(stage, unit.key):
            # Made before an error that this chunk is run again for, or by another builder.
            return Outcome(stage, partition, "made" if unit.key in self._made else "found")
        for earlier in STAGES[stage].needs:
            if not self.store.has(earlier, self.plan.key(earlier, partition)):
                return Outcome(stage, partition, "skipped", message=f"{earlier} is missing")
        with self.store.lease(stage, unit.key, partition, wait=wait) as grant:
            if grant.mine:
                return self._make(unit)
            if grant.holder is None:
                return Outcome(stage, partition, "found")
            log.info("%s %s is being computed by %s", stage, partition, grant.holder)
            return Outcome(stage, partition, "busy")

    def _make(self, unit: Unit) -> Outcome:
        stage, partition = unit.stage, unit.partition
        self.parts.meter.take()
        output = STAGES[stage].run(self._work(unit))
        seconds = self.parts.meter.take()
        more: dict[str, tuple[type, Sequence[Any]]] = {**output.more}
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
            versions={
                "code": str(STAGES[stage].version),
                "model": model_of(STAGES[stage], self.parts),
            },
        )
        self._made.add(unit.key)
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
            keys={name: self.plan.key(name, unit.partition) for name in STAGES},
            prefix=f"{unit.stage}/{unit.key}",
        )

    def finished(self) -> Iterator[tuple[str, str]]:
        """(partition, pair artefact key) of the partitions that are whole."""
        there = set(self.store.keys("pair"))
        for partition in self.partitions:
            key = self.plan.key("pair", partition)
            if key in there:
                yield partition, key

    def publish(self, config: Mapping[str, Any]) -> DatasetVersion:
        """Shards of the new pairs, then the version; the same version when nothing is new.

        Partitions whose pairs the newest version has are taken over from it unread. One builder
        at a time, so that each grows from the other's version and no version is passed over.
        """
        with self.store.publishing():
            try:
                return self._publish(config)
            except Superseded as error:  # by a builder that took this one for dead
                log.warning("%s; publishing again", error)
                return self._publish(config)

    def _publish(self, config: Mapping[str, Any]) -> DatasetVersion:
        finished = dict(self.finished())
        self.ruling = Ruling.of(Audit(self.store).reviews())  # some may have come meanwhile
        yields = gather(self.store, self.run, self.partitions, finished, self.ruling)
        alike = compare_pairs(self.store, self.run, yields.pairs, yields.rows)
        pairs = [pair for pair in yields.pairs if pair.id not in alike.leaking]
        rows = [row for row in yields.rows if row.pair_id not in alike.leaking]
        notes = subject_notes(self.store, self.run, self.subjects, self.parts)
        self.notes = [*notes, *alike.notes]
        rejects = Counter([LEAKING] * len(alike.leaking))
        for partition in yields.partitions:
            rejects.update(partition.rejects)
        if not rows and not pairs:
            why = ", ".join(f"{count} {name}" for name, count in rejects.most_common()) or "none"
            raise UserError(
                f"{self.run.root}: no pair was accepted (rejects: {why}); loosen the section "
                "`pair` with --set, or give more subjects"
            )
        new = write_shards(
            self.store,
            pairs,
            partial(complexity_map, config=self.run.complexity),
            self.run.shard,
            previous=yields.previous,
            complexity_config=map_settings(self.run.complexity),
        )
        return publish(
            self.store,
            sorted([*rows, *new], key=lambda row: row.pair_id),
            subjects=list(self.subjects.values()),
            artefacts=[
                (stage, self.plan.key(stage, name)) for stage in STAGES for name in finished
            ],
            config=config,
            rejects=dict(rejects),
            seeds={"compose": self.run.compose.seed, "world": self.run.world.seed},
            partitions=yields.partitions,
            reviewed=yields.reviewed,
        )


def disk_is_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a full disk or quota."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        error = error.__cause__
    return False
