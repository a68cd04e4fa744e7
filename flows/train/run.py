"""The job train: a dataset version -> an adapter."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from focusdpo.data_schemas.errors import UserError, counted
from focusdpo.data_schemas.pairs import is_mixed
from focusdpo.data_schemas.runs import Watch, quiet
from focusdpo.data_schemas.scenes import stable_hash
from focusdpo.flows.build.worth import training_warnings
from focusdpo.flows.config import TrainRun
from focusdpo.flows.fit.supply import require_fit
from focusdpo.flows.jobs import TRAINED, Event, Exhibit, Job, Steps, Table, Text
from focusdpo.flows.settings import save_config
from focusdpo.flows.train.encode import encoded_folder
from focusdpo.flows.wiring import build_part, free_parts, suite
from focusdpo.model.training import parallel
from focusdpo.pipeline.upkeep.garbage import reading
from focusdpo.store.addresses import is_remote
from focusdpo.store.outputs import Output, holds, opened
from focusdpo.store.provenance import TRAINING_RUN, licence_of, require_own
from focusdpo.store.versions import DatasetVersion, open_version

if TYPE_CHECKING:  # torch is loaded when a run starts
    from focusdpo.model.training.batches import PairData
    from focusdpo.model.training.config import TrainConfig
    from focusdpo.model.training.steps import ReferenceErrors
    from focusdpo.store.samples import Sample

log = logging.getLogger(__name__)


def _licences(run: TrainRun, manifest: Mapping[str, Any]) -> list[str]:
    """Of the base and of the pictures that it learned from."""
    base = f"base: {licence_of(run.family, 'generator')}"
    licences = {
        str(subject.get("licence") or "not stated") for subject in manifest.get("subjects") or []
    }
    return [base, *(f"subjects: {licence}" for licence in sorted(licences))]


@dataclass(frozen=True, kw_only=True)
class TrainOutcome:
    """What a training run left."""

    out: str
    adapter: str
    version: str
    """The dataset version it learned from."""
    objective: str
    steps: int
    pairs: int
    seconds: float
    """Sum of the steps."""
    wall_seconds: float
    resumed_from: int
    final: dict[str, float]
    adapter_step: int
    """The step whose weights the adapter holds."""
    stopped: bool
    """Whether validation ended it before its last step."""
    validation: list[dict[str, float]]
    """A row per look at validation scenes: step and metrics, each less the base's."""

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {"command": "train", **asdict(self)}


def train(
    run: TrainRun,
    watch: Watch = quiet,
    reference_errors: ReferenceErrors | None = None,
    *,
    pairs: int = 0,
) -> TrainOutcome:
    """Train on a version's training split, on `pairs` of the source's pairs (0: all); goes on from
    the newest checkpoint in `out`. Where that is an address, what is new is sent after each
    checkpoint and at the end.

    Where a launcher started several processes, each calls this: they train together, and the first
    one writes and tells. UserError for a damaged shard, an unknown version, a folder of another
    run, processes that do not fit together.
    """
    first, processes = parallel.is_first(), parallel.num_launched()
    with opened(run.out, "training", first=first, processes=processes) as out:
        if not first:  # the first one says for all that they read it
            version = open_version(run.root, run.version)
            return _train(run, version, out, watch, reference_errors, pairs)
        with reading(run.root, run.version, "a training") as version:
            return _train(run, version, out, watch, reference_errors, pairs)


def _train(
    run: TrainRun,
    version: DatasetVersion,
    out: Output,
    watch: Watch,
    reference_errors: ReferenceErrors | None,
    pairs: int,
) -> TrainOutcome:
    started = time.perf_counter()
    require_own(out.folder, out.name, TRAINING_RUN)
    watch = watch if parallel.is_first() else quiet
    if not is_remote(run.root):  # there, each shard is checked when it comes
        version.verify()
    samples = version.samples("train")
    if not samples:
        raise UserError(
            f"{run.root}: version {version.id} has no pair in its training split; build from more "
            "subjects, or lower shard.val_share"
        )
    from focusdpo.model.training.optimisers import require_optimiser
    from focusdpo.model.training.trackers import require_trackers

    require_optimiser(run.train.optimiser)
    require_trackers(run.train.trackers)
    if pairs:
        samples = some(samples, run.train.source, pairs)
    if parallel.is_first():
        for line in training_warnings(version, run.train.steps, run.train.batch_pairs):
            log.warning("%s: %s", run.root, line)
        save_config(run, out.folder / "run.yaml")
    from focusdpo.model.settle import settle
    from focusdpo.model.training import run as training

    parallel.take_place()
    free_parts(run.family, {"backbone"})
    require_fit("train", run.family, run.train)
    backbone = build_part(run.family, "backbone")
    if parallel.num_launched() > 1 and is_remote(run.out):
        # The first one may have fetched what all go on from.
        parallel.meet(next(backbone.transformer.parameters()).device)
    config = _with_looks(run, version)
    validate = None
    if config.validation.every and isinstance(run.family, str):
        from focusdpo.evaluation.validation import Validator, check_metric

        check_metric(config.validation.metric)
        validate = Validator(suite(run.family), config.validation.scenes, watch)
    config = settle(
        backbone,
        functools.partial(_pairs, backbone, samples, config),
        config,
        out.folder,
    )
    result = training.train(
        backbone,
        samples,
        config,
        out.folder,
        dataset_version=version.id,
        licences=_licences(run, version.manifest),
        validate=validate,
        reference_errors=reference_errors,
        progress=watch,
        saved=out.send,
        encoded=encoded_folder(run),
        held_out=version.samples("val"),
    )
    return TrainOutcome(
        out=run.out,
        adapter=out.at("adapter"),
        version=version.id,
        objective=run.train.objective.name,
        steps=result.steps,
        pairs=result.pairs,
        seconds=round(result.seconds, 3),
        wall_seconds=round(time.perf_counter() - started, 3),
        resumed_from=result.resumed_from,
        final=dict(result.final),
        adapter_step=result.adapter_step,
        stopped=result.stopped,
        validation=list(result.validation),
    )


def some(samples: Sequence[Sample], source: str, count: int) -> list[Sample]:
    """`count` of a source's samples that have a better picture, by a hash of their pairs' ids: more
    of them hold fewer of them; and all samples of other sources. UserError where there are not as
    many."""
    wanted = [sample for sample in samples if source in ("both", sample.row.source)]
    eligible = [s for s in wanted if not is_mixed(s.row.source, s.row.mode)]
    if len(eligible) < count:
        raise UserError(
            f"{counted(count, 'pair')} of source '{source}' were asked for, and the training split "
            f"has {len(eligible)}: build from more subjects or scenes, or ask for fewer"
        )
    eligible.sort(key=lambda sample: stable_hash("some", sample.row.pair_id))
    left_out = {s.row.pair_id for s in wanted} - {s.row.pair_id for s in eligible[:count]}
    return [sample for sample in samples if sample.row.pair_id not in left_out]


LOOK_EVERY, PREVIEW_EVERY = 100, 250
"""Steps between looks and between sample pictures with checkpoints, where nothing is said."""


def _with_looks(run: TrainRun, version: DatasetVersion) -> TrainConfig:
    """The training's settings with what null means for this suite and this version. UserError for
    looks at a validation split without pairs, and for a metric that checkpoints do not have."""
    config, pocket = run.train, isinstance(run.family, str)
    looks, previews = config.validation, config.previews
    every, shown = looks.every, previews.every
    if shown is None:
        shown = 0 if pocket else PREVIEW_EVERY
    if every is None:
        every = 0 if pocket or not version.rows_of("val") else LOOK_EVERY
        if not every and (looks.patience or looks.keep == "best"):
            raise UserError(
                "train.validation: patience and keep=best need looks; set train.validation.every"
                + ("" if pocket else ", and build with shard.val_share above 0")
            )
        if not every and not pocket:
            log.warning(
                "%s: version %s has no pair in its validation split, so that no held-out loss is "
                "told while training; build with shard.val_share above 0",
                run.root,
                version.id,
            )
    elif every and not pocket and not version.rows_of("val"):
        raise UserError(
            f"train.validation.every: {run.root}: version {version.id} has no pair in its "
            "validation split; build with shard.val_share above 0, or set it to 0"
        )
    if every and not pocket:
        _check_pair_metric(looks.metric)
    return config.model_copy(
        update={
            "validation": looks.model_copy(update={"every": every}),
            "previews": previews.model_copy(update={"every": shown}),
        }
    )


def _check_pair_metric(name: str) -> None:
    from focusdpo.model.training.held_out_pairs import METRICS

    if name not in METRICS:
        raise UserError(
            f"train.validation.metric '{name}': with checkpoints pairs are measured, not pictures: "
            f"expected {' or '.join(METRICS)}"
        )


def _pairs(backbone: Any, samples: Sequence[Sample], config: TrainConfig) -> PairData:
    """The pairs of a run, as training reads them."""
    from focusdpo.model.training.batches import PairData

    patches = config.objective.patch if config.objective.definition.quality else None
    return PairData(
        backbone,
        samples,
        source=config.source,
        mixed=config.objective.definition.instances,
        patches=patches,
        focus=config.focus,
    )


class Train(Job[TrainRun, TrainOutcome]):
    """A dataset version -> an adapter in `run.out`.

    One step: training has checkpoints of its own, and another try goes on from the newest.
    """

    name = "train"
    config = TrainRun

    @property
    def folder(self) -> str:
        return self.run.out

    def require_inputs(self) -> None:
        open_version(self.run.root, self.run.version)

    def finished(self) -> bool:
        return holds(self.run.out, "run.json")

    def title(self, result: TrainOutcome | None = None) -> str:
        objective = self.run.train.objective.name
        if result is None:
            return f"{objective} on {self.run.root} version {self.run.version}: {self.run.out}"
        steps = counted(result.steps, "step")
        return f"{objective} on version {result.version}, {steps}: {result.out}"

    def perform(self, steps: Steps, watch: Watch = quiet) -> TrainOutcome:
        return steps.step(
            "train-adapter", "train-adapter", functools.partial(train, self.run, watch)
        )

    def changed(self, result: TrainOutcome) -> bool:
        return result.resumed_from < result.steps

    def exhibits(self, result: TrainOutcome) -> Iterator[Exhibit]:
        yield Text("adapter", "what was trained", summary(result))
        if result.validation:
            yield Table("adapter-validation", "looks while training", result.validation)

    def events(self, result: TrainOutcome) -> Iterator[Event]:
        payload = {"adapter": result.adapter, "out": result.out, "version": result.version}
        yield Event(TRAINED, f"focusdpo.adapter.{result.version}", result.adapter, payload)


def summary(outcome: TrainOutcome) -> str:
    """A training as Markdown."""
    rows = "".join(f"| {name} | {value:.4g} |\n" for name, value in outcome.final.items())
    return (
        f"# Adapter from dataset {outcome.version}\n\n{outcome.objective}, "
        f"{counted(outcome.steps, 'step')} on {counted(outcome.pairs, 'pair')} in "
        f"{outcome.seconds:.0f} s: `{outcome.adapter}`\n\n"
        f"| figure | last |\n| --- | --- |\n{rows}"
    )
