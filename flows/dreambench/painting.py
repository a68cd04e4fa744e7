"""Painting a DreamBench run: thousands of pictures, so a stopped run goes on where it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from focusdpo.data_schemas.images import decode_png, encode_png
from focusdpo.data_schemas.scenes import Scene, candidate_seed
from focusdpo.flows.evaluation_files import write_json
from focusdpo.flows.progress import Watch
from focusdpo.pipeline.generate import paint
from focusdpo.pipeline.parts import Generator, Image, ReferenceImage

PAINTING = "painting.json"
"""Model -> key of the pictures that lie in images/<model>."""


def paint_missing(
    out: Path,
    model: str,
    key: str,
    scenes: Sequence[Scene],
    per_scene: int,
    references: Mapping[str, ReferenceImage],
    generator: Callable[[], Generator],
    *,
    batch: int,
    watch: Watch,
) -> list[str]:
    """`per_scene` pictures of each scene as `out`/images/`model`/*.png, scene by scene; their names
    below `out`.

    Pictures that an earlier run with the same `key` left are kept, those of another key removed;
    `generator` is called only when some are missing.
    """
    folder = out / "images" / model
    keys = json.loads((out / PAINTING).read_text("utf-8")) if (out / PAINTING).exists() else {}
    if keys.get(model) != key:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(out / PAINTING, {**keys, model: key})
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [(scene, index) for scene in scenes for index in range(per_scene)]
    names = [f"images/{model}/{scene.id}-{index}.png" for scene, index in wanted]
    missing = [at for at, name in enumerate(names) if not (out / name).exists()]
    if not missing:
        return names
    painter = generator()
    for start in range(0, len(missing), batch):
        part = missing[start : start + batch]
        made = paint(
            [wanted[at][0].prompt for at in part],
            [[references[name] for name in wanted[at][0].subject_ids] for at in part],
            [candidate_seed(wanted[at][0].seed, wanted[at][1]) for at in part],
            painter,
            batch=batch,
        )
        for at, picture in zip(part, made, strict=True):
            _write(out / names[at], encode_png(picture))
        done = len(names) - len(missing) + start + len(part)
        watch(f"paint {model}", done, len(names), {})
    return names


def read_pictures(out: Path, names: Sequence[str]) -> list[Image]:
    """Pictures (H, W, 3) by name. UserError for a damaged one."""
    return [decode_png((out / name).read_bytes(), str(out / name)) for name in names]


def _write(path: Path, data: bytes) -> None:
    # A picture is whole or absent: a run may be killed at any time.
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(data)
    temporary.replace(path)
