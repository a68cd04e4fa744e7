"""The steps of a run: schedule, one pass or two, every process its share, all the same step.

The loss is a function of the errors e (2B, N) alone: weights, maps, the safeguard's scale and the
reference policy's errors carry no gradient. So dL/dtheta = sum over branches of (dL/de)(de/dtheta),
and dL/de needs the values of both branches' errors, not their graphs. In turn: the reference policy
on either branch; the loser without gradients; the winner with them; dL/de; the winner's backward;
the loser again, with gradients, and its backward. The gradient is the joint one, not an estimate.

One graph of B images lives at a time instead of one of 2B. The price is one more forward pass of B
images: by passes (a backward counts as two), 9 instead of 8, with gradient checkpointing 11 instead
of 10. Shapes: B pairs, 2B images (winners, then losers), N target tokens, C channels.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from focusdpo.data_schemas.scenes import stable_hash
from focusdpo.model.adapter import reference_policy
from focusdpo.model.backbone import Backbone, FeatureConfig, Prediction
from focusdpo.model.compiled import compile_blocks
from focusdpo.model.noise import draw_noise
from focusdpo.model.objectives import Loss, token_error
from focusdpo.model.step import (
    Autocast,
    Passes,
    StepOutput,
    autocast,
    features,
    judge,
    kl_step,
    needs_reference,
    pair_step,
    tensor_cores,
)
from focusdpo.model.training.ahead import read_ahead
from focusdpo.model.training.batches import PairBatch, PairData
from focusdpo.model.training.config import TrainConfig, digest
from focusdpo.model.training.monitor import Table, mean_present, observe
from focusdpo.model.training.parallel import Processes
from focusdpo.model.training.run_state import RunState


class Schedule:
    """Which items make up step s: a function of (seed, s).

    Items come in groups that cannot share a batch. Each step takes the group that is furthest
    behind its share; within a group every item comes once before any comes again."""

    def __init__(self, groups: Sequence[Sequence[int]], batch: int, seed: int) -> None:
        self._groups = [list(group) for group in groups if group]
        self._batch = batch
        self._seed = seed
        self._taken = [0] * len(self._groups)
        self._next = 0

    def items(self, step: int) -> list[int]:
        """The items of `step` (from 0); any order of calls gives the same."""
        if step < self._next:
            self._taken, self._next = [0] * len(self._groups), 0
        chosen = 0
        while self._next <= step:
            chosen = self._furthest_behind()
            self._taken[chosen] += 1
            self._next += 1
        start = (self._taken[chosen] - 1) * self._batch
        return [self._item(chosen, start + i) for i in range(self._batch)]

    def _furthest_behind(self) -> int:
        sizes = [len(group) for group in self._groups]
        due = [
            size * (self._next + 1) - taken * sum(sizes)
            for size, taken in zip(sizes, self._taken, strict=True)
        ]
        return due.index(max(due))

    def _item(self, group: int, position: int) -> int:
        members = self._groups[group]
        epoch, place = divmod(position, len(members))
        order = list(members)
        random.Random(stable_hash("order", self._seed, group, epoch)).shuffle(order)
        return order[place]


def learning_rate(step: int, config: TrainConfig) -> float:
    """At `step` (from 0): linear warm-up, then as scheduled."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    left = (config.steps - step) / max(1, config.steps - config.warmup)
    if config.schedule == "linear":
        return config.lr * left
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 - math.cos(math.pi * left))
    return config.lr


def backward_step(
    backbone: Backbone,
    batch: PairBatch,
    noise_BNC: Tensor,
    sigma_B: Tensor,
    config: TrainConfig,
    cast: Autocast = nullcontext,
    ref_error_BN: Tensor | None = None,
    *,
    share: float = 1.0,
) -> StepOutput:
    """`pair_step`, and `share` times its gradient added to the parameters' `.grad`, in the manner
    of `config.memory`. The output's loss carries no gradient any more."""
    inputs = (backbone, batch, noise_BNC, sigma_B, config, cast, ref_error_BN)
    if config.memory == "sequential" and config.objective.definition.losers:
        return _sequential(*inputs, share)
    output = pair_step(*inputs)
    with tensor_cores(noise_BNC.device, config.tf32):
        (output.loss.value * share).backward()
    return _without_gradient(output)


def _without_gradient(output: StepOutput) -> StepOutput:
    return replace(output, loss=Loss(output.loss.value.detach(), output.loss.logit_B))


def _sequential(
    backbone: Backbone,
    batch: PairBatch,
    noise_BNC: Tensor,
    sigma_B: Tensor,
    config: TrainConfig,
    cast: Autocast,
    ref_error_BN: Tensor | None,
    share: float,
) -> StepOutput:
    win, lose = (
        _Branch(backbone, batch, clean_BNC, noise_BNC, sigma_B, cast)
        for clean_BNC in (batch.win_BNC, batch.lose_BNC)
    )
    target_BNC = torch.cat([win.target_BNC, lose.target_BNC])
    capture = {config.focus.features_from: features(config)}
    reference: Prediction | None = None
    if needs_reference(config, ref_error_BN):
        with torch.no_grad(), reference_policy(backbone.transformer):
            asked = capture.get("reference")
            reference = _joined(win.predict(asked), lose.predict(asked))
        ref_error_BN = token_error(reference.output_BNC, target_BNC)
    asked = capture.get("policy")
    with torch.no_grad():
        ahead = lose.predict(asked)
    kept = win.predict(asked)
    policy = _joined(kept, ahead)
    passes = Passes(policy, reference, target_BNC, ref_error_BN)
    error_BN = token_error(policy.output_BNC, target_BNC).requires_grad_()
    output = judge(passes, error_BN, batch, sigma_B, config)
    (slope_BN,) = torch.autograd.grad(output.loss.value * share, error_BN)
    win_slope_BN, lose_slope_BN = slope_BN.chunk(2)
    with tensor_cores(noise_BNC.device, config.tf32):
        torch.autograd.backward(token_error(kept.output_BNC, win.target_BNC), win_slope_BN)
    del kept
    again = lose.predict(None)
    with tensor_cores(noise_BNC.device, config.tf32):
        torch.autograd.backward(token_error(again.output_BNC, lose.target_BNC), lose_slope_BN)
    return _without_gradient(output)


@dataclass(frozen=True)
class _Branch:
    """The winners or the losers of a batch at their noise level."""

    backbone: Backbone
    batch: PairBatch
    clean_BNC: Tensor
    noise_BNC: Tensor
    sigma_B: Tensor
    cast: Autocast

    @property
    def target_BNC(self) -> Tensor:
        return self.backbone.target(self.clean_BNC, self.noise_BNC, self.sigma_B)

    def predict(self, capture: FeatureConfig | None) -> Prediction:
        """One pass. Each has an autocast of its own: one that spans passes with and without
        gradients would hand the former the latter's cast weights, and the LoRA no gradient."""
        noisy_BNC = self.backbone.add_noise(self.clean_BNC, self.noise_BNC, self.sigma_B)
        with self.cast():
            return self.backbone.predict(
                noisy_BNC, self.sigma_B, self.batch.prompts, self.batch.references, capture=capture
            )


def _joined(win: Prediction, lose: Prediction) -> Prediction:
    """Both branches as one prediction of 2B images, without gradient."""
    references = [
        tuple(torch.cat(pair) for pair in zip(*blocks, strict=True))
        for blocks in zip(win.reference_features, lose.reference_features, strict=True)
    ]
    targets = zip(win.target_features, lose.target_features, strict=True)
    return Prediction(
        output_BNC=torch.cat([win.output_BNC.detach(), lose.output_BNC.detach()]),
        target_features=tuple(torch.cat(pair) for pair in targets),
        reference_features=tuple(references),
    )


Place = tuple[int, int]
"""Step, and the first slot of the pass in the step's batch."""


class ReferenceErrors:
    """The reference policy's errors per token (2B, N), kept from run to run of one process, by run
    and place; what exceeds `limit_mib` is computed anew.

    They depend on base, pairs, their order, noise and noise levels, and on nothing that an
    objective changes. So runs that differ in their objective alone share them, and all but the
    first do without the reference policy's pass, a quarter of a step."""

    def __init__(self, limit_mib: int = 256) -> None:
        self._left = limit_mib * 2**20
        self._runs: dict[str, dict[Place, Tensor]] = {}

    def of(self, base: str, pairs: str, config: TrainConfig) -> KnownErrors:
        """Those of runs with this base, these pairs and this order and noise."""
        decides = {
            "base": base,
            "pairs": pairs,
            "noise": config.noise.model_dump(mode="json"),
            **{name: getattr(config, name) for name in _DECIDES},
        }
        return KnownErrors(self, self._runs.setdefault(digest(decides), {}))

    def take_room(self, size: int) -> bool:
        """Whether there is room for so many bytes; if so they are taken."""
        if size > self._left:
            return False
        self._left -= size
        return True


_KL = 2**31
"""What the KL term adds to the seed: its pairs and noise are its own."""
_DECIDES = ("seed", "batch_pairs", "micro_pairs", "memory", "mixed_precision")


class KnownErrors:
    """The errors of one kind of run."""

    def __init__(self, owner: ReferenceErrors, known: dict[Place, Tensor]) -> None:
        self._owner, self._known = owner, known

    def get(self, place: Place) -> Tensor | None:
        """(2B, N), or None where they are not known yet."""
        return self._known.get(place)

    def put(self, place: Place, error_BN: Tensor | None) -> None:
        """Keep what a pass gave."""
        if error_BN is None or place in self._known:
            return
        if self._owner.take_room(error_BN.numel() * error_BN.element_size()):
            self._known[place] = error_BN


@dataclass(frozen=True)
class _Micro:
    """A pass of one step."""

    step: int
    slots: range
    items: list[int]
    kept: list[int]
    """Pairs whose winners the KL term looks at, as many; none in steps without it."""
    last: bool
    """Whether the step ends with it."""


class Stepper:
    """Takes optimiser steps; what they need is read ahead. To be used in a `with`. UserError where
    the processes do not divide a step's pairs."""

    def __init__(
        self,
        backbone: Backbone,
        data: PairData,
        config: TrainConfig,
        state: RunState,
        processes: Processes,
        known: KnownErrors,
        good: Callable[[], str],
        kept: PairData | None = None,
    ) -> None:
        """`good` says what is safe when a loss is not finite; `kept` are the pairs of the KL
        term."""
        self._backbone, self._data, self._config, self._kept = backbone, data, config, kept
        self._state, self._processes, self._known, self._good = state, processes, known, good
        self._device = next(backbone.transformer.parameters()).device
        self._slots = processes.share_of(config.batch_pairs)
        self._ahead = read_ahead(
            lambda micro: (
                data.look_up(micro.items),
                kept.look_up(micro.kept) if kept and micro.kept else None,
            ),
            self._order(),
            config.encoded.ahead,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Stops reading ahead."""
        self._ahead.close()

    def _order(self) -> Iterator[_Micro]:
        """This process's passes, from the next step to the last."""
        config, local = self._config, len(self._slots)
        schedule = Schedule(self._data.groups(), config.batch_pairs, config.seed)
        groups = self._kept.groups() if self._kept else []
        beside = Schedule(groups, config.batch_pairs, config.seed + _KL)
        micro = min(config.micro_pairs or local, local)
        for step in range(self._state.step, config.steps):
            items = schedule.items(step)
            kept = [] if not groups or step % config.kl.every else beside.items(step)
            for start in range(0, local, micro):
                slots, last = self._slots[start : start + micro], start + micro >= local
                chosen, others = ([a[slot] for slot in slots] if a else [] for a in (items, kept))
                yield _Micro(step, slots, chosen, others, last)

    def take(self) -> tuple[int, Table, dict[str, float]]:
        """One step: its number, a row per pair of all processes, and figures of the whole."""
        started = time.perf_counter()
        state, config = self._state, self._config
        state.optimizer.zero_grad(set_to_none=True)
        loss, kl, table, num_subjects, waited = self._backward()
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
            "data_seconds": waited,
        }
        if self._kept:
            seen = (step - 1) % config.kl.every == 0
            scalars["kl"] = self._processes.mean(kl) if seen else math.nan
        return step, table, scalars

    def _backward(self) -> tuple[float, float, Table, int, float]:
        """Gradients of this process's share of the step, in micro-batches: loss, KL term, a row per
        pair, subjects per pair, and the seconds for which it waited for data."""
        local = len(self._slots)
        loss, kl, tables, num_subjects, waited, last = 0.0, 0.0, [], 0, 0.0, False
        while not last:
            started = time.perf_counter()
            micro, (ahead, kept_ahead) = next(self._ahead)
            batch = self._data.batch(micro.items, ahead)
            kept = None
            if self._kept and micro.kept:
                kept = self._kept.batch(micro.kept, kept_ahead)
            waited += time.perf_counter() - started
            share = len(micro.slots) / local
            value, table = self._micro(micro.slots, batch, share)
            loss += value
            kl += self._kl_backward(micro.slots, kept, share) if kept else 0.0
            tables.append(table)
            num_subjects, last = batch.priors.subjects_BRN.shape[1], micro.last
        joined = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
        return loss + self._kl_weight * kl, kl, joined, num_subjects, waited

    def _micro(self, slots: range, batch: PairBatch, share: float) -> tuple[float, Table]:
        config, place = self._config, (self._state.step, slots.start)
        output = backward_step(
            self._backbone,
            batch,
            *self._noise(slots, batch, config.seed),
            config,
            self._autocast,
            self._known.get(place),
            share=share,
        )
        self._known.put(place, output.ref_error_BN)
        return (output.loss.value * share).item(), observe(output, batch, config.focus)

    def _kl_backward(self, slots: range, kept: PairBatch, share: float) -> float:
        """The KL term, times `share`, and its gradient."""
        noise_BNC, sigma_B = self._noise(slots, kept, self._config.seed + _KL)
        value = kl_step(self._backbone, kept, noise_BNC, sigma_B, self._autocast) * share
        with tensor_cores(self._device, self._config.tf32):
            (self._kl_weight * value).backward()
        return value.item()

    @property
    def _kl_weight(self) -> float:
        return self._config.kl.weight * self._config.kl.every

    def _noise(self, slots: range, batch: PairBatch, seed: int) -> tuple[Tensor, Tensor]:
        config, step = self._config, self._state.step
        return draw_noise(
            batch.win_BNC,
            slots,
            seed=seed,
            step=step,
            config=config.noise,
            slots_in_step=config.batch_pairs,
        )

    @property
    def _autocast(self) -> Autocast:
        return autocast(self._device, self._config.mixed_precision, self._config.tf32)

    def compile(self) -> bool:
        """Compiles the transformer's blocks, where the next step's first pass then gives the same;
        whether it did."""
        micro = next(self._order(), None)
        if micro is None:  # no step is left
            return False
        batch = self._data.batch(micro.items)

        def trial() -> Tensor:
            known, self._known = self._known, ReferenceErrors(0).of("", "", self._config)
            try:
                self._micro(micro.slots, batch, 1.0)
            finally:
                self._known = known
            gradients = (p.grad for p in self._state.parameters.values() if p.grad is not None)
            gradient = torch.cat([grad.flatten().cpu() for grad in gradients])
            self._state.optimizer.zero_grad(set_to_none=True)
            return gradient

        return compile_blocks(self._backbone.transformer, trial)
