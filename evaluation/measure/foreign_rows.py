"""The table of a measurement: two to many models, paired where they painted the same scenes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from focusdpo.data_schemas.evaluations import EvalScene, ForeignScores
from focusdpo.data_schemas.runs import EvalRow
from focusdpo.evaluation.comparison import GROUPS, rows, scene_means
from focusdpo.evaluation.measure.foreign_plan import pairing
from focusdpo.evaluation.measure.judging import FOREIGN_METRICS
from focusdpo.evaluation.measure.published import PUBLISHED, PUBLISHED_METRICS
from focusdpo.evaluation.metrics import bootstrap
from focusdpo.evaluation.protocols import ADAPTER, BASE, DIFFERENCE, EvaluateConfig

_BESIDE = ("extra", "delta_own", "delta_other", *PUBLISHED_METRICS)
"""Metrics that `ForeignScores` has."""
ONE_SCENE = (
    "all pictures are of one scene: intervals are over scenes (subjects and prompt) and tell "
    "nothing here; give the prompts, where they differ"
)


@dataclass(frozen=True, slots=True)
class ForeignPicture:
    """Both records of one picture, with the metrics and fields of either."""

    judged: EvalScene
    scores: ForeignScores
    protocol: str

    @property
    def scene_id(self) -> str:
        """What the bootstrap draws."""
        return self.judged.scene_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scores if name in _BESIDE else self.judged, name)


def foreign_rows(
    judged: Mapping[str, Sequence[EvalScene]],
    scores: Mapping[str, Sequence[ForeignScores]],
    names: Mapping[str, str],
    config: EvaluateConfig,
    *,
    published: Sequence[str],
) -> tuple[list[EvalRow], list[str]]:
    """The rows of every model beside the first, and what must stand beside them. `judged` and
    `scores`: model -> records, in the order of `names`. `published`: the public protocols that
    were told."""
    table: list[EvalRow] = []
    scenes = {record.scene_id for records in judged.values() for record in records}
    notes = [ONE_SCENE] if len(scenes) == 1 else []
    protocols = {judged_protocol(judged): list(FOREIGN_METRICS)}
    protocols |= {id: list(PUBLISHED[id]) for id in published}
    for protocol, metrics in protocols.items():
        pictures = {
            model: [
                ForeignPicture(a, b, protocol)
                for a, b in zip(judged[model], scores[model], strict=True)
            ]
            for model in names
        }
        for model in [other for other in names if other != BASE]:
            model_rows, note = _pair(
                pictures.get(BASE, []), pictures[model], names, model, config, metrics
            )
            keys = {(row.metric, row.group, row.model) for row in table}
            table += [row for row in model_rows if (row.metric, row.group, row.model) not in keys]
            notes += [note] if note and note not in notes else []
    return table, notes


def judged_protocol(judged: Mapping[str, Sequence[EvalScene]]) -> str:
    """The id that the judge's records have."""
    return next(record.protocol for records in judged.values() for record in records)


def _pair(
    base: Sequence[ForeignPicture],
    other: Sequence[ForeignPicture],
    names: Mapping[str, str],
    model: str,
    config: EvaluateConfig,
    metrics: Sequence[str],
) -> tuple[list[EvalRow], str]:
    note = ""
    if not base:
        pair_rows = rows([], other, config, metrics)
    else:
        ids = [picture.scene_id for picture in base], [picture.scene_id for picture in other]
        how = pairing(*ids, (names[BASE], names[model]))
        note = how.note
        if how.scenes:
            ours, theirs = (
                [picture for picture in pictures if picture.scene_id in how.scenes]
                for pictures in (base, other)
            )
            pair_rows = rows(ours, theirs, config, metrics)
        else:
            pair_rows = _unpaired(base, other, config, metrics)
    called = {ADAPTER: model, DIFFERENCE: difference_of(model)}
    return [replace(row, model=called.get(row.model, row.model)) for row in pair_rows], note


def difference_of(model: str) -> str:
    """What a model's difference from the first is called in the table."""
    return DIFFERENCE if model == ADAPTER else f"{model} - {BASE}"


def _unpaired(
    base: Sequence[ForeignPicture],
    other: Sequence[ForeignPicture],
    config: EvaluateConfig,
    metrics: Sequence[str],
) -> list[EvalRow]:
    """As `comparison.rows`, of models that painted other scenes: each is resampled by itself."""
    table = []
    for group, belongs in GROUPS.items():
        mine, theirs = (
            [picture for picture in pictures if _in_group(belongs, picture)]
            for pictures in (base, other)
        )
        for metric in metrics:
            values = [
                np.array(list(scene_means(pictures, metric).values()))
                for pictures in (mine, theirs)
            ]
            known = [value[np.isfinite(value)] if value.size else value for value in values]
            parts = zip((BASE, ADAPTER), known, strict=True)
            by_model = {
                model: _interval(scene_values, config)
                for model, scene_values in parts
                if scene_values.size
            }
            if len(by_model) == 2:
                by_model[DIFFERENCE] = _difference(known[0], known[1], config)
            table += [
                EvalRow(
                    protocol=base[0].protocol, metric=metric, group=group, model=model, **interval
                )
                for model, interval in by_model.items()
            ]
    return table


def _in_group(belongs: Callable[[EvalScene], bool], picture: ForeignPicture) -> bool:
    return belongs(picture.judged)


def _interval(values: np.ndarray[Any, Any], config: EvaluateConfig) -> dict[str, Any]:
    return asdict(
        bootstrap(values, resamples=config.resamples, level=config.level, seed=config.seed)
    )


def _difference(
    a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], config: EvaluateConfig
) -> dict[str, Any]:
    """Of the means of b and a, each resampled by itself."""
    rng = np.random.default_rng(config.seed)

    def means(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.array(
            [
                values[rng.integers(0, values.size, values.size)].mean()
                for _ in range(config.resamples)
            ]
        )

    draws = means(b) - means(a)
    low, high = np.quantile(draws, [(1 - config.level) / 2, (1 + config.level) / 2])
    return {
        "mean": float(b.mean() - a.mean()),
        "low": float(low),
        "high": float(high),
        "scenes": int(min(a.size, b.size)),
    }
