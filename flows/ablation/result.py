"""Finished cells -> the `Ablation` record: tables, families of contrasts, curves, agreement."""

from __future__ import annotations

import json
import shlex
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from focusdpo.data_schemas.ablations import (
    BASE,
    Ablation,
    Agreement,
    Arm,
    ArmRow,
    Contrast,
    CurvePoint,
    Reading,
    SearchPoint,
)
from focusdpo.data_schemas.evaluations import EvalScene, ScorerView
from focusdpo.evaluation.agreement import AGREEMENT_METRICS, rank_agreement
from focusdpo.evaluation.comparison import GROUPS, ValueTable, arm_rows, contrasts, scene_means
from focusdpo.evaluation.folder import EvaluationFolder
from focusdpo.evaluation.metrics import METRICS, nan_mean
from focusdpo.flows.ablation.cells import Cell
from focusdpo.flows.ablation.search import Choice, score_of
from focusdpo.flows.config import AblateRun
from focusdpo.flows.settings import changes
from focusdpo.model.objective_registry import VARIANTS
from focusdpo.store.provenance import machine
from focusdpo.store.versions import DatasetVersion

DECIDING = ("failed", "identity", "leakage_margin")
Done = Sequence[tuple[Cell, dict[str, Any]]]
Records = Mapping[str, Mapping[int, list[EvalScene]]]
"""Arm -> seed -> what the judge saw."""


def value_tables(
    records: Records, metrics: Sequence[str], belongs: Callable[[EvalScene], bool]
) -> dict[str, ValueTable]:
    """Metric -> arm -> (S seeds, K scenes), scenes in the base's order."""
    scenes = list(dict.fromkeys(record.scene_id for record in records[BASE][0] if belongs(record)))
    tables: dict[str, ValueTable] = {}
    for metric in metrics:
        tables[metric] = {
            arm: np.array(
                [
                    [means[scene] for scene in scenes]
                    for seed in sorted(seeds)
                    for means in [scene_means(seeds[seed], metric)]
                ]
            )
            for arm, seeds in records.items()
        }
    return tables


def family_contrasts(run: AblateRun, records: Records, choice: Choice) -> list[Contrast]:
    """Families as `Contrast.family` tells them, and the groups of scenes for the chosen variant."""
    names = run.ablation.objectives
    sources = [condition.name for condition in run.ablation.conditions]
    untrained = [arm for arm in records if "/" not in arm and arm != BASE]
    best = choice.best
    everything = GROUPS["all"]
    rest = [metric for metric in METRICS if metric not in DECIDING]
    main = f"{best}/{sources[0]}"
    others = [*(f"{name}/{sources[0]}" for name in names), *untrained]
    all_contrasts: list[Contrast] = []

    def family(
        name: str,
        pairs: Sequence[tuple[str, str]],
        metrics: Sequence[str],
        group: str = "all",
        belongs: Callable[[EvalScene], bool] = everything,
    ) -> None:
        all_contrasts.extend(
            contrasts(
                value_tables(records, metrics, belongs),
                pairs,
                resamples=run.ablation.resamples,
                level=run.evaluate.level,
                seed=run.evaluate.seed,
                group=group,
                family=name,
            )
        )

    family("main", [(main, other) for other in others if other != main], DECIDING)
    arms = [*untrained, *(f"{name}/{source}" for source in sources for name in names)]
    family("base", [(arm, BASE) for arm in arms], DECIDING)
    family("guards", [(arm, BASE) for arm in arms], rest)
    for source in sources[1:]:
        arms = [f"{name}/{source}" for name in names]
        family(source, [(f"{best}/{source}", a) for a in arms if a != f"{best}/{source}"], DECIDING)
    for group, belongs in GROUPS.items():
        if group != "all" and any(belongs(record) for record in records[BASE][0]):
            metrics = [
                metric for metric in DECIDING if group != "1 subject" or metric != "leakage_margin"
            ]
            family(f"group {group}", [(main, BASE)], metrics, group, belongs)
    return all_contrasts


def reading_contrasts(run: AblateRun, cells: Done) -> list[Reading]:
    """Each other reading against the first cell, the default one; one family."""
    if not cells:
        return []
    names = ["default", *run.ablation.choices]
    records = {
        name: {0: EvaluationFolder(cell.folder).records}
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
            name=stat.a,
            settings=words_of(settings[stat.a]),
            **{name: getattr(stat, name) for name in _OF_A_READING},
        )
        for stat in stats
    ]


_OF_A_READING = ("metric", "mean", "low", "high", "family_low", "family_high", "scenes")


def words_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings as the record holds them: numbers short, everything as text."""
    return {
        name: f"{value:g}" if isinstance(value, float) else str(value)
        for name, value in settings.items()
    }


def compare(
    run: AblateRun,
    version: DatasetVersion,
    choice: Choice,
    done: Done,
    readings: Done,
    *,
    wall_seconds: float,
) -> Ablation:
    """The whole result of finished cells; reads what they left and paints nothing."""
    arms = _arms(run, choice)
    records: dict[str, dict[int, list[EvalScene]]] = defaultdict(dict)
    views: dict[str, dict[int, list[ScorerView]]] = defaultdict(dict)
    for cell, _ in done:
        name = arm_name(cell)
        left = EvaluationFolder(cell.folder)
        seen, scored = left.records, left.views
        if cell.kind == "best":
            seen, scored = best_pictures(seen, scored)
        records[name][cell.seed], views[name][cell.seed] = seen, scored
    first = {arm_name(cell): cell for cell, _ in reversed(done) if cell.seed == 0}
    main = run.ablation.conditions[0].name
    spent = [about["seconds"] for _, about in [*choice.tried, *done, *readings]]
    return Ablation(
        protocol=records[BASE][0][0].protocol,
        dataset_version=version.id,
        pairs=_pairs(done),
        steps=run.ablation.steps,
        batch_pairs=run.train.batch_pairs,
        seeds=tuple(range(run.ablation.seeds)),
        scenes=len({record.scene_id for record in records[BASE][0]}),
        validation_scenes=run.ablation.validation_scenes,
        arms=tuple(arms),
        best=f"{choice.best}/{main}",
        search=tuple(_search(choice)),
        curves=tuple(_curves(choice)),
        rows=tuple(_rows(records)),
        contrasts=tuple(family_contrasts(run, records, choice)),
        agreement=tuple(_agreement(records, views)),
        metrics_better={name: metric.better for name, metric in METRICS.items()},
        seconds=round(sum(spent), 1),
        wall_seconds=wall_seconds,
        workers=run.ablation.workers,
        machine={name: str(value) for name, value in machine().items()},
        command=command_of(run),
        pictures={
            name: _pictures(cell, Path(run.out))
            for name, cell in first.items()
            if name in records and cell.kind != "best"
        },
        level=run.evaluate.level,
        deciding=DECIDING,
        readings=tuple(reading_contrasts(run, readings)),
    )


def command_of(run: AblateRun) -> str:
    """What to type for this run: all that differs from its preset."""
    plain = AblateRun.model_validate({"preset": run.preset, "out": run.out})
    changed = changes(plain.model_dump(mode="json"), run.model_dump(mode="json"))
    options = {"root": "--root", "version": "--version"}
    words = ["focusdpo", "ablate", "--preset", run.preset, "--out", run.out]
    for name, value in changed.items():
        text = value if isinstance(value, str) else json.dumps(value)
        words += [options[name], text] if name in options else ["--set", f"{name}={text}"]
    return shlex.join(words)


def arm_name(cell: Cell) -> str:
    """base, "best of 4", or objective/source."""
    return cell.objective if cell.train is None else f"{cell.objective}/{cell.source}"


def best_pictures(
    records: Sequence[EvalScene], views: Sequence[ScorerView]
) -> tuple[list[EvalScene], list[ScorerView]]:
    """Of each scene the picture that the preference scorer likes best, as stage rank would: all
    subjects found once, then identity and leakage margin; the judge has no say."""

    def score(view: ScorerView) -> tuple[bool, float, int]:
        margin = float(np.nan_to_num(view.leakage_margin))
        return view.complete, view.identity + margin, -view.index

    best: dict[str, ScorerView] = {}
    for view in views:
        held = best.get(view.scene_id)
        if held is None or score(view) > score(held):
            best[view.scene_id] = view
    chosen = {(view.scene_id, view.index) for view in best.values()}
    return (
        [record for record in records if (record.scene_id, record.index) in chosen],
        list(best.values()),
    )


def _arms(run: AblateRun, choice: Choice) -> list[Arm]:
    base = Arm(name=BASE, objective=BASE, label="base", source="", settings={})
    return [
        base,
        *(
            Arm(name=name, objective="best_of", label=name, source="", settings={})
            for name in (f"best of {count}" for count in run.ablation.best_of)
        ),
        *(
            Arm(
                name=f"{objective}/{source}",
                objective=objective,
                label=VARIANTS[objective].label,
                source=source,
                settings=words_of(choice.settings[objective]),
            )
            for source in (condition.name for condition in run.ablation.conditions)
            for objective in run.ablation.objectives
        ),
    ]


def _pictures(cell: Cell, out: Path) -> str:
    model = BASE if cell.train is None else "adapter"
    return str((cell.folder / "images" / model).relative_to(out))


def _pairs(done: Done) -> dict[str, int]:
    return {cell.source: about["train"]["pairs"] for cell, about in done if cell.source}


def _search(choice: Choice) -> list[SearchPoint]:
    points = []
    for cell, about in choice.tried:
        last, final = about["train"]["validation"][-1], about["train"]["final"]
        gap, error = final.get("win_gap", np.nan), final.get("win_error", np.nan)
        points.append(
            SearchPoint(
                objective=cell.objective,
                settings=words_of(cell.settings),
                score=score_of(about),
                identity=last["identity"],
                leakage_margin=last["leakage_margin"],
                winner_rise=float(gap / (error - gap)),
                chosen=cell.key in choice.chosen,
            )
        )
    return points


def _curves(choice: Choice) -> list[CurvePoint]:
    """The chosen settings' looks; at step 0 every metric is the base's."""
    return [
        CurvePoint(
            objective=cell.objective, step=int(row["step"]), metric=metric, value=row[metric]
        )
        for cell, about in choice.tried
        if cell.key in choice.chosen
        for metric in METRICS
        for row in [{"step": 0, metric: 0.0}, *about["train"]["validation"]]
        if metric in row
    ]


def _rows(records: Records) -> list[ArmRow]:
    rows: list[ArmRow] = []
    for group, belongs in GROUPS.items():
        if any(belongs(record) for record in records[BASE][0]):
            rows += arm_rows(value_tables(records, list(METRICS), belongs), group=group)
    return rows


def _agreement(
    records: Records, views: Mapping[str, Mapping[int, list[ScorerView]]]
) -> list[Agreement]:
    """On the first seed's pictures."""
    rows = []
    for metric in AGREEMENT_METRICS:
        for arm in records:
            spearman, pictures = rank_agreement(records[arm][0], views[arm][0], metric)
            scorer, judge = (
                np.nan if arm == BASE else _mean(of[arm][0], metric) - _mean(of[BASE][0], metric)
                for of in (views, records)
            )
            rows.append(
                Agreement(
                    arm=arm,
                    metric=metric,
                    spearman=spearman,
                    pictures=pictures,
                    scorer_difference=scorer,
                    judge_difference=judge,
                )
            )
    return rows


def _mean(records: Sequence[EvalScene] | Sequence[ScorerView], metric: str) -> float:
    return nan_mean(np.array(list(scene_means(records, metric).values())))
