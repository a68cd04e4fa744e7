"""Who stands in a scene: subjects drawn so that similar ones meet often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from focusdpo.pocket.classes import HUE_BINS, Split
from focusdpo.pocket.world.identities import Identity, draw_identity, draw_of_split
from focusdpo.pocket.world.sprites import recolour

Likeness = Literal["none", "class", "hue", "class and hue"]
"""What two subjects of a scene have in common."""
LIKENESSES: tuple[Likeness, ...] = get_args(Likeness)
LIKENESS_SHARES = (0.5, 0.25, 0.15, 0.1)
"""Shares of scenes with several subjects, in the order of LIKENESSES: half hold similar ones."""
VAIN_TRIES = 40
LEAST_DIFFERENCE = 0.11
"""Mean over a body's pixels of the largest difference of a channel, in [0, 1]: below it two
individuals of a class look the same."""


def draw_cast(
    split: Split, classes: Sequence[str], count: int, rng: np.random.Generator
) -> list[Identity]:
    """`count` subjects of a scene, in no order."""
    cast = [draw_of_split(split, classes, rng) for _ in range(count)]
    if count > 1:
        likeness = LIKENESSES[int(rng.choice(len(LIKENESSES), p=LIKENESS_SHARES))]
        cast[1] = draw_like(cast[0], likeness, split, classes, rng)
    return [cast[i] for i in rng.permutation(count)]


def draw_like(
    model: Identity,
    likeness: Likeness,
    split: Split,
    classes: Sequence[str],
    rng: np.random.Generator,
) -> Identity:
    """An individual of the split that is like `model` in the said respect and else its own. After
    some vain tries, for a split may have no such cell, the hue is left free."""
    for attempt in range(2 * VAIN_TRIES):
        name = (
            model.class_name
            if likeness.startswith("class")
            else str(classes[int(rng.integers(len(classes)))])
        )
        drawn = draw_identity(name, rng)
        if likeness.endswith("hue") and attempt < VAIN_TRIES:
            near = rng.uniform(-0.5, 0.5) / HUE_BINS
            hue = float((model.hue + near) % 1)
            drawn = replace(drawn, hue=hue, second_hue=(drawn.second_hue - drawn.hue + hue) % 1)
        if drawn.split == split and told_apart(model, drawn):
            return drawn
    return draw_of_split(split, classes, rng)


def told_apart(first: Identity, second: Identity) -> bool:
    """Whether two individuals can be told apart by eye: by class, or by colours that differ by
    LEAST_DIFFERENCE over the body."""
    if not differ(first, second):
        return False
    if first.class_name != second.class_name:
        return True
    sheets = recolour((first, second))
    gap = (sheets[0, :3] - sheets[1, :3]).abs().amax(0)
    return float(gap[sheets[0, 3] > 0.5].mean()) >= LEAST_DIFFERENCE


def differ(first: Identity, second: Identity) -> bool:
    """Whether two individuals differ in class, pattern or mark, or in hues by more than a bin; a
    mark may still lie where the body has a hole."""
    if first.class_name != second.class_name:
        return True
    plain = first.pattern == second.pattern == "plain"
    looks = ("pattern", "mark") if plain else ("pattern", "ink", "mark")
    if any(getattr(first, name) != getattr(second, name) for name in looks):
        return True
    gaps = (abs(getattr(first, n) - getattr(second, n)) % 1 for n in ("hue", "second_hue"))
    return max(min(gap, 1 - gap) for gap in gaps) > 1 / HUE_BINS
