"""Class words of the pocket world, their splits, and the backgrounds.

Importing this module imports no torch, so that a plan needs none.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from focusdpo.data_schemas.scenes import stable_hash

Split = Literal["train", "val", "held_out"]
Pattern = Literal["plain", "horizontal", "vertical", "diagonal", "dots", "checker"]

PATTERNS: tuple[Pattern, ...] = get_args(Pattern)
HUE_BINS = 12
BACKGROUNDS = ("sand", "grass", "water", "snow", "bricks", "wood", "asphalt", "tiles")
ASSETS = Path(__file__).parent / "assets"

_SPLIT_SHARES: tuple[tuple[Split, float], ...] = (("train", 0.8), ("val", 0.1), ("held_out", 0.1))


@cache
def class_table() -> dict[str, dict[str, str]]:
    """Word -> {file, split, source} of all packaged classes, in their stable order."""
    table: dict[str, dict[str, str]] = json.loads((ASSETS / "classes.json").read_text())
    return table


def class_names(split: Split | None = None) -> tuple[str, ...]:
    """The class words of a split; of all splits without one."""
    return tuple(w for w, row in class_table().items() if split is None or row["split"] == split)


@cache
def cell_split(class_name: str, hue_bin: int, pattern: Pattern) -> Split:
    """Which split a cell belongs to: a hash, so that it never depends on what else exists."""
    position = stable_hash("identity cell", class_name, hue_bin, pattern) / 2**64
    for split, share in _SPLIT_SHARES:
        if position < share:
            return split
        position -= share
    return "held_out"
