"""What a judge measured on each picture of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalScene:
    """What the judge measured on one picture; fields from `identity` on are the metrics
    of `pipeline.metrics.METRICS`; NaN where one has no meaning."""

    protocol: str
    model: str
    """base or adapter."""
    scene_id: str
    index: int
    """Which picture of the scene."""
    image: str
    """Where the picture lies, as given by the caller."""
    subject_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    held_out: bool
    """Whether some class in the scene was held out from all training."""
    seen: int
    """How many instances the judge counted."""
    boxes: tuple[tuple[int, ...], ...]
    """The matched instance's box per subject, empty where it is missing."""
    matched: tuple[float, ...]
    """Matched identity per subject, 0 where it is missing."""
    identity: float
    leakage_margin: float
    confusion: float
    missing: float
    duplicate: float
    class_recognition: float
    hue_error: float
    scr_40: float
    scr_50: float
    scr_60: float
    copy_paste: float
