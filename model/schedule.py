"""What a step is made of, as functions of (seed, step), so that a resumed run needs no replay: its
pairs, and its learning rate."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from focusdpo.data_schemas.scenes import stable_hash
from focusdpo.model.configs import TrainConfig


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
