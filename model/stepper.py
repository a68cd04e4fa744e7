"""The steps of a run: every process takes its share of the pairs, all take the same step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from focusdpo.model.backbone import Backbone
from focusdpo.model.batches import PairBatch, PairData
from focusdpo.model.configs import TrainConfig
from focusdpo.model.monitor import Table, mean_present, observe
from focusdpo.model.noise import draw_noise
from focusdpo.model.parallel import Processes
from focusdpo.model.reference_errors import KnownErrors
from focusdpo.model.run_state import RunState
from focusdpo.model.schedule import Schedule, learning_rate
from focusdpo.model.step import autocast
from focusdpo.model.two_pass import backward_step


class Stepper:
    """Takes optimiser steps. UserError where the processes do not divide a step's pairs."""

    def __init__(
        self,
        backbone: Backbone,
        data: PairData,
        config: TrainConfig,
        state: RunState,
        processes: Processes,
        known: KnownErrors,
        good: Callable[[], str],
    ) -> None:
        """`good` says what is safe when a loss is not finite."""
        self._backbone, self._data, self._config = backbone, data, config
        self._state, self._processes, self._known, self._good = state, processes, known, good
        self._device = next(backbone.transformer.parameters()).device
        self._slots = processes.share_of(config.batch_pairs)
        self._schedule = Schedule(data.groups(), config.batch_pairs, config.seed)

    def take(self) -> tuple[int, Table, dict[str, float]]:
        """One step: its number, a row per pair of all processes, and figures of the whole."""
        started = time.perf_counter()
        state, config = self._state, self._config
        state.optimizer.zero_grad(set_to_none=True)
        loss, table, num_subjects = self._backward()
        loss, table = self._processes.mean(loss), self._processes.rows(table)
        parameters = list(state.parameters.values())
        self._processes.average([p.grad for p in parameters if p.grad is not None])
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
        local = len(self._slots)
        micro = min(self._config.micro_pairs or local, local)
        loss, tables, num_subjects = 0.0, [], 0
        for start in range(0, local, micro):
            slots = self._slots[start : start + micro]
            batch = self._data.batch([items[slot] for slot in slots])
            value, table = self._micro(slots, batch, len(slots) / local)
            loss += value
            tables.append(table)
            num_subjects = batch.priors.subjects_BRN.shape[1]
        return loss, _concatenate(tables), num_subjects

    def _micro(self, slots: range, batch: PairBatch, share: float) -> tuple[float, Table]:
        config, place = self._config, (self._state.step, slots.start)
        noise_BNC, sigma_B = draw_noise(
            (batch.win_BNC.shape[1], batch.win_BNC.shape[2]),
            slots,
            seed=config.seed,
            step=self._state.step,
            config=config.noise,
            slots_in_step=config.batch_pairs,
        )
        output = backward_step(
            self._backbone,
            batch,
            noise_BNC.to(self._device),
            sigma_B.to(self._device),
            config,
            autocast(self._device, config.mixed_precision),
            self._known.get(place),
            share=share,
        )
        self._known.put(place, output.ref_error_BN)
        return (output.loss.value * share).item(), observe(output, batch, config.focus)


def _concatenate(tables: Sequence[Table]) -> Table:
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
