"""Finished cells' records -> who differs from whom: families of contrasts with their intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from focusdpo.data_schemas.ablations import BASE, Contrast, Reading
from focusdpo.data_schemas.evaluations import EvalScene
from focusdpo.data_schemas.tables import from_parquet
from focusdpo.flows.ablation.cells import SCENES
from focusdpo.flows.ablation.config import FOCUS, RIVALS
from focusdpo.flows.ablation.plan import Cell
from focusdpo.flows.ablation.search import Choice
from focusdpo.flows.config import AblateRun
from focusdpo.pipeline.compare import GROUPS, scene_means
from focusdpo.pipeline.contrasts import ValueTable, contrasts
from focusdpo.pipeline.metrics import METRICS

DECIDING = ("identity", "leakage_margin")
Done = Sequence[tuple[Cell, dict[str, Any]]]
Records = Mapping[str, Mapping[int, list[EvalScene]]]
"""Arm -> seed -> what the judge saw."""


def value_tables(
    records: Records, metrics: Sequence[str], belongs: Callable[[EvalScene], bool]
) -> dict[str, ValueTable]:
    """Metric -> arm -> (S seeds, K scenes), scenes in the base's order."""
    scenes = list(dict.fromkeys(one.scene_id for one in records[BASE][0] if belongs(one)))
    tables: dict[str, ValueTable] = {}
    for metric in metrics:
        tables[metric] = {
            arm: np.array([_values(seeds[seed], metric, scenes) for seed in sorted(seeds)])
            for arm, seeds in records.items()
        }
    return tables


def _values(records: Sequence[EvalScene], metric: str, scenes: Sequence[str]) -> list[float]:
    means = scene_means(records, metric)
    return [means[scene] for scene in scenes]


def family_contrasts(run: AblateRun, records: Records, choice: Choice) -> list[Contrast]:
    """Families as `Contrast.family` tells them, and the groups of scenes for the chosen variant."""
    names = run.ablation.objectives
    sources = run.ablation.sources
    best = choice.best
    everything = GROUPS["all"]
    rest = [metric for metric in METRICS if metric not in DECIDING]
    main = f"{best}/{sources[0]}"
    others = [f"{name}/{sources[0]}" for name in names if name in (*RIVALS, *FOCUS)]
    found: list[Contrast] = []

    def family(
        name: str,
        pairs: Sequence[tuple[str, str]],
        metrics: Sequence[str],
        group: str = "all",
        belongs: Callable[[EvalScene], bool] = everything,
    ) -> None:
        stats = contrasts(
            value_tables(records, metrics, belongs),
            pairs,
            resamples=run.ablation.resamples,
            level=run.evaluate.level,
            seed=run.evaluate.seed,
        )
        found.extend(
            Contrast(
                a=one.a,
                b=one.b,
                metric=one.metric,
                group=group,
                mean=one.mean,
                low=one.low,
                high=one.high,
                family_low=one.family_low,
                family_high=one.family_high,
                p_family=one.p_family,
                scenes=one.scenes,
                family=name,
            )
            for one in stats
        )

    family("main", [(main, other) for other in others if other != main], DECIDING)
    trained = [f"{name}/{source}" for source in sources for name in names]
    family("base", [(arm, BASE) for arm in trained], DECIDING)
    family("guards", [(arm, BASE) for arm in trained], rest)
    for source in sources[1:]:
        arms = [f"{name}/{source}" for name in names]
        family(source, [(f"{best}/{source}", a) for a in arms if a != f"{best}/{source}"], DECIDING)
    for group, belongs in GROUPS.items():
        if group != "all" and any(belongs(one) for one in records[BASE][0]):
            metrics = DECIDING if group != "1 subject" else DECIDING[:1]
            family(f"group {group}", [(main, BASE)], metrics, group, belongs)
    return found


def reading_contrasts(run: AblateRun, cells: Done) -> list[Reading]:
    """Each other reading against the first cell, the default one; one family."""
    if not cells:
        return []
    names = ["default", *run.ablation.choices]
    records = {
        name: {0: read_records(cell.folder / SCENES, EvalScene)}
        for name, (cell, _) in zip(names, cells, strict=True)
    }
    settings = {name: cell.settings for name, (cell, _) in zip(names, cells, strict=True)}
    stats = contrasts(
        value_tables({BASE: records["default"], **records}, DECIDING, GROUPS["all"]),
        [(name, "default") for name in names[1:]],
        resamples=run.ablation.resamples,
        level=run.evaluate.level,
        seed=run.evaluate.seed,
    )
    return [
        Reading(
            name=one.a,
            settings=words_of(settings[one.a]),
            metric=one.metric,
            mean=one.mean,
            low=one.low,
            high=one.high,
            family_low=one.family_low,
            family_high=one.family_high,
            scenes=one.scenes,
        )
        for one in stats
    ]


def words_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings as the record holds them: numbers short, everything as text."""
    return {
        name: f"{value:g}" if isinstance(value, float) else str(value)
        for name, value in settings.items()
    }


def read_records(path: Path, record: type[Any]) -> list[Any]:
    """A Parquet table that a cell left. UserError names it when it is damaged."""
    return from_parquet(path.read_bytes(), record, str(path))
