"""The preference on pairs that training does not see: loss and implicit accuracy, over the same
noise at every look, so that looks differ by the weights alone. Shapes: B pairs, N target tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from focusdpo.model.adapter import reference_policy
from focusdpo.model.backbone import Backbone
from focusdpo.model.noise import draw_noise
from focusdpo.model.step import autocast, pair_step
from focusdpo.model.training.batches import PairData
from focusdpo.model.training.config import TrainConfig
from focusdpo.model.training.monitor import mean_present, observe

LOSS, ACCURACY, WIN_GAP = "held_out_loss", "held_out_accuracy", "held_out_win_gap"
SCORE = "score"
METRICS = (SCORE, ACCURACY)
"""Of these a look may be the best: better when higher."""
_STEP = -1
"""No step of training draws its noise."""


class HeldOutPairs:
    """Measures the weights that are in place on all pairs of `data`."""

    def __init__(self, backbone: Backbone, data: PairData, config: TrainConfig) -> None:
        self._backbone, self._data, self._config = backbone, data, config
        self._groups = data.groups()
        self._device = next(backbone.transformer.parameters()).device
        self._reference: dict[int, Tensor | None] = {}
        """The reference policy's errors (2B, N) by the first slot of a pass."""
        self._base_loss: float | None = None

    def __call__(self) -> Mapping[str, float]:
        """Means over the pairs; `score` is how far the loss has fallen below the base's."""
        if self._base_loss is None:
            with reference_policy(self._backbone.transformer):
                self._base_loss = self._measured()[LOSS]
        means = self._measured()
        return {SCORE: self._base_loss - means[LOSS], **means}

    def _measured(self) -> dict[str, float]:
        losses, tables = [], []
        for first, items in self._passes():
            loss, table = self._pass(first, items)
            losses += [loss] * len(items)
            tables.append(table)
        columns = {
            name: mean_present(np.concatenate([table[name] for table in tables]))
            for name in ("implicit_accuracy", "win_gap")
        }
        means = {
            LOSS: float(np.mean(losses)),
            ACCURACY: columns["implicit_accuracy"],
            WIN_GAP: columns["win_gap"],
        }
        return {name: value for name, value in means.items() if np.isfinite(value)}

    def _passes(self) -> Iterator[tuple[int, list[int]]]:
        """First slot and items of each pass: pairs with equally many subjects."""
        most, slot = self._config.micro_pairs or self._config.batch_pairs, 0
        for group in self._groups:
            for start in range(0, len(group), most):
                items = group[start : start + most]
                yield slot, items
                slot += len(items)

    @torch.no_grad()
    def _pass(self, first: int, items: list[int]) -> tuple[float, dict[str, np.ndarray]]:
        config, batch = self._config, self._data.batch(items)
        noise_BNC, sigma_B = draw_noise(
            batch.win_BNC,
            range(first, first + len(items)),
            seed=config.seed,
            step=_STEP,
            config=config.noise,
            slots_in_step=len(self._data),
        )
        output = pair_step(
            self._backbone,
            batch,
            noise_BNC,
            sigma_B,
            config,
            autocast(self._device, config.mixed_precision, config.tf32),
            self._reference.get(first),
        )
        self._reference.setdefault(first, output.ref_error_BN)
        return output.loss.value.item(), observe(output, batch, config.focus)
