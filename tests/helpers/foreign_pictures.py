"""Tables of pictures of the toy world, as people bring them: files, subjects, models."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import toy_suite
import toy_world
from PIL import Image

from focusdpo.evaluation.measure.config import MeasureConfig
from focusdpo.evaluation.measure.foreign_plan import plan_pictures
from focusdpo.evaluation.measure.picture_rows import read_table
from focusdpo.evaluation.measure.run import Request
from focusdpo.evaluation.measure.sight import PhotographSight, Sight
from focusdpo.evaluation.protocols import EvaluateConfig

HUES = {"red": ("disc", 0.0), "blue": ("square", 240.0), "green": ("disc", 120.0)}
CONFIG = EvaluateConfig(resamples=200, batch=4, min_area=0.001)
Thing = tuple[str, float, int]
RIGHT: tuple[Thing, ...] = (("disc", 0.0, 0), ("square", 240.0, 2))
DOUBLED: tuple[Thing, ...] = (("disc", 0.0, 0), ("disc", 0.0, 1), ("square", 240.0, 2))
MISSING: tuple[Thing, ...] = (("disc", 0.0, 0),)
SWAPPED: tuple[Thing, ...] = (("disc", 240.0, 0), ("square", 0.0, 2))


def sight(config: EvaluateConfig = CONFIG) -> PhotographSight:
    """A judge that computes."""
    parts: Any = (toy_world.Segmenter(), toy_world.Identity(), toy_world.Clip())
    return PhotographSight(*parts, config, ("toy",))


def write_rows(
    folder: Path,
    shown: dict[str, Sequence[Sequence[Thing]]],
    names: Sequence[str] = ("red", "blue"),
) -> Path:
    """`shown`: model -> what stands in its picture of each scene; a table and its subjects."""
    toy_suite.write_subjects(folder / "references", HUES)
    rows = []
    for model, pictures in shown.items():
        for number, things in enumerate(pictures):
            file = f"{model}-{number}.png"
            Image.fromarray(toy_world.picture(things, number)).save(folder / file)
            prompt = f"a disc and a square {number}"
            rows.append({"image": file, "prompt": prompt, "subjects": list(names), "model": model})
    table = folder / "pictures.jsonl"
    table.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return table


def request(
    table: Path,
    out: Path,
    load: Callable[[], Sight] = sight,
    config: EvaluateConfig = CONFIG,
    **other: Any,
) -> Request:
    """A measurement by the toy judge."""
    settings: dict[str, Any] = {"check": False, "strict": False, **other}
    plan = plan_pictures(read_table(table, references=table.parent / "references"))
    return Request(
        plan=plan,
        out=str(out),
        judge="toy",
        load=load,
        evaluate=config,
        measure=MeasureConfig(composites=6),
        settings="{}",
        **settings,
    )
