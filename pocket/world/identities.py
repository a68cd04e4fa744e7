"""Individuals: what tells one from another of its class.

An individual keeps its class picture's own colours, all hues turned by one angle; the parts of
other colours may be turned apart, and a pattern and a mark may lie on top. The class word says
nothing of these. Individuals are split into train, val and held_out by a hash of their cell (class,
hue bin, pattern), so that no cell is in two splits, whatever is sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from focusdpo.data_schemas.errors import UserError
from focusdpo.pocket.classes import (
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
    "BACKGROUNDS",
    "HUE_BINS",
    "INKS",
    "MARKS",
    "PATTERNS",
    "Identity",
    "Ink",
    "Mark",
    "Pattern",
    "Split",
    "cell_split",
    "class_names",
    "class_table",
    "draw_identity",
    "draw_of_split",
    "sample_identities",
]

Ink = Literal["dark", "light"]
Mark = Literal["none", "patch", "band", "badge"]

INKS: tuple[Ink, ...] = get_args(Ink)
MARKS: tuple[Mark, ...] = get_args(Mark)

PLAIN_SHARE, UNMARKED_SHARE, PARTED_SHARE = 0.45, 0.5, 0.5
"""Shares of individuals without pattern, without mark, and with parts turned apart."""
PART_TURN = (0.2, 0.8)
"""How far the second part's hue is turned from the first one's."""
SATURATION_RANGE = (0.8, 1.15)
LIGHTNESS_RANGE = (-0.08, 0.08)


@dataclass(frozen=True, slots=True)
class Identity:
    """One individual. Hues are turns in [0, 1) of what the class picture has."""

    class_name: str
    hue: float
    """Turn of the main part; 0: the picture's own colours."""
    second_hue: float
    """Turn of the part of other colours."""
    saturation: float
    """Factor on the picture's own."""
    lightness: float
    """Added to the picture's own, which lies in [0, 1]."""
    pattern: Pattern
    ink: Ink
    """Whether the pattern is darker or lighter than the body."""
    mark: Mark
    mark_hue: float
    """HSL hue of the mark in [0, 1)."""

    @property
    def cell(self) -> tuple[str, int, Pattern]:
        """(class, hue bin, pattern): what the split is decided by."""
        return self.class_name, int(self.hue * HUE_BINS) % HUE_BINS, self.pattern

    @property
    def split(self) -> Split:
        """The split of this individual's cell."""
        return cell_split(*self.cell)


def sample_identities(
    split: Split, classes: Sequence[str], count: int, seed: int
) -> list[Identity]:
    """`count` individuals of a split, classes drawn evenly from `classes`.

    Raises UserError for a class that the world does not know.
    """
    unknown = sorted(set(classes) - set(class_table()))
    if unknown or not classes:
        raise UserError(
            f"pocket world: unknown classes {unknown}; known are {', '.join(class_table())}"
        )
    rng = np.random.default_rng([seed, 0x2D])
    return [draw_of_split(split, classes, rng) for _ in range(count)]


def draw_of_split(split: Split, classes: Sequence[str], rng: np.random.Generator) -> Identity:
    """An individual of a split, its class drawn evenly."""
    while True:
        identity = draw_identity(str(classes[int(rng.integers(len(classes)))]), rng)
        if identity.split == split:
            return identity


def draw_identity(class_name: str, rng: np.random.Generator) -> Identity:
    """An individual of any split."""
    hue, parted, turn, saturation, lightness, plain, marked, mark_hue = rng.random(8)
    patterned, ink, mark = rng.integers(1, len(PATTERNS)), rng.integers(2), rng.integers(1, 4)
    low, high = PART_TURN
    second = (hue + low + turn * (high - low)) % 1 if parted < PARTED_SHARE else hue
    return Identity(
        class_name=class_name,
        hue=float(hue),
        second_hue=float(second),
        saturation=float(np.interp(saturation, (0, 1), SATURATION_RANGE)),
        lightness=float(np.interp(lightness, (0, 1), LIGHTNESS_RANGE)),
        pattern="plain" if plain < PLAIN_SHARE else PATTERNS[int(patterned)],
        ink=INKS[int(ink)],
        mark="none" if marked < UNMARKED_SHARE else MARKS[int(mark)],
        mark_hue=float(mark_hue),
    )
