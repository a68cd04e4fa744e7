"""What the generator makes of scenes, seen by the judge: the share of pictures that fail, by kind.

The table is the judge's own (`pocket/second/faults.py`), so that a painter's failures stand beside
what the judge says of true renders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from focusdpo.pipeline.judge import Judge
from focusdpo.pipeline.parts import Generator
from focusdpo.pocket.classes import BACKGROUNDS, Split
from focusdpo.pocket.second.faults import (
    KINDS,
    FaultRow,
    Kind,
    PlantedScene,
    Reader,
    draw_asked,
    draw_references,
    tabulate,
)
from focusdpo.pocket.second.grammar import prompt_for

BATCH = 16


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
    words = tuple(one.class_name for one in asked)
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
