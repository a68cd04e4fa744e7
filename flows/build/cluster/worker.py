"""What a worker does, of a Ray cluster or of this machine: it opens the root, loads the models of a
stage once, keeps them, and computes the partitions that it is handed. Keys and records travel,
pixels do not.

This module knows no Ray: a worker is an object like any other.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from focusdpo.data_schemas.environment import me, told
from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.runs import quiet
from focusdpo.data_schemas.scenes import Scene
from focusdpo.data_schemas.subjects import Subject
from focusdpo.flows.build.builder import Builder, ChunkFailed, Outcome, painting_adapter
from focusdpo.flows.build.plan import Plan, model_of
from focusdpo.flows.build.stages import STAGES
from focusdpo.flows.config import BuildRun
from focusdpo.flows.wiring import Parts, resident_parts
from focusdpo.store.artefacts import Store


@dataclass(frozen=True, slots=True)
class Task:
    """One stage of a few partitions: all that a worker must know of them."""

    stage: str
    model: str
    """Code version of the stage and fingerprints of its models, as the planner knows them."""
    scenes: Mapping[str, tuple[Scene, ...]]
    """Partition -> its scenes."""
    subjects: tuple[Subject, ...]
    keys: Mapping[str, Sequence[str]]
    """Stage -> artefact key of each partition."""

    def each(self) -> list[Task]:
        """The same work, a partition at a time."""
        return [
            Task(
                self.stage,
                self.model,
                {name: self.scenes[name]},
                self.subjects,
                {stage: [keys[place]] for stage, keys in self.keys.items()},
            )
            for place, name in enumerate(self.scenes)
        ]


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of a task."""

    worker: str
    outcomes: tuple[Outcome, ...] = ()
    again: bool = False
    """A partition failed by more than bad input: another try makes sense."""
    load_seconds: float = 0.0
    """Loading models, for this task."""
    unfit: str = ""
    """Why this worker can do no work at all."""


class StageWorker:
    """A process that computes."""

    def __init__(self, run: BuildRun, root: str, imports: Sequence[str] = ()) -> None:
        self._run, self._root, self._imports = run, root, imports
        self._store: Store | None = None

    def hello(self) -> str:
        """Who this is, once it is up."""
        return told(me())

    def compute(self, task: Task) -> Reply:
        """Run a task. Failures of single partitions are told in the reply; what stops a local run
        (`strict`, a full disk, a mistake of ours) is raised."""
        try:
            builder = self._builder(task)
            before = builder.parts.meter.load_seconds
            _load(builder.parts, task.stage)
        except (UserError, ImportError) as error:
            return Reply(self.hello(), unfit=str(error))
        again = False
        try:
            outcomes = builder.run_chunk(task.stage, list(task.scenes), quiet)
        except ChunkFailed as failed:
            outcomes, again = failed.outcomes, True
        loaded = builder.parts.meter.load_seconds - before
        return Reply(self.hello(), tuple(outcomes), again, loaded)

    def _builder(self, task: Task) -> Builder:
        """A builder that knows no more than the task; keys are the planner's."""
        if self._store is None:
            for name in self._imports:
                importlib.import_module(name)
            self._store = Store.open(self._root, create=False)
        parts = resident_parts(self._run.family, painting_adapter(self._run))
        if (mine := model_version(task.stage, parts)) != task.model:
            raise UserError(
                f"stage {task.stage}: code and models are {mine} here and {task.model} where the "
                "build was started; install the same focusdpo and the same weights on all nodes"
            )
        builder = Builder(self._run, self._store, task.subjects, (), parts)
        builder.partitions = dict(task.scenes)
        absent = {stage: bytes(len(task.scenes)) for stage in task.keys}
        builder.plan = Plan(task.scenes, task.keys, absent)
        return builder


def model_version(stage: str, parts: Parts) -> str:
    """What content keys say of the code and the models of a stage."""
    return f"{STAGES[stage].version}:{model_of(STAGES[stage], parts)}"


def _load(parts: Parts, stage: str) -> None:
    """Load the models of a stage, which are then kept; those of the last one make room."""
    roles = STAGES[stage].used(parts)
    parts.keep_only(roles)
    for role in roles:
        parts.load(role)
