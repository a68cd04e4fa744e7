"""What the models of a folder reach on individuals that no training saw.

The generator is seen by the judge: the share of pictures that fail, by kind of scene. The table is
the judge's own (`pocket/faults.py`), so that a painter's failures stand beside what the
judge says of true renders.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from focusdpo.model.backbones.flux import FluxBackbone, SamplingConfig
from focusdpo.pipeline.adapters.painter import BackbonePainter
from focusdpo.pipeline.parts import Generator, Judge
from focusdpo.pocket.cards import Figure
from focusdpo.pocket.classes import BACKGROUNDS, Split
from focusdpo.pocket.faults import (
    KINDS,
    FaultRow,
    Kind,
    PlantedScene,
    Reader,
    draw_asked,
    draw_references,
    tabulate,
)
from focusdpo.pocket.figures import (
    autoencoder_figures,
    clip_figures,
    identity_figures,
    judge_figures,
    segmenter_figures,
)
from focusdpo.pocket.models.clip import PocketClip
from focusdpo.pocket.models.generator import load_generator
from focusdpo.pocket.models.identity import PocketIdentity
from focusdpo.pocket.models.judge import PocketJudge
from focusdpo.pocket.models.segmenter import PocketSegmenter
from focusdpo.pocket.weightfiles import WEIGHTS
from focusdpo.pocket.world.grammar import prompt_for

log = logging.getLogger(__name__)

MODELS = ("autoencoder", "segmenter", "identity", "clip", "judge", "generator")
BATCH = 16


def check_all(
    models: Sequence[str] = MODELS,
    *,
    reader: Reader,
    scenes: int = 64,
    weights: Path = WEIGHTS,
) -> list[Figure]:
    """All figures of the models in a folder; `scenes` of each kind are painted."""
    measures: dict[str, Callable[[], list[Figure]]] = {
        "autoencoder": lambda: autoencoder_figures(weights),
        "segmenter": lambda: segmenter_figures(PocketSegmenter(weights)),
        "identity": lambda: identity_figures(PocketIdentity(weights)),
        "clip": lambda: clip_figures(PocketClip(weights)),
        "judge": lambda: judge_figures(PocketJudge(weights)),
        "generator": lambda: generator_figures(weights, reader, scenes),
    }
    figures = []
    for name in models:
        log.info("measuring %s", name)
        figures += measures[name]()
    return figures


def generator_figures(weights: Path, reader: Reader, scenes: int) -> list[Figure]:
    """What the judge recognises, and how many pictures fail, on validation individuals."""
    painter = BackbonePainter(load_generator(weights), "check", BATCH)
    rows = check_generator(painter, PocketJudge(weights), reader, scenes)
    model = "generator"
    asked = {"one": ">= 0.92", "two classes": ">= 0.92"}
    return [
        Figure(model, f"class recognised, {row.kind}", row.recognised, asked.get(row.kind, ""))
        for row in rows
    ] + [Figure(model, f"pictures that fail, {row.kind}", row.failed, "") for row in rows]


def paint_asked(
    generator: Generator,
    count: int,
    *,
    split: Split = "val",
    seed: int = 1,
    kinds: Sequence[Kind] = KINDS,
    references: int = 2,
) -> list[PlantedScene]:
    """`count` painted scenes of each kind, of individuals of a split; the painter sees each
    subject's first reference, the judge all."""
    painted = []
    for kind in kinds:
        asked_scenes = [_ask(kind, split, seed, number, references) for number in range(count)]
        for start in range(0, count, BATCH):
            part = asked_scenes[start : start + BATCH]
            images = generator.generate(
                [scene.prompt for scene in part],
                [[pictures[0] for pictures in scene.references] for scene in part],
                [seed * 100_000 + start + i for i in range(len(part))],
            )
            painted += [
                replace(scene, image=image) for scene, image in zip(part, images, strict=True)
            ]
    return painted


def check_generator(
    generator: Generator,
    judge: Judge,
    reader: Reader,
    count: int,
    *,
    split: Split = "val",
    seed: int = 1,
) -> list[FaultRow]:
    """A row for each kind of scene."""
    painted = paint_asked(generator, count, split=split, seed=seed)
    return tabulate(painted, reader(judge, painted))


def _ask(kind: Kind, split: Split, seed: int, number: int, references: int) -> PlantedScene:
    """What is asked, its picture still blank."""
    rng = np.random.default_rng([seed, KINDS.index(kind), number, 0xA5])
    asked = draw_asked(kind, split, rng)
    words = tuple(subject.class_name for subject in asked)
    return PlantedScene(
        kind=kind,
        fault="painted",
        image=np.zeros((1, 1, 3), np.uint8),
        prompt=prompt_for(words, str(rng.choice(BACKGROUNDS))),
        class_names=words,
        references=draw_references(asked, references, rng),
        asked=tuple(asked),
        shown=(),
        masks=(),
    )


@dataclass(frozen=True)
class SamplingRow:
    """What a setting of the sampling gives, over all kinds of scenes."""

    sampling: SamplingConfig
    failed: float
    """Share of pictures with a failed subject, mean over kinds."""
    recognised: float
    """Share of asked classes that the judge recognises, in scenes of one and of two classes."""
    rows: tuple[FaultRow, ...]


def search_sampling(
    backbone: FluxBackbone,
    judge: Judge,
    reader: Reader,
    count: int,
    *,
    guidances: Sequence[float] = (1.0, 2.0, 3.5, 5.0),
    steps: Sequence[int] = (12, 20),
    seed: int = 2,
) -> list[SamplingRow]:
    """All settings on the same validation scenes, fewest failed pictures first: the base is shown
    at its best, and its adapters paint as it does."""
    stored, table = backbone.sampling, []
    for guidance, number in itertools.product(guidances, steps):
        backbone.sampling = stored.model_copy(update={"guidance": guidance, "steps": number})
        painter = BackbonePainter(backbone, "search", BATCH)
        rows = check_generator(painter, judge, reader, count, seed=seed)
        easy = [row.recognised for row in rows if row.kind in ("one", "two classes")]
        table.append(
            SamplingRow(
                backbone.sampling,
                float(np.mean([row.failed for row in rows])),
                float(np.mean(easy)),
                tuple(rows),
            )
        )
    backbone.sampling = stored
    return sorted(table, key=lambda row: (row.failed, row.sampling.steps))


def cheapest(table: Sequence[SamplingRow], pictures: int) -> SamplingRow:
    """Of the settings that fail no more than the best one and its standard error, over so many
    pictures, the one with the fewest steps; of those the one that fails least."""
    least = min(row.failed for row in table)
    bound = least + (least * (1 - least) / pictures) ** 0.5
    good = [row for row in table if row.failed <= bound]
    return min(good, key=lambda row: (row.sampling.steps, row.failed))
