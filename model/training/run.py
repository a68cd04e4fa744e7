"""The training run: samples in, an adapter out, resumable to the bit.

Step s draws its pairs, noise and noise levels from (seed, s) alone; weights, optimiser moments and
guards lie in the checkpoint. So a run that was killed and started again takes the very steps that
an undisturbed one takes.
"""

from __future__ import annotations

import json
import logging
import math
import platform
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.adapter import CARD, WEIGHTS, AdapterCard, remove_policy, save_adapter
from focusdpo.model.backbone import Backbone
from focusdpo.model.compiled import release_blocks
from focusdpo.model.focus_levels import PairMaps, spread
from focusdpo.model.step import resolve_precision
from focusdpo.model.training.batches import PairData, Progress
from focusdpo.model.training.checkpoint import (
    list_checkpoints,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from focusdpo.model.training.config import TrainConfig, digest
from focusdpo.model.training.encoded import EncodedFolder, Encodings
from focusdpo.model.training.held_out_pairs import HeldOutPairs
from focusdpo.model.training.monitor import Monitor, mean_present
from focusdpo.model.training.parallel import Processes, Sharding, shard_base, sharding_of
from focusdpo.model.training.previews import Previews
from focusdpo.model.training.run_state import (
    Looks,
    RunState,
    Validate,
    require_not_past,
    require_same,
    resolved_lora,
)
from focusdpo.model.training.steps import KnownErrors, ReferenceErrors, Stepper
from focusdpo.model.training.trackers import Trackers
from focusdpo.store.keys import BESIDE, digests_in, require_whole, sealed, unsealed
from focusdpo.store.local import make_folder, write_whole
from focusdpo.store.samples import Sample

log = logging.getLogger(__name__)


def train(
    backbone: Backbone,
    samples: Sequence[Sample],
    config: TrainConfig,
    out_dir: Path,
    *,
    dataset_version: str = "",
    licences: Sequence[str] = (),
    validate: Validate | None = None,
    reference_errors: ReferenceErrors | None = None,
    progress: Progress | None = None,
    saved: Callable[[], None] | None = None,
    encoded: Path | None = None,
    held_out: Sequence[Sample] = (),
) -> TrainResult:
    """Trains an adapter on pairs of a dataset version into `out_dir`.
    `validate` is called where `config.validation` asks for it; `reference_errors` is shared by runs
    of one process that differ in their objective alone; `saved` is called after each checkpoint;
    `encoded` is the folder that keeps what encoders make, shared by runs; `held_out` are pairs that
    are looked at and not trained on.

    Started again with the same settings it goes on from the newest checkpoint, or returns at once
    when it is done. The backbone is left without an adapter; one that `config.shard` shared out
    stays so. Where a launcher started several processes, each calls this with the same arguments;
    the first one writes. UserError for damaged shards or checkpoints, a folder that holds another
    run, a full disk, a loss that is not finite, processes that do not fit together."""
    out_dir = Path(out_dir)
    remove_policy(backbone.transformer)
    device = next(backbone.transformer.parameters()).device
    sharding, processes = sharding_of(config.shard), Processes(device)
    processes.share_of(config.batch_pairs)
    precision = resolve_precision(device, config.mixed_precision)
    config = config.model_copy(update={"mixed_precision": precision})
    objective = config.objective
    patches = objective.patch if objective.definition.quality else None
    encodings = encodings_of(backbone, config, encoded)
    kind: dict[str, Any] = {
        "source": config.source,
        "mixed": objective.definition.instances,
        "patches": patches,
        "focus": config.focus,
        "encodings": encodings,
    }
    data = PairData(backbone, samples, **kind)
    kept = None
    if config.kl.weight:
        wanted: dict[str, Any] = {"source": config.kl.source, "setting": "train.kl.source"}
        kept = PairData(backbone, samples, **wanted, encodings=encodings)
    identity = {
        "config": config.identity(),
        "base": backbone.fingerprint,
        "pairs": digest([data.fingerprint(), kept.fingerprint()]) if kept else data.fingerprint(),
    }
    summary = read_summary(out_dir)
    settings = digest(config.model_dump(mode="json"))
    finished = summary and summary["steps"]
    processes.require_agreement({**identity, "settings": settings, "finished steps": finished})
    if summary is not None:
        require_same(summary["identity"], identity, out_dir)
        require_not_past(summary["steps"], config.steps, out_dir)
        if summary["steps"] == config.steps or summary["stopped"]:
            again = f"remove {out_dir / SUMMARY} and run the same command again: it writes it anew"
            require_whole(out_dir, summary, again)
            return result_of(out_dir, summary, resumed_from=summary["steps"])
    looked_at = _chosen(held_out, config.validation.pairs, config.source)
    unseen = None
    if config.validation.every and looked_at:
        unseen = PairData(backbone, looked_at, **kind)
    for pair_data in filter(None, (data, kept, unseen)):
        _encode(pair_data, processes, shared=encoded is not None, progress=progress)
    known = reference_errors or ReferenceErrors(0)
    try:
        run = _Run(
            backbone=backbone,
            data=data,
            config=config,
            out_dir=out_dir,
            identity=identity,
            dataset_version=dataset_version,
            licences=tuple(licences),
            processes=processes,
            known=known.of(identity["base"], identity["pairs"], config),
            saved=saved,
            scenes=_chosen(held_out or samples, config.previews.scenes),
            unseen=unseen,
            kept=kept,
        )
        with encodings.in_place():
            run.prepare(validate, sharding)
            return run.go(progress)
    finally:
        if config.compile:
            release_blocks(backbone.transformer)
        remove_policy(backbone.transformer)
        if config.gradient_checkpointing:
            cast("Any", backbone.transformer).disable_gradient_checkpointing()


def _chosen(samples: Sequence[Sample], count: int, source: str = "both") -> list[Sample]:
    """So many of them, as evenly as may be over their numbers of subjects, always the same ones."""
    groups: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        if source in ("both", sample.row.source):
            groups[sample.row.num_subjects].append(sample)
    return spread(groups, count)


def encodings_of(backbone: Backbone, config: TrainConfig, folder: Path | None) -> Encodings:
    """What is known of a backbone's encodings, in main memory and in `folder`."""
    disk = None
    if folder is not None:
        limit = int(config.encoded.gib * 2**30)
        disk = EncodedFolder(folder, digest(backbone.fingerprint), limit)
    return Encodings(backbone, config.cache_mib * 2**20, disk)


def _encode(
    data: PairData, processes: Processes, *, shared: bool, progress: Progress | None
) -> None:
    """All pairs; with a folder that processes share each encodes its part first, and then what it
    does not find there."""
    if shared and processes.num > 1:
        data.encode(progress, slice(processes.index, None, processes.num))
        processes.wait()
    data.encode(progress)
    data.measure(progress)


@dataclass(kw_only=True)
class _Run:
    """A run in progress, on one of its processes."""

    backbone: Backbone
    data: PairData
    config: TrainConfig
    out_dir: Path
    identity: dict[str, str]
    dataset_version: str
    licences: tuple[str, ...]
    processes: Processes
    known: KnownErrors
    saved: Callable[[], None] | None
    scenes: Sequence[Sample]
    """Of which sample pictures are painted."""
    unseen: PairData | None
    kept: PairData | None
    """Of whose winners the KL term is."""

    def prepare(self, validate: Validate | None, sharding: Sharding | None) -> None:
        """Policy, optimiser and looks as the newest checkpoint has them, else fresh."""
        backbone, config, processes = self.backbone, self.config, self.processes
        identity, out_dir = self.identity, self.out_dir
        # A sharded base computes only where all processes do: then all draw maps and look at
        # validation scenes. Else the first does, and the others wait for it at the next step.
        self._paints = processes.is_main or sharding is not None
        if config.gradient_checkpointing:
            cast("Any", backbone.transformer).enable_gradient_checkpointing()
        self._state = RunState(backbone, config)
        self._looks = Looks(
            config.validation, self._measures(validate), out_dir, writes=processes.is_main
        )
        shown = [scene.read() for scene in self.scenes] if config.previews.every else []
        self._previews = Previews(
            backbone, shown, config.previews, out_dir, writes=processes.is_main
        )
        newest = newest_checkpoint(self._checkpoints)
        if newest is not None:
            require_same(newest.meta.get("identity", {}), identity, out_dir)
            require_not_past(newest.step, config.steps, out_dir)
            self._state.restore(newest)
            self._looks.restore(newest.meta["looks"])
            log.info("going on from step %d of %d", newest.step, config.steps)
        processes.require_agreement({"newest checkpoint": self._state.step})
        if processes.is_main:
            prune_checkpoints(self._checkpoints)
        if sharding is not None:
            if config.lora.kind == "dora":
                raise UserError(
                    "lora.kind dora measures the base's rows, of which each process has a share "
                    "here; set train.shard to none, or lora.kind to lora"
                )
            shard_base(backbone.transformer, self._state.parameters.values(), sharding)
        self._stepper = Stepper(
            backbone,
            self.data,
            config,
            self._state,
            processes,
            self.known,
            good=self._good,
            kept=self.kept,
        )
        if config.compile:
            self._stepper.compile()

    def _measures(self, validate: Validate | None) -> Validate | None:
        """`validate`, and the loss of unseen pairs where there are any."""
        if self.unseen is None:
            return validate
        pairs = HeldOutPairs(self.backbone, self.unseen, self.config)
        return pairs if validate is None else lambda: {**pairs(), **validate()}

    @property
    def _checkpoints(self) -> Path:
        return self.out_dir / "checkpoints"

    def go(self, progress: Progress | None) -> TrainResult:
        """All remaining steps and what a run leaves; one process writes, the others compute."""
        state, out_dir = self._state, self.out_dir
        resumed_from, monitor, maps = state.step, None, None
        if self.processes.is_main:
            make_folder(out_dir)
            text = json.dumps(self.config.model_dump(mode="json"), indent=2)
            write_whole(out_dir / "config.json", text.encode())
            trackers = None
            if self.config.trackers:
                settings = self.config.model_dump(mode="json")
                names, project = self.config.trackers, self.config.tracker_project
                trackers = Trackers(names, out_dir, project, settings)
            monitor = Monitor(
                out_dir,
                start=state.step,
                tensorboard=self.config.tensorboard,
                trackers=trackers,
            )
        try:
            if self._paints:
                args = (self.backbone, self.data, self.config)
                maps = PairMaps(*args, out_dir / "focus.safetensors")
                maps.draw("start")
            with self._stepper:
                while self._goes_on():
                    self._one_step(monitor, progress)
            state.use_average()
            if self._paints:
                self._looks.use_best(state)
            self.processes.copy_first(list(state.parameters.values()))
            if maps is not None:
                maps.draw("end")
                if monitor is not None:
                    self._finish(monitor, maps)
        finally:
            if monitor is not None:
                monitor.close()
        return self._result(resumed_from)

    def _goes_on(self) -> bool:
        """Whether there is a step to take; every process gets the same answer."""
        if self._state.step >= self.config.steps:
            return False
        if not self._looks.due(self._state.step):
            return not self._looks.stop
        return not self.processes.any(self._looks.stop)

    def _one_step(self, monitor: Monitor | None, progress: Progress | None) -> None:
        state, config = self._state, self.config
        step, table, scalars = self._stepper.take()
        look = self._looks.due(step)
        if look and self._paints:
            self._looks.look(state)
        sheet = None
        if self._paints and self._previews.due(step, config.steps):
            sheet = self._previews.paint(state)
        if monitor is None:
            return
        row = monitor.add(step, table, scalars)
        if look:
            monitor.add_look(self._looks.rows[-1])
        if sheet is not None:
            monitor.add_sheet(step, sheet)
        if look or step % config.save_every == 0 or step == config.steps:
            monitor.flush()
            self._save()
        if step % config.log_every == 0:
            log.info("step %d: loss %.4f", step, row["loss"])
        if progress:
            progress("train", step, config.steps, row)

    def _result(self, resumed_from: int) -> TrainResult:
        """What the first process has written, for each."""
        self.processes.wait()
        summary = read_summary(self.out_dir)
        if summary is None:
            raise UserError(
                f"{self.out_dir}: the first process has finished, and this one does not see its "
                "files. Choose a folder that all machines share"
            )
        return result_of(self.out_dir, summary, resumed_from)

    def _good(self) -> str:
        checkpoints = list_checkpoints(self._checkpoints)
        return (
            f"The last good checkpoint is {checkpoints[-1]}."
            if checkpoints
            else "No checkpoint is there."
        )

    def _save(self) -> None:
        meta = {
            "identity": self.identity,
            "guard": self._state.guard.state,
            "looks": self._looks.rows,
        }
        if numbers := self._state.numbers():
            meta["optimiser"] = numbers
        save_checkpoint(self._checkpoints, self._state.step, self._state.tensors(), meta)
        self._looks.forget_older()
        if self.saved is not None:
            self.saved()

    def _finish(self, monitor: Monitor, maps: PairMaps) -> None:
        """Adapter, focus maps, tables and, last, the summary."""
        config, state, out_dir = self.config, self._state, self.out_dir
        card = AdapterCard(
            lora=resolved_lora(self.backbone, config.lora),
            base_fingerprint=self.identity["base"],
            dataset_version=self.dataset_version,
            objective=config.objective.name,
            step=self._looks.kept_step(state.step),
            train_config=config.model_dump(mode="json"),
            licences=self.licences,
        )
        save_adapter(out_dir / "adapter", self.backbone.transformer, card, state.parameters)
        maps.write()
        self._write_summary(monitor.finish())

    def _write_summary(self, rows: Sequence[dict[str, Any]]) -> None:
        """run.json, the last file: its presence means that the run is whole."""
        config, looks = self.config, self._looks
        tail = rows[-max(1, len(rows) // 10) :]
        means = {n: mean_present(np.array([row[n] for row in tail], float)) for n in rows[0]}
        summary = {
            "steps": len(rows),
            "seconds": sum(row["seconds"] for row in rows),
            "pairs": len(self.data),
            "dataset_version": self.dataset_version,
            "identity": self.identity,
            "objective": config.objective.name,
            "seed": config.seed,
            "stopped": looks.stop,
            "adapter_step": looks.kept_step(len(rows)),
            "validation": looks.rows,
            "final": {k: v for k, v in means.items() if k != "step" and math.isfinite(v)},
            "machine": {
                "device": str(next(self.backbone.transformer.parameters()).device),
                "processor": platform.machine(),
                "threads": torch.get_num_threads(),
            },
            "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        }
        summary[BESIDE] = digests_in(self.out_dir, LEFT)
        write_whole(self.out_dir / SUMMARY, sealed(summary))


SUMMARY = "run.json"
LEFT = (
    *("config.json", "steps.parquet", "buckets.parquet", "focus.safetensors"),
    *(f"adapter/{name}" for name in (CARD, WEIGHTS)),
)
"""What the summary tells digests of."""


@dataclass(frozen=True)
class TrainResult:
    """A finished run."""

    adapter: Path
    steps: int
    seconds: float
    """Sum of the steps' times, over all the times it was started."""
    pairs: int
    resumed_from: int
    """The step it went on from; 0 for a fresh start."""
    final: dict[str, float]
    """Means of the diagnostics over the last tenth of the steps."""
    adapter_step: int
    """The step whose weights the adapter holds."""
    stopped: bool
    """Whether validation ended it before its last step."""
    validation: list[dict[str, float]]
    """A row per look: step and metrics."""


def read_summary(out_dir: Path) -> dict[str, Any] | None:
    """run.json, or None if the run is not finished. UserError if it is damaged."""
    path = out_dir / SUMMARY
    if not path.is_file():
        return None
    try:
        summary = unsealed(path.read_bytes())
        summary["identity"]["config"], summary["steps"], summary["final"], summary["stopped"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}). Remove {path} and run the same command again: training "
            "goes on from the last checkpoint."
        ) from error
    return dict(summary)


def result_of(out_dir: Path, summary: dict[str, Any], resumed_from: int) -> TrainResult:
    """The summary as a record."""
    names = ("steps", "seconds", "pairs", "final", "adapter_step", "stopped", "validation")
    fields = {name: summary[name] for name in names}
    return TrainResult(adapter=out_dir / "adapter", resumed_from=resumed_from, **fields)
