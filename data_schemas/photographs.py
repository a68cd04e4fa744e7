"""What DreamBench measures on whole pictures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeScores:
    """One picture against its subjects' photographs, whole against whole."""

    model: str
    """base or adapter."""
    scene_id: str
    index: int
    """Which picture of the scene."""
    dino: float
    """Mean over subjects of the mean DINO cosine to the subject's target photographs."""
    clip_i: float
    """The same with CLIP."""
    dino_each: tuple[float, ...]
    """`dino` per subject, in scene order."""
    clip_i_each: tuple[float, ...]
