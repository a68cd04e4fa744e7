"""What `model.focus_levels` measured, summarised: the rows of premise.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from focusdpo.model.focus_config import PremiseConfig
from focusdpo.model.focus_levels import (
    BRANCHES,
    METRICS,
    Premise,
    Values,
    bootstrap_band,
    rise_of,
)
from focusdpo.model.training.monitor import mean_present

Row = dict[str, Any]
CURVES = ("alignment", "structure_share", "confusion")


def premise_rows(
    phase: str,
    measured: Premise,
    subjects_P: Sequence[int],
    features: tuple[str, str],
    config: PremiseConfig,
) -> tuple[list[Row], list[Row], list[Row]]:
    """Rows of the configured features, of those by number of subjects, and of every place; each
    for winners and losers. `features` names the configured ones: kind, blocks."""
    number_P = np.asarray(subjects_P)
    configured, grouped, table = [], [], []
    for branch in range(len(BRANCHES)):
        head = {"phase": phase, "branch": BRANCHES[branch]}
        own = {**head, "kind": features[0], "blocks": features[1]}
        configured.append(own | _summary(measured.configured, branch, config))
        for number in sorted(set(subjects_P)):
            part = {name: v[number_P == number] for name, v in measured.configured.items()}
            grouped.append(own | {"subjects": number} | _summary(part, branch, config))
        for (kind, block), values in measured.places.items():
            place = {**head, "kind": kind, "blocks": block}
            table.append(place | _summary(values, branch, config))
    return configured, grouped, table


def _summary(values: Values, branch: int, config: PremiseConfig) -> Row:
    """Bands of the metrics over sigma, and the rise of A."""
    row: Row = {}
    for name in METRICS:
        values_PS = values[name][:, :, branch]
        if name not in CURVES:  # levels to compare with
            row[name] = [number(mean_present(values_P)) for values_P in values_PS.T]
        else:
            band = bootstrap_band(values_PS, resamples=config.resamples, level=config.level)
            ends = {"mean": band.mean, "low": band.low, "high": band.high}
            row[name] = {end: numbers(v) for end, v in ends.items()} | {"pairs": band.pairs}
    change = rise_of(
        values["alignment"][:, :, branch],
        config.sigmas,
        resamples=config.resamples,
        level=config.level,
    )
    return row | {
        "rise": number(change.rise.mean[0]),
        "rise_low": number(change.rise.low[0]),
        "rise_high": number(change.rise.high[0]),
        "spearman": number(change.spearman),
        "peak_sigma": number(change.peak_sigma),
    }


def best_places(table: Sequence[Row]) -> dict[str, Row]:
    """Of the base's places on winners: the largest rise of A, and the largest A at the lowest
    sigma. The first of equals."""
    places = [row for row in table if (row["phase"], row["branch"]) == ("base", "winner")]
    return {
        "rise": max(places, key=lambda row: row["rise"]),
        "low_noise": max(places, key=lambda row: row["alignment"]["mean"][-1]),
    }


def ends(row: Row) -> Row:
    """A row's A at the highest and lowest sigma, and how it rises."""
    a = row["alignment"]["mean"]
    names = ("phase", "branch", "kind", "blocks", "rise", "rise_low", "rise_high", "spearman")
    return {name: row[name] for name in names} | {"high": a[0], "low": a[-1]}


def counts(subjects_P: Sequence[int]) -> Mapping[str, int]:
    """Number of subjects -> pairs."""
    return {str(n): list(subjects_P).count(n) for n in sorted(set(subjects_P))}


def number(value: float) -> float | None:
    """Six decimals; None for NaN, which JSON has no word for."""
    return None if math.isnan(value) else round(float(value), 6)


def numbers(values: NDArray[np.float64]) -> list[float | None]:
    """Each of them."""
    return [number(float(value)) for value in values]
