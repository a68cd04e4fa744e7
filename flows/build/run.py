"""The job build-dataset: subjects in, plan, stages, shards, version, summary."""

from __future__ import annotations

import functools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from focusdpo.data_schemas.errors import UserError, counted
from focusdpo.data_schemas.runs import Watch, quiet
from focusdpo.flows.build.builder import (
    Builder,
    ChunkFailed,
    Executor,
    Outcome,
    painting_adapter,
)
from focusdpo.flows.build.explain import request_digest, settled_version
from focusdpo.flows.build.outcome import BuildResult, record
from focusdpo.flows.build.preview import FIRST, first_pictures
from focusdpo.flows.build.sources import find_subjects, require_folder
from focusdpo.flows.build.stages import STAGES
from focusdpo.flows.config import BuildRun
from focusdpo.flows.console import about
from focusdpo.flows.fit.supply import require_fit
from focusdpo.flows.jobs import (
    PUBLISHED,
    YIELD_DROPPED,
    Event,
    Exhibit,
    Job,
    Picture,
    Steps,
    Table,
    Text,
)
from focusdpo.flows.wiring import resident_parts, vocabulary
from focusdpo.pipeline.upkeep.garbage import building
from focusdpo.pipeline.upkeep.purge import refuse_unfinished
from focusdpo.store.artefacts import Store
from focusdpo.store.manifests import note_request
from focusdpo.store.versions import DatasetVersion

log = logging.getLogger(__name__)


class Build(Job[BuildRun, BuildResult]):
    """Subjects -> a dataset version of preference pairs in `run.root`."""

    name = "build-dataset"
    config = BuildRun

    def __init__(self, run: BuildRun, *, write: bool = True) -> None:
        """Open the root, read the subjects, compose scenes, plan. Loads no model but, for a
        photograph that shows no uniform background and was not seen before, the segmenter. Without
        `write` for its plan alone: nothing is stored.

        UserError when no subject is usable, or with `strict` at the first that is not.
        """
        super().__init__(run)
        self.started = time.perf_counter()
        if run.subjects is not None:
            require_folder(run.subjects)
        store = Store.open(run.root, write=write)
        refuse_unfinished(store)
        parts = resident_parts(run.family, painting_adapter(run))
        subjects, self.problems = find_subjects(run, store)
        """`problems`: subjects that were left out, and why."""
        backgrounds, _ = vocabulary(run.family)
        self.builder = Builder(run, store, subjects, backgrounds, parts)
        self.executor: Executor = self.builder
        """What computes the stages; connects to nothing yet."""
        if run.executor.kind == "ray":
            from focusdpo.flows.build.cluster.ray_executor import RayExecutor

            self.executor = RayExecutor(self.builder)
        elif run.num_processes != 1:
            from focusdpo.flows.build.cluster.process_executor import ProcessExecutor

            self.executor = ProcessExecutor(self.builder)
        self.settled = settled_version(self.builder)
        """Manifest of the newest version when it is just what this run asks for."""
        self.counts: dict[str, tuple[int, int]]
        """Stage -> (units, missing)."""
        if self.settled is None:
            self.counts = self.builder.plan.counts()
        else:
            self.counts = dict.fromkeys(STAGES, (self.settled["partitions"], 0))
        self._loaded = parts.meter.load_seconds

    @property
    def folder(self) -> str:
        return self.run.root

    def finished(self) -> bool:
        return not any(absent for _, absent in self.counts.values())

    def title(self, result: BuildResult | None = None) -> str:
        subjects = counted(len(self.builder.subjects), "subject")
        if result is None:
            return f"{self.run.root}: {subjects}"
        pairs = counted(result.pairs, "pair")
        return f"{self.run.root}: version {result.version}, {subjects}, {pairs}"

    def load_ahead(self) -> None:
        self.builder.parts.load_beside(self.executor.missing_roles())

    def perform(self, steps: Steps, watch: Watch = quiet) -> BuildResult:
        """Stage after stage what is missing, then the version. UserError when nothing at all could
        be built."""
        builder, begun = self.builder, time.perf_counter()
        if self.settled is not None:
            return self._ended(begun, self.settled, new=False)
        with building(builder.store):
            outcomes = self.compute(steps, watch)
            # Those skipped because of one that failed are not told again.
            failures = [
                f"{outcome.stage} of partition {outcome.partition}: {outcome.message}"
                for outcome in outcomes
                if outcome.status == "failed"
            ]
            if failures and not any(builder.finished()):
                raise UserError("every partition failed:\n  " + "\n  ".join(failures[:5]))
            version = steps.step("publish", "publish", self._publish)
        return self._ended(begun, version.manifest, version.new, outcomes, failures)

    def compute(self, steps: Steps, watch: Watch = quiet) -> list[Outcome]:
        """Stage after stage what is missing of the builder's partitions; models of other stages are
        freed on the way."""
        builder = self.builder
        outcomes: list[Outcome] = []
        builder.plan_again()
        if self.executor is builder and builder.missing_roles():
            require_fit("build-dataset", self.run.family)
        try:
            for stage in STAGES:
                chunks = list(self._chunks(stage, watch))
                if chunks and (roles := STAGES[stage].used(builder.parts)):
                    builder.parts.keep_only(roles)
                for title, chunk in chunks:
                    with about(stage=stage):
                        try:
                            made = steps.step("stage", title, chunk)
                        except ChunkFailed as failed:
                            made = failed.outcomes
                        _log(made)
                    outcomes += made
                    if stage == "generate":
                        first_pictures(builder)
        finally:
            self.executor.close()
            builder.parts.keep_only(())
        return outcomes

    def _chunks(
        self, stage: str, watch: Watch
    ) -> Iterator[tuple[str, Callable[[], list[Outcome]]]]:
        """The tasks of a stage, each with its title."""
        chunks = self.executor.chunks(stage)
        done, total = 0, sum(map(len, chunks))
        for number, names in enumerate(chunks, 1):
            yield (
                f"{stage} {number} of {len(chunks)}",
                functools.partial(self.executor.run_chunk, stage, names, watch, done, total),
            )
            done += len(names)

    def _publish(self) -> DatasetVersion:
        """Shards of new pairs and the dataset version."""
        builder = self.builder
        version = builder.publish(self.run.model_dump(mode="json"))
        if version.manifest.get("partitions") == len(builder.partitions):
            note_request(builder.store, version.id, request_digest(builder))
        return version

    def _ended(
        self,
        begun: float,
        manifest: Mapping[str, Any],
        new: bool,
        outcomes: Sequence[Outcome] = (),
        failures: Sequence[str] = (),
    ) -> BuildResult:
        """The result, with its metrics written. `begun`: when the first stage did."""
        shards = [shard["name"] for shard in manifest["shards"] if shard["new"]]
        load_seconds = self.builder.parts.meter.load_seconds - self._loaded
        result = BuildResult(
            root=self.run.root,
            version=manifest["id"],
            new=new,
            pairs=manifest["pairs"]["total"],
            partitions=self.counts["compose"][0],
            new_shards=shards if new else [],
            made=dict(Counter(outcome.stage for outcome in outcomes if outcome.status == "made")),
            failed=list(failures),
            problems=self.problems,
            rejects=dict(manifest.get("rejects", {})),
            notes=tuple(self.builder.notes),
            model_seconds=round(sum(outcome.seconds for outcome in outcomes), 3),
            load_seconds=round(load_seconds, 3),
            start_seconds=round(begun - self.started, 3),
            wall_seconds=round(time.perf_counter() - self.started, 3),
        )
        return record(result, self.run.alert)

    def changed(self, result: BuildResult) -> bool:
        return result.new or bool(result.made or result.failed or result.alerts)

    def exhibits(self, result: BuildResult) -> Iterator[Exhibit]:
        yield Text("dataset", "what this build did", summary(result))
        rows = [
            {"stage": name, "partitions": total, "computed": result.made.get(name, 0)}
            for name, (total, _) in self.counts.items()
        ]
        title = f"{counted(result.pairs, 'pair')} in version {result.version}"
        yield Table("dataset-yield", title, rows)
        if result.rejects:
            whole = sum(result.rejects.values())
            reasons = sorted(result.rejects.items(), key=lambda reason: -reason[1])
            rows = [
                {"rejected because": name, "count": count, "share": round(count / whole, 3)}
                for name, count in reasons
            ]
            yield Table("dataset-rejects", f"rejects of version {result.version}", rows)
        files = self.builder.store.files
        if result.made.get("generate") and files.exists(FIRST):
            yield Picture("dataset-sheet", "first pictures of this build", files.read(FIRST))

    def events(self, result: BuildResult) -> Iterator[Event]:
        resource = f"focusdpo.dataset.{result.version}"
        about_it = {"root": result.root, "version": result.version}
        if result.new:
            yield Event(PUBLISHED, resource, result.root, {**about_it, "pairs": result.pairs})
        for message in result.alerts:
            payload = {**about_it, "message": message}
            yield Event(YIELD_DROPPED, resource, result.root, payload, message)

    def left_out(self, result: BuildResult) -> str:
        count = len(result.failed) + len(result.problems)
        return f"{count} left out, subjects and partitions" if count else ""


def _log(outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        with about(partition=outcome.partition):
            log.info(
                "%s: %s in %.2f s %s",
                outcome.stage,
                outcome.status,
                outcome.seconds,
                outcome.message,
            )


def summary(result: BuildResult) -> str:
    """A build as Markdown: what was computed, what was left out, where it lies."""
    rows = "".join(f"| {stage} | {count} |\n" for stage, count in result.made.items())
    rejects = "".join(f"| {reason} | {count} |\n" for reason, count in result.rejects.items())
    left = "".join(f"- {line}\n" for line in [*result.problems, *result.failed])
    alerts = "".join(f"**{line}**\n\n" for line in result.alerts)
    return (
        f"# Dataset {result.version}\n\n{alerts}"
        f"{counted(result.pairs, 'pair')} in `{result.root}`, "
        f"{counted(result.partitions, 'partition')}; {result.model_seconds:.1f} s of model "
        f"computation, {result.wall_seconds:.1f} s in all.\n\n"
        f"| stage | partitions computed |\n| --- | --- |\n{rows or '| none | 0 |'}\n\n"
        f"| rejected because | count |\n| --- | --- |\n{rejects or '| nothing | 0 |'}\n"
        + (f"\n## Left out\n\n{left}" if left else "")
    )
