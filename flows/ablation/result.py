"""Finished cells -> the `Ablation` record: tables, contrasts, curves, agreement."""

from __future__ import annotations

import json
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from focusdpo.data_schemas.ablations import (
    BASE,
    Ablation,
    Agreement,
    Arm,
    ArmRow,
    CurvePoint,
    SearchPoint,
)
from focusdpo.data_schemas.evaluations import EvalScene, ScorerView
from focusdpo.flows.ablation.cells import SCENES, SCORER
from focusdpo.flows.ablation.config import OBJECTIVES
from focusdpo.flows.ablation.contrasts import (
    Done,
    Records,
    family_contrasts,
    read_records,
    reading_contrasts,
    value_tables,
    words_of,
)
from focusdpo.flows.ablation.plan import Cell
from focusdpo.flows.ablation.search import Choice, score_of
from focusdpo.flows.config import AblateRun
from focusdpo.flows.machine import machine
from focusdpo.flows.settings import changes
from focusdpo.pipeline.agreement import AGREEMENT_METRICS, rank_agreement
from focusdpo.pipeline.compare import GROUPS, scene_means
from focusdpo.pipeline.contrasts import arm_rows
from focusdpo.pipeline.metrics import METRICS, nan_mean
from focusdpo.pipeline.versions import DatasetVersion


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
        records[name][cell.seed] = read_records(cell.folder / SCENES, EvalScene)
        views[name][cell.seed] = read_records(cell.folder / SCORER, ScorerView)
    first = {arm_name(cell): cell for cell, _ in reversed(done) if cell.seed == 0}
    main = run.ablation.sources[0]
    spent = [about["seconds"] for _, about in [*choice.tried, *done, *readings]]
    return Ablation(
        protocol=records[BASE][0][0].protocol,
        dataset_version=version.id,
        pairs=_pairs(done),
        steps=run.ablation.steps,
        batch_pairs=run.train.batch_pairs,
        seeds=tuple(range(run.ablation.seeds)),
        scenes=len({one.scene_id for one in records[BASE][0]}),
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
            name: _pictures(cell, Path(run.out)) for name, cell in first.items() if name in records
        },
        level=run.evaluate.level,
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
    """base, or objective/source."""
    return BASE if cell.train is None else f"{cell.objective}/{cell.source}"


def _arms(run: AblateRun, choice: Choice) -> list[Arm]:
    base = Arm(name=BASE, objective=BASE, label="base", source="", settings={})
    return [
        base,
        *(
            Arm(
                name=f"{objective}/{source}",
                objective=objective,
                label=OBJECTIVES[objective].label,
                source=source,
                settings=words_of(choice.settings[objective]),
            )
            for source in run.ablation.sources
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
        if any(belongs(one) for one in records[BASE][0]):
            rows += arm_rows(value_tables(records, list(METRICS), belongs), group=group)
    return rows


def _agreement(
    records: Records, views: Mapping[str, Mapping[int, list[ScorerView]]]
) -> list[Agreement]:
    """On the first seed's pictures."""
    rows = []
    for metric in AGREEMENT_METRICS:
        base = {"scorer": _mean(views[BASE][0], metric), "judge": _mean(records[BASE][0], metric)}
        for arm in records:
            spearman, pictures = rank_agreement(records[arm][0], views[arm][0], metric)
            rows.append(
                Agreement(
                    arm=arm,
                    metric=metric,
                    spearman=spearman,
                    pictures=pictures,
                    scorer_difference=np.nan
                    if arm == BASE
                    else _mean(views[arm][0], metric) - base["scorer"],
                    judge_difference=np.nan
                    if arm == BASE
                    else _mean(records[arm][0], metric) - base["judge"],
                )
            )
    return rows


def _mean(records: Sequence[EvalScene] | Sequence[ScorerView], metric: str) -> float:
    return nan_mean(np.array(list(scene_means(records, metric).values())))
