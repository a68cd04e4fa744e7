"""A table of pictures to try `measure` on: composites of individuals of the embedded world.

Two "models" show the same twelve scenes: `careful` as they were asked for, `careless` with a fault
in three of four. The folder is what people bring: a table, pictures, a folder per subject.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from focusdpo.data_schemas.images import encode_png
from focusdpo.evaluation.folder import write_whole
from focusdpo.evaluation.held_out import HeldOutConfig, held_out_scenes
from focusdpo.evaluation.measure.composites import Fault, composite

SCENES = 12
CARELESS: Sequence[Fault] = ("none", "doubled", "missing", "replaced")
TABLE = "pictures.csv"
REFERENCES = "references"


def write_example(folder: Path, backgrounds: tuple[str, ...]) -> Path:
    """The table of the example, with all that it names, below `folder`; equal bytes every time.
    `backgrounds`: places that the embedded world's prompts name."""
    config = HeldOutConfig(singles=0, pairs=SCENES, same_class_pairs=0, triples=0)
    world = held_out_scenes(config, backgrounds)
    rows = []
    side = next(iter(world.subjects.values())).pictures[0].image.shape[0]
    for name, subject in world.subjects.items():
        own = folder / REFERENCES / name
        own.mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(subject.pictures):
            write_whole(own / f"{number}.png", encode_png(picture.image))
            write_whole(own / f"{number}_mask.png", encode_png(picture.mask))
        card = f"class_name: {subject.identity.class_name}\n"
        write_whole(own / "subject.yaml", card.encode())
    for model in ("careful", "careless"):
        for number, scene in enumerate(world.scenes):
            fault: Fault = "none" if model == "careful" else CARELESS[number % len(CARELESS)]
            cast = {name: world.references[name] for name in scene.subject_ids}
            picture = composite(fault, scene.subject_ids, cast, number, side=side)
            file = f"{model}-{number:02d}.png"
            write_whole(folder / file, encode_png(picture.image))
            rows.append((file, scene.prompt, ";".join(scene.subject_ids), model, number))
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerows([("image", "prompt", "subjects", "model", "seed"), *rows])
    write_whole(folder / TABLE, sink.getvalue().encode())
    return folder / TABLE
