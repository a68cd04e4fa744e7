"""Identities: what tells one individual of a class from another.

An identity is a class, a hue, a saturation, a lightness and a pattern. The class word says nothing
of the rest. Identities are split into train, val and held_out by a hash of their cell (class, hue
bin, pattern), so that no cell is in two splits, whatever is sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from focusdpo.data_schemas.errors import UserError
from focusdpo.pocket.classes import (
    ASSETS,
    BACKGROUNDS,
    HUE_BINS,
    PATTERNS,
    Pattern,
    Split,
    cell_split,
    class_names,
    class_table,
)

__all__ = [
    "ASSETS",
    "BACKGROUNDS",
    "HUE_BINS",
    "PATTERNS",
    "Identity",
    "Pattern",
    "Split",
    "cell_split",
    "class_names",
    "class_table",
    "draw_identity",
    "sample_identities",
]

SATURATION_RANGE = (0.55, 0.95)
LIGHTNESS_RANGE = (0.42, 0.58)


@dataclass(frozen=True, slots=True)
class Identity:
    """One individual. Hue, saturation and lightness are HSL's, each in [0, 1]."""

    class_name: str
    hue: float
    saturation: float
    lightness: float
    pattern: Pattern

    @property
    def cell(self) -> tuple[str, int, Pattern]:
        """(class, hue bin, pattern): what the split is decided by."""
        return self.class_name, int(self.hue * HUE_BINS) % HUE_BINS, self.pattern

    @property
    def split(self) -> Split:
        """The split of this identity's cell."""
        return cell_split(*self.cell)


def sample_identities(
    split: Split, classes: Sequence[str], count: int, seed: int
) -> list[Identity]:
    """`count` identities of a split, classes drawn evenly from `classes`.

    Raises UserError for a class that the world does not know.
    """
    unknown = sorted(set(classes) - set(class_table()))
    if unknown or not classes:
        raise UserError(
            f"pocket world: unknown classes {unknown}; known are {', '.join(class_table())}"
        )
    rng = np.random.default_rng([seed, 0x1D])
    found: list[Identity] = []
    while len(found) < count:
        identity = draw_identity(str(classes[int(rng.integers(len(classes)))]), rng)
        if identity.split == split:
            found.append(identity)
    return found


def draw_identity(class_name: str, rng: np.random.Generator) -> Identity:
    """An identity of any split."""
    hue, saturation, lightness = rng.random(3)
    return Identity(
        class_name=class_name,
        hue=float(hue),
        saturation=float(np.interp(saturation, (0, 1), SATURATION_RANGE)),
        lightness=float(np.interp(lightness, (0, 1), LIGHTNESS_RANGE)),
        pattern=PATTERNS[int(rng.integers(len(PATTERNS)))],
    )
