"""What a search tells: each objective's settings, and which FocusDPO variant is put to the test."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from focusdpo.evaluation.folder import EvaluationFolder
from focusdpo.evaluation.validation import SCORE, means
from focusdpo.flows.ablation.cells import Cell
from focusdpo.flows.ablation.config import FOCUS, ObjectiveKey

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
    scores: dict[ObjectiveKey, float]
    """Of the chosen ones."""


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
    return Choice(settings, winner, list(tried), frozenset(keys.values()), best)


def choose_reading(choice: Choice, readings: Sequence[tuple[Cell, dict[str, Any]]]) -> Choice:
    """The search's choice with `focus_read` beside it: FocusDPO with that other reading whose
    validation score is best. It is the variant that is put to the test only if it is better than
    the default reading, on the same scenes, and that was the best."""
    if len(readings) < 2:
        return choice
    scores = [means(EvaluationFolder(cell.folder).records)[SCORE] for cell, _ in readings]
    best = max(range(1, len(scores)), key=scores.__getitem__)
    default = choice.settings["focus_dpo"]
    settings = {**choice.settings, "focus_read": {**default, **readings[best][0].settings}}
    # Searched variants were seen on the same scenes, so the default reading ties both scales.
    gain = scores[best] - scores[0]
    known = {**choice.scores, "focus_read": choice.scores["focus_dpo"] + gain}
    winner = max((name for name in FOCUS if name in known), key=lambda name: known[name])
    return replace(choice, settings=settings, scores=known, best=winner)


def score_of(about: dict[str, Any]) -> float:
    """A trial's validation score after its last step."""
    return float(about["train"]["validation"][-1][SCORE])
