"""`measure` from Python, and a class for people's own loops.

from focusdpo.flows.measure.api import measure
result = measure("pictures.csv", out="measured", preset="flux-uno")
print(result.failed)

meter = Measurer(out="measured", references="subjects", preset="flux-uno")
for prompts, names, seeds in batches:
    meter.add_batch(paint(prompts), names, prompts=prompts, model="mine", seeds=seeds)
print(meter.compute().failed)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.images import encode_png
from focusdpo.evaluation.folder import write_whole
from focusdpo.evaluation.measure.run import MeasureResult
from focusdpo.flows.measure.config import MeasureRun
from focusdpo.flows.measure.run import Measure, write_page
from focusdpo.flows.settings import resolve
from focusdpo.pipeline.parts import Image

GIVEN = "given"
"""Below the results: pictures that came as arrays, and their table."""


def measure(pictures: str | Path, *, out: str | Path, **settings: Any) -> MeasureResult:
    """Measure a table or folder of pictures into `out`; `settings` are those of the command, as in
    `preset="flux-uno"`, `check=True`, `evaluate={"batch": 8}`.

    What cannot be measured stands in `result.left_out`. UserError as the command's.
    """
    run = resolve(MeasureRun, {"pictures": str(pictures), "out": str(out), **settings})
    job = Measure(run)
    job.require_inputs()
    result = job.judge()
    if not job.is_reported(result):
        write_page(result.out)
    return result


class Measurer:
    """Collects pictures batch by batch, then measures them all. A further `compute` after more
    batches judges the new ones alone."""

    def __init__(self, *, out: str | Path, references: str | Path, **settings: Any) -> None:
        """`references`: a folder of subjects (docs/own_subjects.md); `settings` as `measure`'s."""
        self._out, self._settings = Path(out), {**settings, "references": str(references)}
        self._rows: list[dict[str, Any]] = []

    def add_batch(
        self,
        images: Sequence[Image | PillowImage.Image],
        subjects: Sequence[Sequence[str]],
        *,
        prompts: Sequence[str] | None = None,
        model: str = "model",
        seeds: Sequence[int] | None = None,
    ) -> None:
        """Pictures (H, W, 3) uint8 or Pillow's, and the names of each one's subjects. UserError
        for lists of different lengths and for what is no picture."""
        count = len(images)
        beside: Mapping[str, Sequence[Any] | None] = {
            "subjects": subjects, "prompts": prompts, "seeds": seeds,
        }  # fmt: skip
        for name, values in beside.items():
            if values is not None and len(values) != count:
                raise UserError(f"add_batch: {count} images and {len(values)} {name}")
        folder = self._out / GIVEN
        folder.mkdir(parents=True, exist_ok=True)
        for at, image in enumerate(images):
            name = f"{len(self._rows):06d}.png"
            _write_if_new(folder / name, encode_png(_pixels(image)))
            row: dict[str, Any] = {"image": name, "subjects": list(subjects[at]), "model": model}
            if prompts is not None:
                row["prompt"] = prompts[at]
            if seeds is not None:
                row["seed"] = int(seeds[at])
            self._rows.append(row)

    def compute(self) -> MeasureResult:
        """Of all pictures so far. UserError as `measure`."""
        if not self._rows:
            raise UserError("compute: no pictures; add_batch first")
        table = self._out / GIVEN / "pictures.jsonl"
        lines = "".join(f"{json.dumps(row)}\n" for row in self._rows)
        write_whole(table, lines.encode())
        return measure(table, out=self._out, **self._settings)


def _write_if_new(path: Path, data: bytes) -> None:
    """The same picture of a loop that runs again keeps its time, and so what was judged of it."""
    if not path.is_file() or path.read_bytes() != data:
        write_whole(path, data)


def _pixels(image: Image | PillowImage.Image) -> Image:
    pixels = np.asarray(image.convert("RGB") if isinstance(image, PillowImage.Image) else image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise UserError(
            f"add_batch: an image is {pixels.shape} {pixels.dtype}, expected uint8 (H, W, 3)"
        )
    return pixels
