"""`focusdpo generate --compare`: base and adapter on one order, with the judge's numbers, in a
folder.

compare.json                           last: the order, and what the judge says of each picture
base-<n>.png, adapter-<n>.png          what each model painted with the n-th seed
reference-<n>.png                      the subjects as the models are shown them
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.evaluations import EvalScene
from focusdpo.data_schemas.images import encode_png
from focusdpo.data_schemas.strict import StrictModel, first_problem
from focusdpo.evaluation.folder import write_whole
from focusdpo.evaluation.protocols import ADAPTER, BASE
from focusdpo.flows.generate.inference import Subject
from focusdpo.flows.generate.side_by_side import Side, SideBySide
from focusdpo.reports.evaluation_section import verdict_words

COMPARED = "compare.json"


class Judged(StrictModel):
    """A picture, and what the judge says of it."""

    file: str = Field(pattern=r"^(base|adapter)-\d+\.png$")
    seed: int
    identity: float | None = Field(description="mean over subjects; a missing one counts 0")
    leakage_margin: float | None = Field(description="None for one subject alone")
    each: tuple[float | None, ...] = Field(description="identity per subject; None: not found")
    words: str = Field(description="who is missing, confused or painted twice")

    @property
    def weakest(self) -> int | None:
        """Which subject failed: the first that is missing, else the least like itself among
        several; None for one alone that is there."""
        if None in self.each:
            return self.each.index(None)
        known = [value for value in self.each if value is not None]
        return known.index(min(known)) if len(known) > 1 else None


class Compared(StrictModel):
    """compare.json."""

    prompt: str
    class_names: tuple[str, ...]
    names: tuple[str, ...] = Field(description="of the references' files, without suffix")
    references: tuple[Annotated[str, Field(pattern=r"^reference-\d+\.png$")], ...]
    adapter: str
    sides: dict[str, tuple[Judged, ...]] = Field(description="base and adapter, by seed")

    @property
    def files(self) -> frozenset[str]:
        """Its pictures, by their names in the folder."""
        painted = {picture.file for side in self.sides.values() for picture in side}
        return frozenset(painted | set(self.references))

    def mean(self, model: str, metric: str) -> float | None:
        """A number over a model's pictures; None where it has no meaning."""
        values = [getattr(picture, metric) for picture in self.sides[model]]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None


def compare(
    both: SideBySide, prompt: str | None, subjects: Sequence[Subject], seeds: Sequence[int],
    out: Path,
) -> Compared:  # fmt: skip
    """Paint and judge an order into `out`, which is made. UserError for bad input, for a
    folder that holds something, and when it cannot be written."""
    assert both.adapted is not None
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out {out}: is not empty; --compare writes a folder of its own")
    painted = both.paint(prompt, subjects, seeds)
    try:
        out.mkdir(parents=True, exist_ok=True)
        references = []
        for at, (file, word) in enumerate(subjects):
            references.append(f"reference-{at}.png")
            write_whole(out / references[-1], encode_png(both.base.read(file, word).image))
        about = painted[0].pictures[0].about
        made = Compared(
            prompt=about.prompt,
            class_names=about.class_names,
            names=tuple(Path(file).stem for file, _ in subjects),
            references=tuple(references),
            adapter=str(both.adapted.adapter),
            sides={
                model: _judged(model, side, out)
                for model, side in zip((BASE, ADAPTER), painted, strict=True)
            },
        )
        write_whole(out / COMPARED, made.model_dump_json(indent=1).encode())
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror or error})") from error
    return made


def _judged(model: str, side: Side, out: Path) -> tuple[Judged, ...]:
    made = []
    for at, (painted, record) in enumerate(zip(side.pictures, side.records, strict=True)):
        file = f"{model}-{at}.png"
        painted.save(out / file)
        made.append(
            Judged(
                file=file,
                seed=painted.about.seeds[0],
                identity=_known(record.identity),
                leakage_margin=_known(record.leakage_margin),
                each=_each(record),
                words=verdict_words(record),
            )
        )
    return tuple(made)


def _each(record: EvalScene) -> tuple[float | None, ...]:
    return tuple(
        value if box else None for value, box in zip(record.matched, record.boxes, strict=True)
    )


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def read_compared(folder: Path) -> Compared | None:
    """What `compare` left; None where it did not end. UserError for a damaged file."""
    path = folder / COMPARED
    try:
        return _read(path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        return None


@functools.lru_cache(maxsize=4)
def _read(path: Path, stamp: int) -> Compared:
    try:
        return Compared.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(f"{path}: {first_problem(error)}; compare anew") from error
