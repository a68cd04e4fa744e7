"""Is the small judge fit for photographs? `python -m benchmarks.judges.lite_check WEIGHTS DATASET`.

DATASET is the folder of the DreamBooth photographs. Pairs of its subjects are drawn by a seed that
no threshold was chosen on, faults are planted into composites of them, and the judge looks.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from focusdpo.data_schemas.runs import quiet
from focusdpo.evaluation.measure.config import MeasureConfig
from focusdpo.evaluation.measure.fitness import check_lines, check_sight
from focusdpo.evaluation.photographs import open_photographs, read_photograph
from focusdpo.evaluation.protocols import EvaluateConfig
from focusdpo.flows.measure.judges import judge_of
from focusdpo.pipeline.parts import ReferenceImage

SEED, PAIRS = 11, 7
"""Of the composites, and of who stands in them: no threshold was chosen on these."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--composites", type=int, default=40)
    arguments = parser.parse_args()
    config = EvaluateConfig(batch=8)
    sight = judge_of("pocket", str(arguments.weights), config).load()
    folder = open_photographs(arguments.dataset)
    references = {}
    for name, subject in folder.subjects.items():
        images = [read_photograph(file) for file in subject.files]
        masks = [sight.find(image, subject.class_name) for image in images]
        references[name] = [
            ReferenceImage(image, np.ones(image.shape[:2], np.bool_) if mask is None else mask)
            for image, mask in zip(images, masks, strict=True)
        ]
    rng = np.random.default_rng(PAIRS)
    names = sorted(references)
    casts = [
        tuple(str(name) for name in rng.choice(names, 2, replace=False))
        for _ in range(arguments.composites)
    ]
    started = time.perf_counter()
    rows = check_sight(
        sight,
        casts,
        references,
        {name: folder.classes[name] for name in names},
        config,
        MeasureConfig(composites=arguments.composites, seed=SEED),
        quiet,
    )
    seconds = time.perf_counter() - started
    pictures = sum(row.pictures for row in rows)
    sys.stdout.write("\n".join(check_lines(rows)))
    sys.stdout.write(f"\n{pictures} composites in {seconds:.0f} s\n")


if __name__ == "__main__":
    main()
