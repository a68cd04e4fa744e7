"""What a search tells: each objective's settings, and which FocusDPO variant is put to the test."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from focusdpo.flows.ablation_config import FOCUS, ObjectiveKey
from focusdpo.flows.ablation_plan import Cell
from focusdpo.flows.validation import SCORE

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """What the search decided."""

    settings: dict[ObjectiveKey, dict[str, Any]]
    best: ObjectiveKey
    """The FocusDPO variant with the best validation score; where none is trained, the best of
    all."""
    tried: list[tuple[Cell, dict[str, Any]]]
    chosen: frozenset[str]
    """Keys of the chosen cells."""


def choose(tried: Sequence[tuple[Cell, dict[str, Any]]]) -> Choice:
    """Per objective the trial with the best validation score at the end of its training; of equal
    ones the first."""
    settings: dict[ObjectiveKey, dict[str, Any]] = {}
    best: dict[ObjectiveKey, float] = {}
    keys: dict[ObjectiveKey, str] = {}
    for cell, about in tried:
        objective: ObjectiveKey = about["objective"]
        score = score_of(about)
        if objective not in best or score > best[objective]:
            settings[objective], best[objective] = cell.settings, score
            keys[objective] = cell.key
    pool = [name for name in FOCUS if name in best] or list(best)
    winner = max(pool, key=lambda name: best[name])
    log.info("validation chose %s: %s", winner, settings)
    return Choice(settings, winner, list(tried), frozenset(keys.values()))


def score_of(about: dict[str, Any]) -> float:
    """A trial's validation score after its last step."""
    return float(about["train"]["validation"][-1][SCORE])
