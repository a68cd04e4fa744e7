"""Is `measure` as fast as its networks? `python -m benchmarks.judges.lite_rate WEIGHTS DATASET`.

Composites of two DreamBooth subjects, saved as files of 1024 x 1024, are measured in one run, the
networks on one thread. After every fourth batch its networks' passes are made once more on the very
inputs, which by then lie in memory: that is their bare rate, and what else the machine does falls
on both. Told is what the bare passes are of the whole, in processor time, which bounds the rate
however many cores are busy, and by the clock. The whole is all of the run: plan, references,
intervals, records. Before that stands what its parts cost that are no passes, measured at the end
on the distinct pictures with nothing beside.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.measuring import BenchFigure
from focusdpo.data_schemas.images import encode_jpeg
from focusdpo.evaluation.measure.composites import composite
from focusdpo.evaluation.measure.config import MeasureConfig
from focusdpo.evaluation.measure.foreign_plan import plan_pictures
from focusdpo.evaluation.measure.picture_rows import read_table
from focusdpo.evaluation.measure.run import Request, measure
from focusdpo.evaluation.measure.shown_pictures import scaled
from focusdpo.evaluation.measure.sight import PhotographSight
from focusdpo.evaluation.metrics import thumb
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
EVERY = 4
"""Of so many batches, one's passes are made again."""
PROMISED = 0.9
SHARE = "of the bare rate, by processor time"
COLUMNS = ("image", "prompt", "subjects", "model")


@dataclass
class Spent:
    """Seconds of the clock and of the processor."""

    clock: float = 0.0
    processor: float = 0.0

    def add(self, work: Callable[[], object], processor: Callable[[], float]) -> None:
        """Do it; `processor` is the clock of this thread or of the whole process."""
        clock, before = time.perf_counter(), processor()
        work()
        self.clock += time.perf_counter() - clock
        self.processor += processor() - before


@dataclass
class Passes:
    """The networks' passes of a run, some of them made again."""

    batch: int
    """Pictures."""
    again: Spent = field(default_factory=Spent)
    pictures: int = 0
    """Whose passes were made again."""
    made: int = 0
    inside: float = 0.0
    """Seconds of the processor in all passes of the run."""
    _batch: list[tuple[Callable[[Any], Any], Any]] = field(default_factory=list)
    _batches: int = 0

    def watched(self, look: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The same function, whose inputs are kept until the batch is judged."""

        def kept(given: Any) -> Any:
            self._batch.append((look, given))
            self.made += 1
            before = time.thread_time()
            result = look(given)
            self.inside += time.thread_time() - before
            return result

        return kept

    def watch(self, what: str, done: int, total: int, _: Mapping[str, object]) -> None:
        """After each batch that was judged, and after each subject's references."""
        if what == "judge":
            if self._batches % EVERY == 0:
                self.again.add(self._repeat, time.thread_time)
                self.pictures += done - self._batches * self.batch
            self._batches += 1
            sys.stderr.write(f"{done}/{total}\n")
        self._batch.clear()

    def _repeat(self) -> None:
        for look, given in self._batch:
            look(given)


def paint(folder: Path, dataset: Path, segmenter: Any, count: int) -> Path:
    """A table of so many composites as files, and its subjects' folders beside it."""
    photographs = open_photographs(dataset)
    references: dict[str, list[ReferenceImage]] = {}
    for name in SUBJECTS:
        subject_folder = folder / "references" / name
        subject_folder.mkdir(parents=True)
        (subject_folder / "subject.yaml").write_text(f"class_name: {photographs.classes[name]}\n")
        for number, file in enumerate(photographs.subjects[name].files):
            image = scaled(read_photograph(file), REFERENCE_SIDE)
            (detection, *_) = segmenter.segment([image], [(name,)])[0]
            references.setdefault(name, []).append(ReferenceImage(image, detection.mask))
            Image.fromarray(image).save(subject_folder / f"{number}.png")
            Image.fromarray(detection.mask).save(subject_folder / f"{number}_mask.png")
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


def lite_rate(weights: Path, dataset: Path, count: int) -> list[BenchFigure]:
    """The figures of `count` pictures."""
    import torch

    torch.set_num_threads(1)  # the segmenter's network takes as many
    segmenter: Any = SaliencySegmenter(weights / SALIENCY, "WEIGHTS")
    encoder: Any = ImageEncoder(weights / ENCODER, "WEIGHTS")
    regions: Any = Checked("segmenter", segmenter)
    features: Any = Checked("encoder", encoder)
    config = EvaluateConfig()
    sight = PhotographSight(regions, features, None, config, ("the small judge",))
    passes, whole = Passes(config.batch), Spent()
    with tempfile.TemporaryDirectory() as scratch:
        table = paint(Path(scratch), dataset, segmenter, count)
        segmenter.look = passes.watched(segmenter.look)
        encoder.looker.look = passes.watched(encoder.looker.look)

        def judge() -> None:
            plan = plan_pictures(read_table(table, references=table.parent / "references"))
            request = Request(
                plan=plan,
                out=str(Path(scratch) / "out"),
                judge=sight.fingerprint,
                load=lambda: sight,
                evaluate=config,
                measure=MeasureConfig(),
                check=False,
                strict=False,
                settings="{}",
            )
            measure(request, passes.watch)

        whole.add(judge, time.process_time)
        figures = _figures(passes, whole, count)
        files = sorted(table.parent.glob("*.png"))[:DISTINCT]
        return [*_costs(files, segmenter, encoder, passes), *figures]


def _costs(
    files: Sequence[Path], segmenter: Any, encoder: Any, passes: Passes
) -> list[BenchFigure]:
    """Seconds of the processor that each part takes of a picture, its passes left out."""
    costs: dict[str, float] = {}

    def costing(name: str, work: Callable[[], list[Any]]) -> list[Any]:
        before = time.process_time() - passes.inside
        made = work()
        costs[name] = (time.process_time() - passes.inside - before) / len(files)
        return made

    def embed() -> list[Any]:
        return list(encoder.embed([image for image, _ in subjects], [mask for _, mask in subjects]))

    side = MeasureConfig().shown_side
    pictures = costing("decoding", lambda: [read_photograph(file) for file in files])
    costing(
        "the page's picture", lambda: [encode_jpeg(scaled(picture, side)) for picture in pictures]
    )
    segmented = costing(
        "scaling for the segmenter, its regions",
        lambda: segmenter.segment(pictures, [SUBJECTS] * len(pictures)),
    )
    subjects = [
        (picture, detection.mask)
        for picture, detections in zip(pictures, segmented, strict=True)
        for detection in detections
    ]
    costing("crops for the encoder", embed)
    costing("copy-paste guard", lambda: [thumb(*subject) for subject in subjects])
    return [BenchFigure(f"{name}, a picture", value, "s") for name, value in costs.items()]


def _figures(passes: Passes, whole: Spent, count: int) -> list[BenchFigure]:
    again, inside = passes.again, passes.inside / count
    run = (whole.processor - again.processor) / count
    bare = again.processor / passes.pictures
    clock = (whole.clock - again.clock) / count / (again.clock / passes.pictures)
    return [
        BenchFigure("pictures", count, ""),
        BenchFigure("passes of the networks", passes.made, ""),
        BenchFigure("pictures whose passes were made again", passes.pictures, ""),
        BenchFigure("measure, a picture", run, "s"),
        BenchFigure("its networks in it, a picture", inside, "s"),
        BenchFigure("its networks alone, a picture", bare, "s"),
        BenchFigure("of the bare rate, by the clock", 1 / clock, ""),
        BenchFigure(SHARE, bare / run, ""),
    ]


def main() -> None:
    """Print the figures; exit code 1 where the promise is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--pictures", type=int, default=1000)
    arguments = parser.parse_args()
    figures = lite_rate(arguments.weights, arguments.dataset, arguments.pictures)
    for figure in figures:
        sys.stdout.write(f"{figure.name:<40}{figure.value:>12.3f} {figure.unit}\n")
    reached = figures[-1].value
    sys.stdout.write(f"{'ok' if reached >= PROMISED else 'MISS'}: wanted {PROMISED}\n")
    sys.exit(0 if reached >= PROMISED else 1)


if __name__ == "__main__":
    main()
