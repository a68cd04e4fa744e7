"""Whether a body kept its pattern: structures of light laid upon one another, no model involved.

A structure is what `Judge.pattern` gives: (2, S, S), light and where it is known. Letters: T ways
to turn and mirror, K shifts, P = S x S samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from focusdpo.pipeline.metrics import nan_mean
from focusdpo.pipeline.parts import Vectors

TURNS = tuple(range(-24, 25, 4))
"""Degrees: a body in a scene is tilted by at most 15, in a reference by at most 8."""
SHIFT = 1
"""Samples by which centroids may be off."""
NOISE = 0.02
"""Lightness that counts as nothing: a flat body equals a flat one whatever its grain."""
OVERLAP = 0.7
"""Least share of the smaller body that the other must cover to be compared."""


def pattern_difference(instance: Vectors, references: Sequence[Vectors]) -> float:
    """Mean over references of the share of structure in which instance and reference differ, each
    laid upon the other as well as it fits: 0 for the same pattern, 1 for unrelated ones.

    NaN where the instance or all references are too small to tell.
    """
    if not np.isfinite(instance).all():
        return float("nan")
    here = _shifted(instance)
    shares = [
        # References are the sharper ones: turning, which blurs a little, costs them less.
        _least_share(*_turned(reference), *here)
        for reference in references
        if np.isfinite(reference).all()
    ]
    return nan_mean(np.array(shares))


def _least_share(
    light_TP: NDArray[np.float64],
    known_TP: NDArray[np.float64],
    light_PK: NDArray[np.float64],
    known_PK: NDArray[np.float64],
) -> float:
    """min over T and K of |a - b|^2 / (|a|^2 + |b|^2) on the samples that both know; 1 at most."""
    shared = known_TP @ known_PK
    energy = light_TP**2 @ known_PK + known_TP @ light_PK**2
    difference = energy - 2 * light_TP @ light_PK
    share = np.maximum(difference, 0) / (energy + shared * NOISE**2 + 1e-12)
    smaller = np.minimum(known_TP.sum(1)[:, None], known_PK.sum(0)[None])
    return float(np.where(shared >= OVERLAP * smaller, share, 1.0).min(initial=1.0))


def _turned(structure: Vectors) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Light and known, each (T, P)."""
    side = structure.shape[-1]
    light, known = (
        ndimage.map_coordinates(plane.astype(np.float64), _coordinates(side), order=1)
        for plane in structure
    )
    solid = (known > 0.9).astype(np.float64)
    return (light * solid).reshape(-1, side**2), solid.reshape(-1, side**2)


@cache
def _coordinates(side: int) -> NDArray[np.float64]:
    """(2, T, S, S): from where each turned and mirrored patch takes its samples."""
    grid = np.arange(side) - (side - 1) / 2
    y, x = np.meshgrid(grid, grid, indexing="ij")
    found = []
    for mirror, degrees in product((1, -1), TURNS):
        cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        found.append([sin * mirror * x + cos * y, cos * mirror * x - sin * y])
    return np.array(found).swapaxes(0, 1) + (side - 1) / 2


def _shifted(structure: Vectors) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Light and known, each (P, K); what comes in over the edge is unknown."""
    side = structure.shape[-1]
    wide = np.pad(structure.astype(np.float64), ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)))
    steps = range(2 * SHIFT + 1)
    moved = [wide[:, y : y + side, x : x + side] for y, x in product(steps, steps)]
    light, known = np.stack(moved, -1).reshape(2, side**2, -1)
    return light, known
