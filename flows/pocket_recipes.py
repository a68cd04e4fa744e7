"""The pocket models are trained, and checked by the evaluation's own reading of their judge."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.scenes import Scene
from focusdpo.evaluation.pocket_protocol import measure
from focusdpo.evaluation.protocols import EvaluateConfig
from focusdpo.flows.settings import parse_overrides, resolve
from focusdpo.pipeline.parts import Judge, ReferenceImage
from focusdpo.pocket.cards import Figure
from focusdpo.pocket.classes import Split
from focusdpo.pocket.faults import FaultRow, PlantedScene, Verdict, check_judge
from focusdpo.pocket.weightfiles import WEIGHTS
from focusdpo.store.local import write_whole

if TYPE_CHECKING:
    from focusdpo.pocket.check import SamplingRow

LIKE = 0.7
"""Identity by the judge below which an instance is not like its subject, chosen
among steps of 0.05 by `focusdpo pocket check judge --split val --like VALUE`."""


def train(
    name: str, root: Path, overrides: Sequence[str], *, device: str = "cpu", workers: int = 0
) -> list[str]:
    """Train a pocket model under `root`, or all of them; what is there goes on.
    `workers` processes draw batches ahead.

    UserError for an unknown name or setting.
    """
    from focusdpo.pocket.fitting.recipe import on_machine
    from focusdpo.pocket.recipes import table

    if name == "all":
        if overrides:
            raise UserError("pocket train all: takes no --set; give it to one model's training")
        return _in_words(table.train_all(root, device=device, workers=workers))
    config = resolve(table.recipe_of(name).config, parse_overrides(overrides))
    config = on_machine(config, device=device, workers=workers)
    return _in_words(table.train(name, config, root))


def _in_words(figures: Sequence[Figure]) -> list[str]:
    return [
        f"{figure.model}: {figure.name} {figure.value:.4g}"
        + (f" (wanted {figure.wanted})" if figure.wanted else "")
        for figure in figures
    ]


def read_planted(
    judge: Judge, planted: Sequence[PlantedScene], *, like: float = LIKE
) -> list[Verdict]:
    """What the evaluation reads out of a judge's looks at planted scenes: its own matching and its
    own metrics, so that what is checked is what judges."""
    scenes: list[Scene] = []
    references: dict[str, Sequence[ReferenceImage]] = {}
    for number, each in enumerate(planted):
        names = tuple(f"{number}-{place}" for place in range(len(each.class_names)))
        references |= dict(zip(names, each.references, strict=True))
        scenes.append(
            Scene(
                id=str(number),
                partition=str(number),
                subject_ids=names,
                class_names=each.class_names,
                prompt=each.prompt,
                variant=0,
                seed=0,
            )
        )
    records = measure(
        "planted",
        scenes,
        [each.image for each in planted],
        references,
        judge,
        EvaluateConfig(),
    )
    return [
        Verdict(
            missing=record.missing > 0,
            doubled=record.duplicate > 0,
            confused=record.confusion > 0,
            unlike=any(
                box and value < like
                for box, value in zip(record.boxes, record.matched, strict=True)
            ),
            extra=record.seen > len(record.subject_ids),
            recognised=float(np.nan_to_num(record.class_recognition)) * (1 - record.missing),
        )
        for record in records
    ]


def judge_rows(
    weights: Path | None, scenes: int, *, split: Split = "held_out", like: float = LIKE
) -> list[FaultRow]:
    """The judge on true renders and planted faults, `scenes` of each; `like`: the
    identity below which an instance is not like its subject."""
    from focusdpo.pocket.models.judge import PocketJudge

    reader = functools.partial(read_planted, like=like)
    return check_judge(PocketJudge(weights or WEIGHTS), reader, scenes, split=split)


def painted_rows(
    weights: Path | None, scenes: int, *, guidance: float | None = None, steps: int | None = None
) -> list[FaultRow]:
    """What the generator makes of `scenes` validation scenes of each kind, by
    the judge of the same folder; without `guidance` and `steps` as it is stored."""
    from focusdpo.pocket.check import check_generator
    from focusdpo.pocket.models.generator import load_generator
    from focusdpo.pocket.models.judge import PocketJudge
    from focusdpo.pocket.models.pocket_painter import PocketGenerator

    folder = weights or WEIGHTS
    backbone = load_generator(folder)
    changed = {"guidance": guidance, "steps": steps}
    backbone.sampling = backbone.sampling.model_copy(
        update={name: value for name, value in changed.items() if value is not None}
    )
    painter = PocketGenerator(backbone)
    return check_generator(painter, PocketJudge(folder), read_planted, scenes)


def best_sampling(
    weights: Path, scenes: int, *, keep: bool
) -> tuple[list[SamplingRow], SamplingRow]:
    """Settings of the sampling, best first, and the one to use; with `keep` it is written into
    the generator's settings."""
    from focusdpo.pocket.check import cheapest, search_sampling
    from focusdpo.pocket.models.generator import load_generator
    from focusdpo.pocket.models.judge import PocketJudge
    from focusdpo.pocket.weightfiles import read_settings, settings_path

    rows = search_sampling(load_generator(weights), PocketJudge(weights), read_planted, scenes)
    chosen = cheapest(rows, scenes * len(rows[0].rows))
    if keep:
        path = settings_path("generator", weights)
        settings = {
            **read_settings("generator", weights),
            "sampling": chosen.sampling.model_dump(),
        }
        write_whole(path, (json.dumps(settings, indent=1) + "\n").encode())
    return rows, chosen


def figures_of(name: str, weights: Path) -> list[Figure]:
    """Figures of a model in a folder."""
    from focusdpo.pocket.check import check_all

    return check_all([name], reader=read_planted, weights=weights)
