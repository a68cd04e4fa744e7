"""The training run: shards in, an adapter out, resumable to the bit.

Step s draws its pairs, noise and noise levels from (seed, s) alone; weights, optimiser moments and
guards lie in the checkpoint. So a run that was killed and started again takes the very steps that
an undisturbed one takes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.adapter import AdapterCard, remove_policy, save_adapter
from focusdpo.model.backbone import Backbone
from focusdpo.model.batches import PairBatch, PairData, Progress, Which
from focusdpo.model.checkpoint import list_checkpoints, newest_checkpoint, save_checkpoint
from focusdpo.model.configs import TrainConfig
from focusdpo.model.focus_report import PairMaps
from focusdpo.model.looks import Looks, Validate
from focusdpo.model.monitor import Monitor, Table, mean_present, observe
from focusdpo.model.noise import draw_noise
from focusdpo.model.reference_errors import ReferenceErrors
from focusdpo.model.run_folder import (
    TrainResult,
    read_summary,
    result_of,
    write_config,
    write_summary,
)
from focusdpo.model.run_state import RunState, require_not_past, require_same, resolved_lora
from focusdpo.model.schedule import Schedule, learning_rate
from focusdpo.model.step import autocast, pair_step, resolve_precision

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
    validate: Validate | None = None,
    reference_errors: ReferenceErrors | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Trains an adapter on the pairs of `shards` (`only`: those that count) into `out_dir`.
    `validate` is called where `config.validation` asks for it; `reference_errors` is shared by runs
    of one process that differ in their objective alone.

    Started again with the same settings it goes on from the newest checkpoint, or returns at once
    when it is done. The backbone is left without an adapter. UserError for damaged shards or
    checkpoints, a folder that holds another run, a full disk, a loss that is not finite."""
    out_dir = Path(out_dir)
    remove_policy(backbone.transformer)
    device = next(backbone.transformer.parameters()).device
    precision = resolve_precision(device, config.mixed_precision)
    config = config.model_copy(update={"mixed_precision": precision})
    objective = config.objective
    patches = objective.patch if objective.name == "patch_dpo" else None
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
    if summary is not None:
        require_same(summary["identity"], identity, out_dir)
        require_not_past(summary["steps"], config.steps, out_dir)
        if summary["steps"] == config.steps or summary["stopped"]:
            return result_of(out_dir, summary, resumed_from=summary["steps"])
    data.encode(config.cache_mib, progress)
    try:
        run = _Run(backbone, data, config, out_dir, identity, dataset_version, validate)
        if reference_errors is not None:
            run.known = reference_errors.of(identity["base"], identity["pairs"], config)
        return run.go(progress)
    finally:
        remove_policy(backbone.transformer)
        if config.gradient_checkpointing:
            cast("Any", backbone.transformer).disable_gradient_checkpointing()


class _Run:
    """A run in progress."""

    def __init__(
        self,
        backbone: Backbone,
        data: PairData,
        config: TrainConfig,
        out_dir: Path,
        identity: dict[str, str],
        dataset_version: str,
        validate: Validate | None,
    ) -> None:
        from accelerate import Accelerator

        self._backbone, self._data, self._config, self._out_dir = backbone, data, config, out_dir
        self._identity = identity
        self._dataset_version = dataset_version
        self._device = next(backbone.transformer.parameters()).device
        self._accelerator = Accelerator(cpu=self._device.type == "cpu")
        if config.batch_pairs % self._accelerator.num_processes:
            raise UserError(
                f"train.batch_pairs {config.batch_pairs} must be a multiple of the number of "
                f"processes, {self._accelerator.num_processes}"
            )
        self._schedule = Schedule(data.groups(), config.batch_pairs, config.seed)
        if config.gradient_checkpointing:
            cast("Any", backbone.transformer).enable_gradient_checkpointing()
        self._state = RunState(backbone, config)
        self._looks = Looks(config.validation, validate, out_dir)
        self.known = ReferenceErrors(0).of("", "", config)
        saved = newest_checkpoint(self._checkpoints)
        if saved is not None:
            require_same(saved.meta.get("identity", {}), self._identity, out_dir)
            require_not_past(saved.step, config.steps, out_dir)
            self._state.restore(saved)
            self._looks.restore(saved.meta["looks"])
            log.info("going on from step %d of %d", saved.step, config.steps)

    @property
    def _checkpoints(self) -> Path:
        return self._out_dir / "checkpoints"

    def go(self, progress: Progress | None) -> TrainResult:
        """All remaining steps and what a run leaves; one process writes, the others compute."""
        resumed_from = self._state.step
        if self._accelerator.is_main_process:
            self._lead(progress)
        else:
            while self._goes_on():
                self._one_step()
        self._accelerator.wait_for_everyone()
        summary = read_summary(self._out_dir)
        assert summary is not None
        return result_of(self._out_dir, summary, resumed_from)

    def _lead(self, progress: Progress | None) -> None:
        state, config, out_dir = self._state, self._config, self._out_dir
        write_config(out_dir, config)
        maps = PairMaps(self._backbone, self._data, config, out_dir / "focus.safetensors")
        maps.draw("start")
        monitor = Monitor(out_dir, start=state.step, tensorboard=config.tensorboard)
        try:
            while self._goes_on():
                row = monitor.add(*self._one_step())
                look = self._looks.due(state.step)
                if look:
                    self._looks.look(state)
                if look or state.step % config.save_every == 0 or state.step == config.steps:
                    monitor.flush()
                    self._save()
                if state.step % config.log_every == 0:
                    log.info("step %d: loss %.4f", state.step, row["loss"])
                if progress:
                    progress("train", state.step, config.steps, row)
            state.use_average()
            self._looks.use_best(state)
            maps.draw("end")
            self._finish(monitor, maps)
        finally:
            monitor.close()

    def _goes_on(self) -> bool:
        """Whether there is a step to take; every process gets the same answer."""
        step = self._state.step
        if step >= self._config.steps:
            return False
        stop = torch.tensor(float(self._looks.stop), device=self._device)
        if self._accelerator.num_processes > 1 and self._looks.due(step):
            stop = cast("torch.Tensor", self._accelerator.reduce(stop, "sum"))
        return not stop.item()

    def _one_step(self) -> tuple[int, Table, dict[str, float]]:
        started = time.perf_counter()
        state, config = self._state, self._config
        state.optimizer.zero_grad(set_to_none=True)
        loss, table, num_subjects = self._backward()
        self._average_gradients()
        parameters = state.parameters.values()
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.grad_clip).item()
        rate = learning_rate(state.step, config)
        step = state.step + 1
        state.guard.check_finite(step, loss, norm, self._good())
        skipped = state.guard.is_spike(step, norm)
        if not skipped:
            state.update(rate)
        state.step = step
        gap, error = (mean_present(table[name]) for name in ("win_gap", "win_error"))
        state.guard.watch_winner(step, gap, error)
        state.guard.watch_saturation(step, mean_present(table["pair_gradient"]))
        scalars = {
            "loss": loss,
            "grad_norm": norm,
            "lr": rate,
            "num_subjects": float(num_subjects),
            "skipped": float(skipped),
            "seconds": time.perf_counter() - started,
        }
        return step, table, scalars

    def _backward(self) -> tuple[float, Table, int]:
        """Gradients of this process's share of the step, in micro-batches."""
        items = self._schedule.items(self._state.step)
        local = self._config.batch_pairs // self._accelerator.num_processes
        first = self._accelerator.process_index * local
        micro = min(self._config.micro_pairs or local, local)
        loss, tables, num_subjects = 0.0, [], 0
        for start in range(first, first + local, micro):
            slots = range(start, min(start + micro, first + local))
            batch = self._data.batch([items[slot] for slot in slots])
            value, table = self._micro(slots, batch, len(slots) / local)
            loss += value
            tables.append(table)
            num_subjects = batch.priors.subjects_BRN.shape[1]
        return loss, _concatenate(tables), num_subjects

    def _micro(self, slots: range, batch: PairBatch, share: float) -> tuple[float, Table]:
        config = self._config
        noise_BNC, sigma_B = draw_noise(
            (batch.win_BNC.shape[1], batch.win_BNC.shape[2]),
            slots,
            seed=config.seed,
            step=self._state.step,
            config=config.noise,
            slots_in_step=config.batch_pairs,
        )
        output = pair_step(
            self._backbone,
            batch,
            noise_BNC.to(self._device),
            sigma_B.to(self._device),
            config,
            autocast(self._device, config.mixed_precision),
            self.known.get((self._state.step, slots.start)),
        )
        self.known.put((self._state.step, slots.start), output.ref_error_BN)
        value = output.loss.value * share
        self._accelerator.backward(value)
        return value.item(), observe(output, batch, config.focus)

    def _average_gradients(self) -> None:
        """Over processes. The adapter is small: one reduction does without a wrapper around the
        backbone, which would not understand forward passes with and without the LoRA."""
        if self._accelerator.num_processes > 1:
            for parameter in self._state.parameters.values():
                parameter.grad = self._accelerator.reduce(parameter.grad, "mean")

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
            device=str(self._device),
            looks=self._looks,
        )


def _concatenate(tables: Sequence[Table]) -> Table:
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
