"""build-dataset without an engine: subjects in, plan, stages, shards, version, summary.

`prepare` reads subjects and plans; `execute` runs what is missing through a `Dispatch`, which is a
plain call here and a Prefect task in `flows/prefect/build_dataset.py`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.progress import Watch, quiet
from focusdpo.data_schemas.subjects import Subject
from focusdpo.flows.build.builder import Builder, ChunkFailed, Outcome
from focusdpo.flows.build.explain import request_digest, settled_version
from focusdpo.flows.build.preview import first_pictures
from focusdpo.flows.build.sources import find_subjects
from focusdpo.flows.build.stages import STAGES
from focusdpo.flows.config import BuildRun
from focusdpo.flows.wiring import Parts, resident_parts, vocabulary
from focusdpo.pipeline.upkeep.garbage import building
from focusdpo.pipeline.upkeep.purge import refuse_unfinished
from focusdpo.store.artefacts import Store
from focusdpo.store.manifests import note_request
from focusdpo.store.versions import DatasetVersion


def new_builder(
    run: BuildRun,
    store: Store,
    subjects: Sequence[Subject],
    backgrounds: Sequence[str],
    parts: Parts,
) -> Builder:
    """The builder of a run; connects to nothing yet."""
    if run.executor.kind == "local":
        return Builder(run, store, subjects, backgrounds, parts)
    from focusdpo.flows.build.cluster.ray_builder import RayBuilder

    return RayBuilder(run, store, subjects, backgrounds, parts)


@dataclass(frozen=True)
class Chunk:
    """One task's work."""

    stage: str
    partitions: list[str]
    number: int
    """From 1."""
    tasks: int
    done: int
    """Partitions of the stage before this chunk."""
    total: int


Dispatch = Callable[[Builder, Chunk, Watch], list[Outcome]]
"""Runs a chunk; failures of single partitions come back as outcomes."""


@dataclass(frozen=True)
class Prepared:
    """A planned run."""

    builder: Builder
    problems: list[str]
    """Subjects that were left out, and why."""
    settled: Mapping[str, Any] | None = None
    """Manifest of the newest version when it is just what this run asks for."""
    started: float = field(default_factory=time.perf_counter)
    loaded: float = 0.0
    """Seconds that loading models had taken in this process by then."""

    def counts(self) -> dict[str, tuple[int, int]]:
        """Stage -> (units, missing)."""
        if self.settled is not None:
            return dict.fromkeys(STAGES, (self.settled["partitions"], 0))
        return self.builder.plan.counts()


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """What a build did."""

    root: str
    version: str
    new: bool
    """Whether a version was published; False when nothing had changed."""
    pairs: int
    partitions: int
    new_shards: list[str]
    """Shards that the version has and its parent has not."""
    made: dict[str, int]
    """Stage -> partitions computed now."""
    failed: list[str]
    problems: list[str]
    rejects: dict[str, int]
    model_seconds: float
    load_seconds: float
    start_seconds: float
    """Until the first stage began: reading subjects, planning, and the engine's start, beside which
    models are loaded."""
    wall_seconds: float

    @property
    def whole(self) -> bool:
        """Nothing was left out."""
        return not self.failed and not self.problems

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {"command": "build-dataset", **asdict(self)}


def prepare(run: BuildRun) -> Prepared:
    """Open the root, read the subjects, compose scenes, plan. Loads no model but, for a photograph
    that shows no uniform background and was not seen before, the segmenter.

    UserError when no subject is usable, or with `strict` at the first that is not.
    """
    started = time.perf_counter()
    store = Store.open(run.root)
    refuse_unfinished(store)
    parts = resident_parts(run.family)
    subjects, problems = find_subjects(run, store)
    backgrounds, _ = vocabulary(run.family)
    builder = new_builder(run, store, subjects, backgrounds, parts)
    settled = settled_version(builder)
    if settled is None:
        _ = builder.plan
    return Prepared(builder, problems, settled, started, builder.parts.meter.load_seconds)


def direct(builder: Builder, chunk: Chunk, watch: Watch) -> list[Outcome]:
    """A chunk in this process, without an engine."""
    try:
        return builder.run_chunk(
            chunk.stage, chunk.partitions, watch, done=chunk.done, total=chunk.total
        )
    except ChunkFailed as error:
        return error.outcomes


def chunks_of(builder: Builder, stage: str) -> list[Chunk]:
    """A stage's tasks."""
    lists = builder.chunks(stage)
    total = sum(map(len, lists))
    made, done = [], 0
    for number, names in enumerate(lists, 1):
        made.append(Chunk(stage, names, number, len(lists), done, total))
        done += len(names)
    return made


def execute(
    prepared: Prepared,
    dispatch: Dispatch = direct,
    watch: Watch = quiet,
    publish: Callable[[Builder, dict[str, Any]], DatasetVersion] = lambda builder, config: (
        builder.publish(config)
    ),
) -> BuildResult:
    """Run what is missing and publish. UserError when nothing at all could be built."""
    if prepared.settled is not None:
        return _nothing_to_do(prepared, prepared.settled)
    with building(prepared.builder.store):
        prepared.builder.plan_again()
        return _build(prepared, dispatch, watch, publish)


def _build(
    prepared: Prepared,
    dispatch: Dispatch,
    watch: Watch,
    publish: Callable[[Builder, dict[str, Any]], DatasetVersion],
) -> BuildResult:
    builder = prepared.builder
    run = builder.run
    begun = time.perf_counter()
    outcomes: list[Outcome] = []
    for stage in STAGES:
        for chunk in chunks_of(builder, stage):
            outcomes += dispatch(builder, chunk, watch)
            if stage == "generate":
                first_pictures(builder)
    failed = failures(outcomes)
    if failed and not any(builder.finished()):
        raise UserError("every partition failed:\n  " + "\n  ".join(failed[:5]))
    version = publish(builder, run.model_dump(mode="json"))
    if version.manifest.get("partitions") == len(builder.partitions):
        note_request(builder.store, version.id, request_digest(builder))
    return BuildResult(
        root=run.root,
        version=version.id,
        new=version.new,
        pairs=len(version.rows),
        partitions=len(builder.partitions),
        new_shards=new_shards(version.manifest) if version.new else [],
        made=dict(Counter(o.stage for o in outcomes if o.status == "made")),
        failed=failed,
        problems=prepared.problems,
        rejects=dict(version.manifest.get("rejects", {})),
        model_seconds=round(sum(o.seconds for o in outcomes), 3),
        load_seconds=round(builder.parts.meter.load_seconds - prepared.loaded, 3),
        start_seconds=round(begun - prepared.started, 3),
        wall_seconds=round(time.perf_counter() - prepared.started, 3),
    )


def _nothing_to_do(prepared: Prepared, manifest: Mapping[str, Any]) -> BuildResult:
    """The result of a run whose version is there."""
    wall = round(time.perf_counter() - prepared.started, 3)
    return BuildResult(
        root=prepared.builder.run.root,
        version=manifest["id"],
        new=False,
        pairs=manifest["pairs"]["total"],
        partitions=manifest["partitions"],
        new_shards=[],
        made={},
        failed=[],
        problems=prepared.problems,
        rejects=dict(manifest["rejects"]),
        model_seconds=0.0,
        load_seconds=0.0,
        start_seconds=wall,
        wall_seconds=wall,
    )


def new_shards(manifest: Mapping[str, Any]) -> list[str]:
    """The shards that a version has and its parent has not."""
    return [one["name"] for one in manifest["shards"] if one["new"]]


def failures(outcomes: Sequence[Outcome]) -> list[str]:
    """One line per partition that failed; those skipped because of it are not told again."""
    return [
        f"{o.stage} of partition {o.partition}: {o.message}"
        for o in outcomes
        if o.status == "failed"
    ]
