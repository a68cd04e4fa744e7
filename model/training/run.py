"""The training run: shards in, an adapter out, resumable to the bit.

Step s draws its pairs, noise and noise levels from (seed, s) alone; weights, optimiser moments and
guards lie in the checkpoint. So a run that was killed and started again takes the very steps that
an undisturbed one takes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.adapter import AdapterCard, remove_policy, save_adapter
from focusdpo.model.backbone import Backbone
from focusdpo.model.focus_report import PairMaps
from focusdpo.model.step import resolve_precision
from focusdpo.model.training.batches import PairData, Progress, Which
from focusdpo.model.training.checkpoint import (
    list_checkpoints,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from focusdpo.model.training.config import TrainConfig, digest
from focusdpo.model.training.folder import (
    Looks,
    TrainResult,
    Validate,
    read_summary,
    result_of,
    write_config,
    write_summary,
)
from focusdpo.model.training.monitor import Monitor
from focusdpo.model.training.parallel import Processes, Sharding, shard_base, sharding_of
from focusdpo.model.training.reference_errors import KnownErrors, ReferenceErrors
from focusdpo.model.training.state import (
    RunState,
    require_not_past,
    require_same,
    resolved_lora,
)
from focusdpo.model.training.steps import Stepper, learning_rate

__all__ = ["Progress", "TrainConfig", "TrainResult", "learning_rate", "train"]

log = logging.getLogger(__name__)


def train(
    backbone: Backbone,
    shards: Sequence[str | Path],
    config: TrainConfig,
    out_dir: Path,
    *,
    split: str = "train",
    only: Which | None = None,
    dataset_version: str = "",
    licences: Sequence[str] = (),
    validate: Validate | None = None,
    reference_errors: ReferenceErrors | None = None,
    progress: Progress | None = None,
    saved: Callable[[], None] | None = None,
) -> TrainResult:
    """Trains an adapter on the pairs of `shards` (`only`: those that count) into `out_dir`.
    `validate` is called where `config.validation` asks for it; `reference_errors` is shared by runs
    of one process that differ in their objective alone; `saved` is called after each checkpoint.

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
    data = PairData(
        backbone,
        shards,
        split=split,
        source=config.source,
        only=only,
        patches=patches,
        focus=config.focus,
    )
    identity = {
        "config": config.identity(),
        "base": backbone.fingerprint,
        "pairs": data.fingerprint(),
    }
    summary = read_summary(out_dir)
    settings = digest(config.model_dump(mode="json"))
    finished = summary and summary["steps"]
    processes.require_agreement({**identity, "settings": settings, "finished steps": finished})
    if summary is not None:
        require_same(summary["identity"], identity, out_dir)
        require_not_past(summary["steps"], config.steps, out_dir)
        if summary["steps"] == config.steps or summary["stopped"]:
            return result_of(out_dir, summary, resumed_from=summary["steps"])
    data.encode(config.cache_mib, progress)
    known = reference_errors or ReferenceErrors(0)
    try:
        run = _Run(
            backbone,
            data,
            config,
            out_dir,
            identity,
            dataset_version,
            tuple(licences),
            validate,
            processes,
            sharding,
            known.of(identity["base"], identity["pairs"], config),
            saved,
        )
        return run.go(progress)
    finally:
        remove_policy(backbone.transformer)
        if config.gradient_checkpointing:
            cast("Any", backbone.transformer).disable_gradient_checkpointing()


class _Run:
    """A run in progress, on one of its processes."""

    def __init__(
        self,
        backbone: Backbone,
        data: PairData,
        config: TrainConfig,
        out_dir: Path,
        identity: dict[str, str],
        dataset_version: str,
        licences: tuple[str, ...],
        validate: Validate | None,
        processes: Processes,
        sharding: Sharding | None,
        known: KnownErrors,
        saved: Callable[[], None] | None,
    ) -> None:
        self._backbone, self._data, self._config, self._out_dir = backbone, data, config, out_dir
        self._identity, self._dataset_version = identity, dataset_version
        self._licences, self._saved = licences, saved
        self._processes = processes
        # A sharded base computes only where all processes do: then all draw maps and look at
        # validation scenes. Else the first does, and the others wait for it at the next step.
        self._paints = processes.is_main or sharding is not None
        if config.gradient_checkpointing:
            cast("Any", backbone.transformer).enable_gradient_checkpointing()
        self._state = RunState(backbone, config)
        self._looks = Looks(config.validation, validate, out_dir, writes=processes.is_main)
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
            shard_base(backbone.transformer, self._state.parameters.values(), sharding)
        self._stepper = Stepper(
            backbone, data, config, self._state, processes, known, good=self._good
        )

    @property
    def _checkpoints(self) -> Path:
        return self._out_dir / "checkpoints"

    def go(self, progress: Progress | None) -> TrainResult:
        """All remaining steps and what a run leaves; one process writes, the others compute."""
        state, out_dir = self._state, self._out_dir
        resumed_from, monitor, maps = state.step, None, None
        if self._processes.is_main:
            write_config(out_dir, self._config)
            monitor = Monitor(out_dir, start=state.step, tensorboard=self._config.tensorboard)
        try:
            if self._paints:
                args = (self._backbone, self._data, self._config)
                maps = PairMaps(*args, out_dir / "focus.safetensors")
                maps.draw("start")
            while self._goes_on():
                self._one_step(monitor, progress)
            state.use_average()
            if self._paints:
                self._looks.use_best(state)
            self._processes.copy_first(list(state.parameters.values()))
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
        if self._state.step >= self._config.steps:
            return False
        if not self._looks.due(self._state.step):
            return not self._looks.stop
        return not self._processes.any(self._looks.stop)

    def _one_step(self, monitor: Monitor | None, progress: Progress | None) -> None:
        state, config = self._state, self._config
        step, table, scalars = self._stepper.take()
        look = self._looks.due(step)
        if look and self._paints:
            self._looks.look(state)
        if monitor is None:
            return
        row = monitor.add(step, table, scalars)
        if look or step % config.save_every == 0 or step == config.steps:
            monitor.flush()
            self._save()
        if step % config.log_every == 0:
            log.info("step %d: loss %.4f", step, row["loss"])
        if progress:
            progress("train", step, config.steps, row)

    def _result(self, resumed_from: int) -> TrainResult:
        """What the first process has written, for each."""
        self._processes.wait()
        summary = read_summary(self._out_dir)
        if summary is None:
            raise UserError(
                f"{self._out_dir}: the first process has finished, and this one does not see its "
                "files. Choose a folder that all machines share"
            )
        return result_of(self._out_dir, summary, resumed_from)

    def _good(self) -> str:
        found = list_checkpoints(self._checkpoints)
        return f"The last good checkpoint is {found[-1]}." if found else "No checkpoint is there."

    def _save(self) -> None:
        meta = {
            "identity": self._identity,
            "guard": self._state.guard.state(),
            "looks": self._looks.rows,
        }
        save_checkpoint(self._checkpoints, self._state.step, self._state.tensors(), meta)
        self._looks.forget_older()
        if self._saved is not None:
            self._saved()

    def _finish(self, monitor: Monitor, maps: PairMaps) -> None:
        """Adapter, focus maps, tables and, last, the summary."""
        config, state, out_dir = self._config, self._state, self._out_dir
        card = AdapterCard(
            lora=resolved_lora(self._backbone, config.lora),
            base_fingerprint=self._identity["base"],
            dataset_version=self._dataset_version,
            objective=config.objective.name,
            step=self._looks.kept_step(state.step),
            train_config=config.model_dump(mode="json"),
            licences=self._licences,
        )
        save_adapter(out_dir / "adapter", self._backbone.transformer, card, state.parameters)
        maps.write()
        write_summary(
            out_dir,
            config,
            monitor.finish(),
            self._identity,
            pairs=len(self._data),
            dataset_version=self._dataset_version,
            device=str(next(self._backbone.transformer.parameters()).device),
            looks=self._looks,
        )
