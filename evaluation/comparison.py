"""Tables of means with intervals, paired differences, and who beats whom over seeds.

Letters: R resamples, S training seeds, K scenes, C contrasts. A difference a - b exists per seed
and scene. Scenes and seeds are both samples of something larger, so both are resampled, crossed:
a resample draws K scenes and S seeds with replacement and takes every drawn seed on every drawn
scene. All contrasts of a call, over all its metrics, see the same draws; that keeps their
correlation, which the family's interval lives on.

Two corrections and their limits:

- S is small. The spread of S seed means is (S - 1) / S of what it should be, so deviations of
  the seed means from the grand mean are stretched by sqrt(S / (S - 1)) before resampling: means
  stay, the variance between seeds is right on average. It stays an estimate from S - 1 degrees of
  freedom. Simulated with three seeds and 150 scenes, a 95 % interval covers in 94 to 96 % where
  seeds spread up to a tenth of what scenes do, in 92 % at a fifth, in 77 % where they spread alike.
- The crossed bootstrap counts what is particular to one seed on one scene up to three times
  (Owen 2007, "The pigeonhole bootstrap"): where that dominates, intervals are too wide.

The family's interval is single-step max-T: every contrast is divided by its bootstrap standard
error, and the quantile of the largest |t| over all contrasts is the width for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from focusdpo.data_schemas.ablations import ArmRow, Contrast
from focusdpo.data_schemas.evaluations import EvalScene
from focusdpo.data_schemas.runs import EvalRow
from focusdpo.evaluation.metrics import METRICS, Interval, bootstrap, nan_mean
from focusdpo.evaluation.protocols import ADAPTER, BASE, DIFFERENCE, EvaluateConfig


class Measured(Protocol):
    """A record of one picture of a scene, with metrics as attributes."""

    @property
    def scene_id(self) -> str: ...


def rows(
    base: Sequence[Any],
    adapter: Sequence[Any],
    config: EvaluateConfig,
    metrics: Iterable[str] = METRICS,
) -> list[EvalRow]:
    """The table: each metric and group for base, adapter and their paired difference.

    Both hold `EvalScene`, or what has its fields and more `metrics`. `adapter` may be empty: then
    base alone. Groups without a scene are left out.
    """
    table = []
    for group, belongs in GROUPS.items():
        mine = [scene for scene in base if belongs(scene)]
        theirs = [scene for scene in adapter if belongs(scene)]
        if not mine and not theirs:
            continue
        for metric in metrics:
            means = intervals(metric, mine, theirs, config)
            table += [
                EvalRow(
                    protocol=(mine or theirs)[0].protocol,
                    metric=metric,
                    group=group,
                    model=model,
                    **asdict(interval),
                )
                for model, interval in means.items()
                if interval.scenes
            ]
    return table


@dataclass(frozen=True, slots=True)
class PairedText:
    """A metric's line in plain text: both means, their paired difference, over how many scenes."""

    metric: str
    base: str
    adapter: str
    difference: str
    scenes: str


def by_model(rows: Sequence[EvalRow]) -> dict[tuple[str, str], dict[str, EvalRow]]:
    """(metric, group) -> model -> row, in the order of first appearance."""
    table: dict[tuple[str, str], dict[str, EvalRow]] = {}
    for row in rows:
        table.setdefault((row.metric, row.group), {})[row.model] = row
    return table


def paired_texts(rows: Sequence[EvalRow], group: str = "all") -> list[PairedText]:
    """A line per metric of a group, in the table's order; "-" for what was not measured."""

    def text(metric: str, models: Mapping[str, EvalRow]) -> PairedText:
        base, adapter = (
            f"{models[model].mean:.4f}" if model in models else "-" for model in (BASE, ADAPTER)
        )
        gap = models.get(DIFFERENCE)
        change = f"{gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]" if gap else "-"
        return PairedText(metric, base, adapter, change, str(next(iter(models.values())).scenes))

    return [
        text(metric, models) for (metric, name), models in by_model(rows).items() if name == group
    ]


def _asks_for(count: int, scene: EvalScene) -> bool:
    return len(scene.subject_ids) == count


GROUPS: dict[str, Callable[[EvalScene], bool]] = {
    "all": lambda scene: True,
    "1 subject": lambda scene: len(scene.subject_ids) == 1,
    **{f"{count} subjects": partial(_asks_for, count) for count in range(2, 11)},
    "same class": lambda scene: len(set(scene.class_names)) < len(scene.class_names),
    "held-out classes": lambda scene: scene.held_out,
}
"""The groups of scenes that a table shows."""


def scene_means(records: Sequence[Measured], metric: str) -> dict[str, float]:
    """Scene id -> the metric's mean over the scene's pictures, scenes in order of appearance."""
    values: dict[str, list[float]] = {}
    for record in records:
        values.setdefault(record.scene_id, []).append(getattr(record, metric))
    return {scene: nan_mean(np.array(picture_values)) for scene, picture_values in values.items()}


def intervals(
    metric: str, base: Sequence[Measured], adapter: Sequence[Measured], config: EvaluateConfig
) -> dict[str, Interval]:
    """Means over scenes by model, and of the paired difference where there are both: then all
    three are over the scenes where both have a value, so that they fit each other.

    ValueError when the two were measured on different scenes.
    """
    means = {BASE: scene_means(base, metric), ADAPTER: scene_means(adapter, metric)}
    values = {
        model: np.array(list(by_scene.values())) for model, by_scene in means.items() if by_scene
    }
    if len(values) == 2:
        ours, theirs = means.values()
        if set(ours) != set(theirs):
            odd = sorted(set(ours) ^ set(theirs))[:3]
            raise ValueError(f"base and adapter were measured on different scenes: {odd}")
        values[ADAPTER] = np.array([theirs[scene] for scene in ours])
        values[DIFFERENCE] = values[ADAPTER] - values[BASE]
        both = np.isfinite(values[DIFFERENCE])
        values = {model: scene_values[both] for model, scene_values in values.items()}
    resample = partial(bootstrap, resamples=config.resamples, level=config.level, seed=config.seed)
    return {model: resample(scene_values) for model, scene_values in values.items()}


Values = NDArray[np.float64]
ValueTable = Mapping[str, Values]
"""Arm -> (S, K), NaN where a scene has no value. An arm of one row (the base) stands for every
seed."""

_FLAT = 1e-9
"""A standard error below this share of the largest difference is rounding: the difference is the
same on every scene and seed."""


def contrasts(
    values_by_metric: Mapping[str, ValueTable],
    pairs: Sequence[tuple[str, str]],
    *,
    resamples: int,
    level: float,
    seed: int,
    group: str = "all",
    family: str = "main",
) -> list[Contrast]:
    """Every pair (a, b) on every metric, metric by metric: one family, in which intervals and p
    hold for all contrasts of the call at once. NaN everywhere where no scene has both.

    ValueError when tables differ in scenes, or arms in seeds (other than one row).
    """
    seeds, scenes = _shape(values_by_metric)
    named = [(metric, a, b) for metric in values_by_metric for a, b in pairs]
    if not named:
        return []
    tables = [
        _stretched(np.broadcast_to(table[a] - table[b], (seeds, scenes)))
        for metric, a, b in named
        for table in [values_by_metric[metric]]
    ]
    means = np.array([nan_mean(table) for table in tables])
    draws = _draws(tables, resamples, seed)
    errors = _errors(draws, tables)
    draws = np.where(errors > 0, draws, means)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(means == 0, 0.0, np.abs(means) / errors)
        spread = np.where(errors > 0, np.abs(draws - means) / errors, 0.0)
    largest = np.nan_to_num(spread).max(axis=1)
    width = float(np.quantile(largest, level))
    p = [float((1 + (largest >= statistic).sum()) / (1 + largest.size)) for statistic in t]
    return [
        replace(
            _contrast(name, table, draws[:, c], width * errors[c], p[c], level),
            group=group,
            family=family,
        )
        for c, (name, table) in enumerate(zip(named, tables, strict=True))
    ]


def arm_rows(values_by_metric: Mapping[str, ValueTable], *, group: str = "all") -> list[ArmRow]:
    """Each arm's mean over seeds and scenes, and how far the seeds' means spread.

    Arms without any value on a metric get no row.
    """
    rows = []
    for metric, table in values_by_metric.items():
        for arm, values in table.items():
            known = np.isfinite(values)
            if not known.any():
                continue
            by_seed = [nan_mean(row) for row in values if np.isfinite(row).any()]
            rows.append(
                ArmRow(
                    arm=arm,
                    metric=metric,
                    group=group,
                    mean=nan_mean(values),
                    seed_std=float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else float("nan"),
                    seeds=len(by_seed),
                    scenes=int(known.any(axis=0).sum()),
                )
            )
    return rows


def _shape(values_by_metric: Mapping[str, ValueTable]) -> tuple[int, int]:
    """(S, K), which all tables share."""
    shapes = {
        f"{metric}, {arm}": values.shape
        for metric, table in values_by_metric.items()
        for arm, values in table.items()
    }
    seeds = max((shape[0] for shape in shapes.values()), default=1)
    scenes = max((shape[1] for shape in shapes.values()), default=0)
    odd = [
        f"{name}: {shape}"
        for name, shape in shapes.items()
        if shape[0] not in (1, seeds) or shape[1] != scenes
    ]
    if odd:
        raise ValueError(f"expected {seeds} seeds (or one) by {scenes} scenes, got {odd[:3]}")
    return seeds, scenes


def _stretched(difference: Values) -> Values:
    """The same grand mean; seed means sqrt(S / (S - 1)) times as far from it."""
    seeds = len(difference)
    if seeds == 1 or not np.isfinite(difference).any():
        return difference
    grand = nan_mean(difference)
    seed_means = np.array([nan_mean(row) for row in difference])
    stretch = np.sqrt(seeds / (seeds - 1)) - 1
    return np.asarray(difference + stretch * np.nan_to_num(seed_means - grand)[:, None])


def _draws(tables: Sequence[Values], resamples: int, seed: int) -> Values:
    """(R, C) resampled means; NaN where a resample holds no value."""
    seeds, scenes = tables[0].shape
    generator = np.random.default_rng(seed)
    often = generator.multinomial(scenes, np.full(scenes, 1 / scenes), resamples).astype(float)
    seed_often = generator.multinomial(seeds, np.full(seeds, 1 / seeds), resamples).astype(float)
    draws = np.empty((resamples, len(tables)))
    for c, table in enumerate(tables):
        known = np.isfinite(table)
        # (R, K) @ (K, S), then the seeds' weights: every drawn seed on every drawn scene.
        sums = ((often @ np.where(known, table, 0.0).T) * seed_often).sum(axis=1)
        counts = ((often @ known.astype(float).T) * seed_often).sum(axis=1)
        draws[:, c] = np.divide(sums, counts, out=np.full(resamples, np.nan), where=counts > 0)
    return draws


def _errors(draws: Values, tables: Sequence[Values]) -> Values:
    """(C,) standard deviations of the draws; exactly 0 where only rounding moves them."""
    errors = np.zeros(len(tables))
    for c, table in enumerate(tables):
        known = draws[np.isfinite(draws[:, c]), c]
        if known.size:
            error, largest = float(known.std()), float(np.nanmax(np.abs(table)))
            errors[c] = error if error > _FLAT * largest else 0.0
    return errors


def _contrast(
    name: tuple[str, str, str], table: Values, draws: Values, width: float, p: float, level: float
) -> Contrast:
    metric, a, b = name
    mean = nan_mean(table)
    scenes = int(np.isfinite(table).any(axis=0).sum())
    low = high = float("nan")
    if scenes:
        low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Contrast(
        metric=metric,
        a=a,
        b=b,
        group="all",
        mean=mean,
        low=float(low),
        high=float(high),
        family_low=mean - width,
        family_high=mean + width,
        p_family=p if scenes else float("nan"),
        scenes=scenes,
    )
