"""The stages of a build in workers, with the results of a build in one process: what Ray's actors
and the processes of this machine have in common.

Planning, reading subjects and writing shards stay in this process; what is done is the store's to
say, so a lost worker costs the partition that it was at.
"""

from __future__ import annotations

import dataclasses
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.runs import Watch
from focusdpo.flows.build.builder import Builder, ChunkFailed, Outcome
from focusdpo.flows.build.cluster.worker import Reply, Task, model_version
from focusdpo.flows.build.preview import first_pictures
from focusdpo.flows.build.stages import STAGES
from focusdpo.flows.processes.worker_pool import Result
from focusdpo.store.addresses import split_address

log = logging.getLogger(__name__)

LOOKS = 8
"""How often the sheet of first pictures is drawn while they are generated."""


class Workers(Protocol):
    """Whoever computes tasks."""

    @property
    def size(self) -> int:
        """How many are up."""
        ...

    def results(self, work: Sequence[Task]) -> Iterator[Result[Task]]:
        """Do all the work; results in the order in which they come."""
        ...


class WorkersExecutor(ABC):
    """Hands the partitions of a build to workers; an `Executor` (flows/build/builder.py)."""

    task_partitions = 1
    """Partitions of one task."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder

    @abstractmethod
    def workers(self, stage: str) -> Workers:
        """Those of a stage. UserError where there can be none."""

    @abstractmethod
    def close(self) -> None:
        """End the workers."""

    def missing_roles(self) -> list[str]:
        """None: models are loaded by workers, and not here."""
        return []

    def chunks(self, stage: str) -> list[list[str]]:
        """The whole stage, unless `partitions_per_task` is set: a chunk's last partitions would
        leave workers idle."""
        if self.builder.run.partitions_per_task:
            return self.builder.chunks(stage)
        names = self.builder.plan.missing_partitions(stage)
        return [names] if names else []

    def run_chunk(
        self, stage: str, partitions: Sequence[str], watch: Watch, done: int = 0, total: int = 0
    ) -> list[Outcome]:
        """As `Builder.run_chunk`; partitions are watched in the order in which they come back.

        UserError also when there are no workers, or one is unfit.
        """
        try:
            return self._run_chunk(stage, partitions, watch, done, total or len(partitions))
        except ChunkFailed:
            raise
        except BaseException:
            self.close()
            raise

    def _run_chunk(
        self, stage: str, partitions: Sequence[str], watch: Watch, done: int, total: int
    ) -> list[Outcome]:
        workers = self.workers(stage)
        by_partition: dict[str, Outcome] = {}
        again, looked = False, 0
        for result in workers.results(self.tasks(stage, partitions)):
            outcomes, failed = self._taken(result)
            again = again or failed
            for outcome in outcomes:
                by_partition[outcome.partition] = outcome
                watch(stage, done + len(by_partition), total, {"workers": float(workers.size)})
            if stage == "generate" and len(by_partition) * LOOKS // len(partitions) > looked:
                looked = len(by_partition) * LOOKS // len(partitions)
                first_pictures(self.builder)
        ordered = [by_partition[name] for name in partitions]
        if again:
            raise ChunkFailed(ordered)
        return ordered

    def tasks(self, stage: str, partitions: Sequence[str]) -> list[Task]:
        """The work of a stage for some partitions."""
        size = self.task_partitions
        return [
            self._task(stage, partitions[at : at + size]) for at in range(0, len(partitions), size)
        ]

    def _task(self, stage: str, names: Sequence[str]) -> Task:
        scenes = {name: self.builder.partitions[name] for name in names}
        wanted = {
            who for members in scenes.values() for scene in members for who in scene.subject_ids
        }
        return Task(
            stage,
            model_version(stage, self.builder.parts),
            scenes,
            tuple(self.builder.subjects[who] for who in sorted(wanted)),
            {stage: [self.builder.plan.key(stage, name) for name in names] for stage in STAGES},
        )

    def _taken(self, result: Result[Task]) -> tuple[list[Outcome], bool]:
        """The outcomes of a result, and whether another try of its failures makes sense."""
        stage, names = result.item.work.stage, list(result.item.work.scenes)
        if result.reply is None:
            log.warning("%s %s failed: %s", stage, ", ".join(names), result.lost)
            return [Outcome(stage, name, "failed", message=result.lost) for name in names], False
        reply: Reply = result.reply
        if reply.unfit:
            raise UserError(f"worker {reply.worker} cannot work: {reply.unfit}")
        self.builder.parts.meter.load_seconds += reply.load_seconds
        outcomes = []
        for outcome in reply.outcomes:
            if outcome.status == "failed":
                log.warning("%s %s failed on %s: %s", *_who(outcome), reply.worker, outcome.message)
            if outcome.status == "found" and result.item.losses:
                # By the worker that was lost before it could say so.
                outcome = dataclasses.replace(outcome, status="made")
            outcomes.append(outcome)
        return outcomes, reply.again


def absolute(root: str) -> str:
    """A root as every process understands it, whatever folder it runs in. UserError for memory."""
    protocol, rest = split_address(root)
    if protocol == "memory":
        raise UserError(f"{root}: only this process sees it; give a root that all nodes see")
    return root if protocol else str(Path(rest).resolve())


def _who(outcome: Outcome) -> tuple[str, str]:
    return outcome.stage, outcome.partition
