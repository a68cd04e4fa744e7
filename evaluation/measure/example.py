"""A table of pictures to try `measure` on: renders of individuals of the embedded world.

Two "models" show the same twelve scenes: `careful` as they were asked for, `careless` with a fault
in three of four. The folder is what people bring: a table, pictures, a folder per subject.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from focusdpo.data_schemas.images import encode_png
from focusdpo.data_schemas.scenes import stable_hash
from focusdpo.evaluation.held_out import HeldOutConfig, held_out_scenes
from focusdpo.pocket.figures import to_images
from focusdpo.pocket.world.world import render_scenes
from focusdpo.store.local import write_whole

SCENES = 12
TABLE = "pictures.csv"
REFERENCES = "references"
Pair = tuple[Any, Any]
CARELESS: Mapping[str, Callable[[Pair], tuple[Any, ...]]] = {
    "as asked": lambda pair: pair,
    "doubled": lambda pair: (*pair, pair[1]),
    "missing": lambda pair: pair[:1],
    "replaced": lambda pair: (pair[0], pair[0]),
}
"""Who stands in a picture of two individuals, in turn."""


def write_example(folder: Path, backgrounds: tuple[str, ...]) -> Path:
    """The table of the example, with all that it names, below `folder`; equal bytes every time.
    `backgrounds`: places that the embedded world's prompts name."""
    config = HeldOutConfig(singles=0, pairs=SCENES, same_class_pairs=0, triples=0, new_classes=0)
    world = held_out_scenes(config, backgrounds)
    for name, subject in world.subjects.items():
        subject_folder = folder / REFERENCES / name
        subject_folder.mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(subject.pictures):
            _write(subject_folder / f"{number}.png", encode_png(picture.image))
            _write(subject_folder / f"{number}_mask.png", encode_png(picture.mask))
        _write(
            subject_folder / "subject.yaml", f"class_name: {subject.identity.class_name}\n".encode()
        )
    rows: list[tuple[object, ...]] = [("image", "prompt", "subjects", "model", "seed")]
    faults = list(CARELESS.values())
    for model in ("careful", "careless"):
        for number, scene in enumerate(world.scenes):
            first, second = (world.subjects[name].identity for name in scene.subject_ids)
            show = faults[number % len(faults)] if model == "careless" else faults[0]
            seed = stable_hash("example", model, number) % 2**31
            shown = to_images(render_scenes([show((first, second))], [seed]).images)[0]
            file = f"{model}-{number:02d}.png"
            _write(folder / file, encode_png(shown))
            rows.append((file, scene.prompt, ";".join(scene.subject_ids), model, number))
    sink = io.StringIO()
    csv.writer(sink, lineterminator="\n").writerows(rows)
    _write(folder / TABLE, sink.getvalue().encode())
    return folder / TABLE


def _write(path: Path, data: bytes) -> None:
    """What is there already keeps its time, so that nothing is judged twice."""
    if not path.is_file() or path.read_bytes() != data:
        write_whole(path, data)
