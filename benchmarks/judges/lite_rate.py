"""Is `measure` as fast as its networks? `python -m benchmarks.judges.lite_rate WEIGHTS DATASET`.

Composites of two DreamBooth subjects, saved as files of 1024 x 1024, are measured slice by slice;
after each slice its networks' passes are made once more on the very inputs, which by then lie in
memory. What else the machine does falls on both. Told is the share of the bare passes in the whole:
of processor time, which on a CPU is the bound however many cores are busy, and of the clock. Every
slice pays what a whole run pays once: plan, references, intervals.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.measuring import BenchFigure
from focusdpo.evaluation.measure.composites import composite
from focusdpo.evaluation.measure.config import MeasureConfig
from focusdpo.evaluation.measure.foreign_plan import plan_pictures
from focusdpo.evaluation.measure.picture_rows import read_table
from focusdpo.evaluation.measure.reference_pictures import scaled
from focusdpo.evaluation.measure.run import Request, measure
from focusdpo.evaluation.measure.sight import PhotographSight
from focusdpo.evaluation.photographs import open_photographs, read_photograph
from focusdpo.evaluation.protocols import EvaluateConfig
from focusdpo.flows.measure.judges import ENCODER, SALIENCY
from focusdpo.pipeline.adapters.checked import Checked
from focusdpo.pipeline.adapters.image_encoder import ImageEncoder
from focusdpo.pipeline.adapters.segmenters.saliency import SaliencySegmenter
from focusdpo.pipeline.parts import ReferenceImage

SIDE, REFERENCE_SIDE, SUBJECTS = 1024, 512, ("dog", "cat")
DISTINCT = 16
"""Composites that are painted; further files are copies, and are measured as any other."""
PROMISED = 0.9
COLUMNS = ("image", "prompt", "subjects", "model")


@dataclass
class Passes:
    """The networks' passes of a slice, and what they were given."""

    made: list[tuple[Callable[[Any], Any], Any]] = field(default_factory=list)

    def watched(self, look: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The same function, whose inputs are kept."""

        def kept(given: Any) -> Any:
            self.made.append((look, given))
            return look(given)

        return kept

    def again(self) -> None:
        """All of them once more, and nothing else."""
        for look, given in self.made:
            look(given)
        self.made.clear()


@dataclass
class Spent:
    """Seconds."""

    clock: float = 0.0
    processor: float = 0.0

    def add(self, work: Callable[[], object]) -> None:
        """Do it."""
        clock, processor = time.perf_counter(), time.process_time()
        work()
        self.clock += time.perf_counter() - clock
        self.processor += time.process_time() - processor


def paint(folder: Path, dataset: Path, segmenter: Any, count: int) -> Path:
    """A table of so many composites as files, and its subjects' folders beside it."""
    photographs = open_photographs(dataset)
    references: dict[str, list[ReferenceImage]] = {}
    for name in SUBJECTS:
        own = folder / "references" / name
        own.mkdir(parents=True)
        (own / "subject.yaml").write_text(f"class_name: {photographs.classes[name]}\n")
        for number, file in enumerate(photographs.subjects[name].files):
            image = scaled(read_photograph(file), REFERENCE_SIDE)
            (found, *_) = segmenter.segment([image], [(name,)])[0]
            references.setdefault(name, []).append(ReferenceImage(image, found.mask))
            Image.fromarray(image).save(own / f"{number}.png")
            Image.fromarray(found.mask).save(own / f"{number}_mask.png")
    with (folder / "pictures.csv").open("w", newline="") as sink:
        table = csv.writer(sink)
        table.writerow(COLUMNS)
        for number in range(count):
            if number < DISTINCT:
                image = composite("none", SUBJECTS, references, number, side=SIDE).image
                Image.fromarray(image).save(folder / f"{number:05}.png")
            else:
                shutil.copy(folder / f"{number % DISTINCT:05}.png", folder / f"{number:05}.png")
            table.writerow(
                (f"{number:05}.png", f"scene {number // 2}", ";".join(SUBJECTS), f"m{number % 2}")
            )
    return folder / "pictures.csv"


def lite_rate(weights: Path, dataset: Path, count: int, size: int) -> list[BenchFigure]:
    """The figures of `count` pictures in slices of `size`."""
    segmenter: Any = SaliencySegmenter(weights / SALIENCY, "WEIGHTS")
    encoder: Any = ImageEncoder(weights / ENCODER, "WEIGHTS")
    regions: Any = Checked("segmenter", segmenter)
    features: Any = Checked("encoder", encoder)
    config, passes = EvaluateConfig(), Passes()
    sight = PhotographSight(regions, features, None, config, ("the small judge",))
    whole, bare, told = Spent(), Spent(), 0
    with tempfile.TemporaryDirectory() as scratch:
        table = paint(Path(scratch), dataset, segmenter, count)
        segmenter.look = passes.watched(segmenter.look)
        encoder.looker.look = passes.watched(encoder.looker.look)
        head, *lines = table.read_text().splitlines()
        for start in range(0, count, size):
            part = table.with_name(f"part-{start:05}.csv")
            part.write_text("\n".join([head, *lines[start : start + size], ""]))
            out = Path(scratch) / "out" / part.stem

            def judge(part: Path = part, out: Path = out) -> None:
                plan = plan_pictures(read_table(part, references=part.parent / "references"))
                measure(
                    Request(
                        plan=plan,
                        out=str(out),
                        judge=sight.fingerprint,
                        load=lambda: sight,
                        evaluate=config,
                        measure=MeasureConfig(),
                        check=False,
                        strict=False,
                        settings="{}",
                    )
                )

            whole.add(judge)
            told += len(passes.made)
            bare.add(passes.again)
            sys.stderr.write(f"{min(start + size, count)}/{count}\n")
    return [
        BenchFigure("pictures", count, ""),
        BenchFigure("passes of the networks", told, ""),
        BenchFigure("measure, a picture", whole.processor / count, "s"),
        BenchFigure("its networks alone, a picture", bare.processor / count, "s"),
        BenchFigure("of the bare rate, by processor time", bare.processor / whole.processor, ""),
        BenchFigure("of the bare rate, by the clock", bare.clock / whole.clock, ""),
    ]


def main() -> None:
    """Print the figures; exit code 1 where the promise is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--slice", type=int, default=100)
    told = parser.parse_args()
    figures = lite_rate(told.weights, told.dataset, told.pictures, told.slice)
    for figure in figures:
        sys.stdout.write(f"{figure.name:<40}{figure.value:>12.3f} {figure.unit}\n")
    reached = figures[-2].value
    sys.stdout.write(f"{'ok' if reached >= PROMISED else 'MISS'}: wanted {PROMISED}\n")
    sys.exit(0 if reached >= PROMISED else 1)


if __name__ == "__main__":
    main()
