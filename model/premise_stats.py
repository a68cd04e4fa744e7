"""Means, bootstrap bands and rank correlations of what `model.premise` measured. Numpy only.

Shapes: P pairs, S noise levels, V = 2 branches (winner, loser).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Band:
    """Means over pairs with their bootstrap intervals; NaN where no pair has a value."""

    mean: Floats
    low: Floats
    high: Floats
    pairs: int


def known_rows(values_PS: Floats) -> Floats:
    """The pairs that have a value at every noise level."""
    return values_PS[~np.isnan(values_PS).any(axis=1)]


def bootstrap_band(values_PS: Floats, *, resamples: int, level: float, seed: int = 0) -> Band:
    """Percentile bootstrap of the mean over pairs. A resample draws whole pairs: all their noise
    levels together, so that differences along a curve may be read off columns too."""
    known_PS = known_rows(np.asarray(values_PS, np.float64))
    pairs, columns = known_PS.shape
    if not pairs:
        nothing = np.full(columns, np.nan)
        return Band(nothing, nothing, nothing, 0)
    generator = np.random.default_rng(seed)
    means = np.empty((resamples, columns))
    for at in range(resamples):  # one at a time: memory stays small, whatever P
        means[at] = known_PS[generator.integers(0, pairs, pairs)].mean(axis=0)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Band(known_PS.mean(axis=0), low, high, pairs)


def ranks(values_PS: Floats) -> Floats:
    """Ranks along S from 0; equal values share their mean rank."""
    below = (values_PS[:, None, :] < values_PS[:, :, None]).sum(axis=2)
    equal = (values_PS[:, None, :] == values_PS[:, :, None]).sum(axis=2)
    return np.asarray(below + (equal - 1) / 2, np.float64)


def rank_correlation(values_PS: Floats, sigmas: Sequence[float]) -> Floats:
    """Spearman correlation (P,) of each pair's values with -sigma: 1 where they rise at every step
    towards less noise; 0 where they do not change at all."""
    order_S = -ranks(np.asarray(sigmas, np.float64)[None])[0]
    order_S = order_S - order_S.mean()
    ranked_PS = ranks(np.asarray(values_PS, np.float64))
    ranked_PS = ranked_PS - ranked_PS.mean(axis=1, keepdims=True)
    scale_P = np.sqrt((ranked_PS**2).sum(axis=1) * (order_S**2).sum())
    product_P = ranked_PS @ order_S
    return np.where(scale_P > 0, product_P / np.where(scale_P > 0, scale_P, 1.0), 0.0)


def mean_known(values: Floats) -> float:
    """Mean of what is not NaN; NaN if nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


@dataclass(frozen=True)
class Rise:
    """How one metric of one branch changes from most to least noise."""

    rise: Band
    """Value at the lowest sigma less that at the highest, one column."""
    spearman: float
    """Mean over pairs of the rank correlation with -sigma."""
    peak_sigma: float
    """Where the mean over pairs is largest; the noisiest of several."""


def rise_of(values_PS: Floats, sigmas: Sequence[float], *, resamples: int, level: float) -> Rise:
    """`sigmas` from most to least noise, as the columns are."""
    known_PS = known_rows(values_PS)
    rise_P1 = known_PS[:, -1:] - known_PS[:, :1]
    band = bootstrap_band(rise_P1, resamples=resamples, level=level)
    if not len(known_PS):
        return Rise(band, float("nan"), float("nan"))
    spearman = float(rank_correlation(known_PS, sigmas).mean())
    return Rise(band, spearman, float(sigmas[int(known_PS.mean(axis=0).argmax())]))


def spread(groups: Mapping[int, Sequence[Item]], count: int) -> list[Item]:
    """`count` items, as evenly as may be from all groups, and within a group at even distances in
    its order; all of them where there are fewer. Groups in the order of their numbers."""
    wanted = dict.fromkeys(sorted(groups), 0)
    left = min(count, sum(len(items) for items in groups.values()))
    while left:
        # The fullest groups last: what small groups cannot give is shared among the others.
        for number in sorted(wanted, reverse=True):
            if left and wanted[number] < len(groups[number]):
                wanted[number] += 1
                left -= 1
    chosen: list[Item] = []
    for number, num in wanted.items():
        items = groups[number]
        chosen += [items[(2 * i + 1) * len(items) // (2 * num)] for i in range(num)]
    return chosen
