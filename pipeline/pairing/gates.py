"""When two candidates make a pair: the settings of stage pair, and its gates.

A gate answers None (accepted) or a reason with its numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from focusdpo.data_schemas.candidates import Instance, Scored
from focusdpo.data_schemas.pairs import Reason
from focusdpo.data_schemas.strict import Later, StrictModel
from focusdpo.pipeline.matching import confused

Why = tuple[Reason, str]
"""Reason and its numbers in words."""


class PairConfig(StrictModel):
    """When two candidates make a pair. Identity and CLIP-T are cosines."""

    min_winner_identity: float = Field(
        default=0.5, ge=-1, le=1, description="Least identity of the winner's worst subject."
    )
    min_winner_margin: float = Field(
        default=0.0,
        ge=-2,
        le=2,
        description="Least leakage margin of the winner's worst subject: below 0 its "
        "reference fits another subject's place better. Scenes of one subject always pass.",
    )
    min_drop: float = Field(
        default=0.08,
        ge=0,
        le=2,
        description="disrupt: least mean loss of identity over the repainted subjects.",
    )
    min_drop_each: float = Field(
        default=0.0,
        ge=-2,
        le=2,
        description="disrupt: least loss of identity of any one repainted subject.",
    )
    clip_t_tolerance: float = Field(
        default=0.05, ge=0, le=2, description="Most difference of CLIP-T between winner and loser."
    )
    background_tolerance: float = Field(
        default=0.001,
        ge=0,
        le=1,
        description="disrupt: most mean change of a pixel outside the prior, in [0, 1].",
    )
    rank_margin: float = Field(
        default=0.08,
        ge=0,
        le=2,
        description="rank: least gap of mean identity between best and worst.",
    )
    rank_tolerance: float = Field(
        default=0.02,
        ge=0,
        le=2,
        description="rank: by how much leakage margin and CLIP-I of the best may stand below those "
        "of the worst.",
    )
    max_disrupt_per_scene: int = Field(
        default=4, ge=0, description="Most disrupt pairs of a scene."
    )
    max_rank_per_scene: int = Field(default=1, ge=0, description="Most rank pairs of a scene.")
    max_failure_per_scene: Annotated[int, Later()] = Field(
        default=0,
        ge=0,
        description="Most pairs of a scene in which the loser fails at a subject that the winner, "
        "like all others, shows right.",
    )
    max_mixed_per_scene: Annotated[int, Later()] = Field(
        default=0,
        ge=0,
        description="failure: most pairs of a scene in which either picture shows right what the "
        "other fails at; objective instance_dpo learns from them.",
    )

    @property
    def keeps_failures(self) -> bool:
        """Whether failed candidates make pairs."""
        return self.max_failure_per_scene > 0 or self.max_mixed_per_scene > 0


def incomplete(instances: Sequence[Instance]) -> Why | None:
    """Why a sampled candidate cannot win, if a subject was not found exactly once."""
    missing = [i for i in instances if i.found == "missing"]
    if missing:
        names = ", ".join(i.subject_id for i in missing)
        return "missing_subject", f"{len(missing)} of {len(instances)} subjects not found: {names}"
    twice = [i for i in instances if i.found == "duplicate"]
    if twice:
        names = ", ".join(f"{i.subject_id} {1 + i.extra} times" for i in twice)
        return "duplicate_subject", f"found more than once: {names}"
    return None


def _weak(win: Scored, config: PairConfig) -> Why | None:
    """Why a complete candidate is no winner: a subject has lost its looks, or traded them."""
    worst = min(win.identity)
    if worst < config.min_winner_identity:
        return "weak_winner", f"least identity {worst:.3f} < {config.min_winner_identity:.3f}"
    margin = min(win.leakage_margin)
    if len(win.identity) > 1 and margin < config.min_winner_margin:
        return "weak_winner", f"least leakage margin {margin:.3f} < {config.min_winner_margin:.3f}"
    return None


def judge_disrupted(
    win: Scored, lose: Scored, places: Sequence[int], config: PairConfig
) -> Why | None:
    """Why winner and its disruption make no pair; None when they do.

    `places` are the repainted subjects: identity is compared there alone.
    """
    weak = _weak(win, config)
    if weak is not None:
        return weak
    drops = [win.identity[p] - lose.identity[p] for p in places]
    mean = float(np.mean(drops))
    if mean < config.min_drop:
        return "no_identity_drop", f"mean drop {mean:.3f} < {config.min_drop:.3f}"
    if min(drops) < config.min_drop_each:
        return "no_identity_drop", f"least drop {min(drops):.3f} < {config.min_drop_each:.3f}"
    if lose.background > config.background_tolerance:
        return (
            "background_changed",
            f"change {lose.background:.5f} > {config.background_tolerance:.5f}",
        )
    return _meaning(win, lose, config)


def judge_ranked(win: Scored, lose: Scored, config: PairConfig) -> Why | None:
    """Why best and worst of a scene make no pair; None when they do."""
    weak = _weak(win, config)
    if weak is not None:
        return weak
    gap = mean(win.identity) - mean(lose.identity)
    if gap < config.rank_margin:
        return "small_margin", f"identity gap {gap:.3f} < {config.rank_margin:.3f}"
    for name, best, other in (
        ("leakage margin", win.leakage_margin, lose.leakage_margin),
        ("CLIP-I", win.clip_i, lose.clip_i),
    ):
        gap = mean(best) - mean(other)
        if gap < -config.rank_tolerance:
            return "small_margin", f"{name} disagrees: {gap:.3f} < -{config.rank_tolerance:.3f}"
    return _meaning(win, lose, config)


def judge_failed(win: Scored, lose: Scored, config: PairConfig) -> Why | None:
    """Why a right and a failed candidate make no pair; None when they do. What fails at a subject
    may fit the prompt worse, but no winner may."""
    loss = lose.clip_t - win.clip_t
    if loss > config.clip_t_tolerance:
        return (
            "meaning_changed",
            f"CLIP-T {win.clip_t:.3f} of the winner against {lose.clip_t:.3f}: "
            f"{loss:.3f} > {config.clip_t_tolerance:.3f}",
        )
    return None


def shown(scored: Scored, instances: Sequence[Instance], config: PairConfig) -> tuple[int, ...]:
    """How a sampled candidate shows each subject: 1 right (found once, like itself and like no
    other), -1 failed (missing, found twice, or with another's looks), 0 in between."""
    places = list(range(len(instances)))
    looks_wrong = confused(np.array(scored.similarity), places)
    result = []
    for place, instance in enumerate(instances):
        alone = len(places) == 1
        like = scored.identity[place] >= config.min_winner_identity
        apart = alone or scored.leakage_margin[place] >= config.min_winner_margin
        failed = instance.found != "one" or bool(looks_wrong[place])
        result.append(-1 if failed else int(like and apart))
    return tuple(result)


def sign(win: int, lose: int) -> str:
    """Which of two pictures, that show a subject so, is the better one: a word of `SIGNS`."""
    return {(1, -1): "win", (-1, 1): "lose"}.get((win, lose), "same")


def _meaning(win: Scored, lose: Scored, config: PairConfig) -> Why | None:
    shift = abs(win.clip_t - lose.clip_t)
    if shift > config.clip_t_tolerance:
        return (
            "meaning_changed",
            f"CLIP-T {win.clip_t:.3f} against {lose.clip_t:.3f}: "
            f"{shift:.3f} > {config.clip_t_tolerance:.3f}",
        )
    return None


def mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
