"""Scores of public protocols as they were published, each under an id of its own.

SCR (arXiv 2603.26078): DINOv2 of the whole picture and of each whole reference photograph; the
share of subjects below a level, and the mean cosine. Published with ViT-S/14.

PSRBench's subject consistency (arXiv 2512.01236): Grounding DINO's box of each subject's word, in
the picture and in its reference, compared by DINO ViT-S/16; the whole picture where it finds none.
Of two subjects of one word the second gets the second box; among three and four each gets the
first, as published. Published with the Swin-T detector and the first box in the order of its
queries; here it is the surest, and tight about its mask.

Letters: R subjects, P references of a subject, D embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from focusdpo.evaluation.dreambench_metrics import whole_cosines
from focusdpo.evaluation.measure.sight import PSR, SCR, Box, Sight
from focusdpo.evaluation.metrics import Metric
from focusdpo.pipeline.parts import Image, Vectors

LEVELS = (0.4, 0.5, 0.6)
OF_A_LAYOUT = {"psrbench": PSR}
"""Protocols that are told of their benchmark's pictures alone."""
NEEDS = {
    SCR: "SCR as published needs a judge with DINOv2",
    PSR: "PSRBench's subject consistency needs a judge with Grounding DINO and DINO (the first)",
}
PUBLISHED: dict[str, dict[str, Metric]] = {
    SCR: {
        **{
            f"whole_scr_{round(100 * level)}": Metric(
                f"SCR@{level:g}, whole picture", "lower", "share",
                f"Subjects whose reference photographs have a cosine below {level:g} to the whole "
                "picture, as SCR was published; scenes of several subjects raise it by themselves.",
            )
            for level in LEVELS
        },
        "whole_dino": Metric(
            "DINOv2, whole picture", "higher", "cosine",
            "Whole picture and whole reference photographs, averaged over the subjects.",
        ),
    },
    PSR: {
        "crop_dino": Metric(
            "Subject consistency, crops", "higher", "cosine",
            "Box of each subject's word in the picture and in its reference photographs, by DINO, "
            "averaged over the subjects, as PSRBench was published.",
        ),
    },
}  # fmt: skip
"""Protocol -> its metrics."""
PUBLISHED_METRICS = {
    name: metric for metrics in PUBLISHED.values() for name, metric in metrics.items()
}


def wanted(layout: str) -> tuple[str, ...]:
    """The protocols that pictures in a layout ("" for none) are measured by, where a judge can."""
    return (SCR, *(id for of, id in OF_A_LAYOUT.items() if of == layout))


def not_told(layout: str, measured: Sequence[str]) -> list[str]:
    """What a page says of the protocols that this judge cannot tell."""
    lacking = [protocol for protocol in wanted(layout) if protocol not in measured]
    return [f"{NEEDS[protocol]}: not measured by this judge" for protocol in lacking]


def known_as_published(
    protocols: Sequence[str], photographs: Sequence[Image], class_name: str, sight: Sight
) -> dict[str, Vectors]:
    """Protocol -> (P, D) of a subject's whole photographs, or of its box in each."""
    shown: dict[str, Sequence[Image]] = {SCR: photographs}
    if PSR in protocols:
        boxes = sight.boxes(photographs, [class_name] * len(photographs))
        shown[PSR] = [
            _cut(photograph, photograph_boxes, 0)
            for photograph, photograph_boxes in zip(photographs, boxes, strict=True)
        ]
    return {id: _vectors(sight, shown[id]) for id in protocols}


def cosines_as_published(
    protocols: Sequence[str],
    pictures: Sequence[Image],
    words: Sequence[Sequence[str]],
    known: Sequence[Sequence[Mapping[str, Vectors]]],
    sight: Sight,
) -> list[dict[str, tuple[float, ...]]]:
    """Per picture: protocol -> the cosine of each subject, in the order of its words. `known`: per
    picture and subject what `known_as_published` gave."""
    scores: list[dict[str, tuple[float, ...]]] = [{} for _ in pictures]
    if SCR in protocols:
        for at, vector in enumerate(_vectors(sight, pictures)):
            scores[at][SCR] = whole_cosines(vector, [subject[SCR] for subject in known[at]])
    if PSR in protocols:
        owners = [at for at, picture_words in enumerate(words) for _ in picture_words]
        flat_words = [word for picture_words in words for word in picture_words]
        boxes = sight.boxes([pictures[at] for at in owners], flat_words)
        numbers = [number for picture_words in words for number in _which(picture_words)]
        crops = [
            _cut(pictures[at], picture_boxes, number)
            for at, picture_boxes, number in zip(owners, boxes, numbers, strict=True)
        ]
        subjects = [subject[PSR] for cast in known for subject in cast]
        cosines: dict[int, list[float]] = {}
        for at, vector, targets in zip(owners, _vectors(sight, crops), subjects, strict=True):
            cosines.setdefault(at, []).extend(whole_cosines(vector, [targets]))
        for at, values in cosines.items():
            scores[at][PSR] = tuple(values)
    return scores


def scores_as_published(cosines: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Every metric of `PUBLISHED` of one picture; NaN for what was not compared."""
    whole, crops = (np.array(cosines.get(id, ()), dtype=np.float64) for id in (SCR, PSR))

    def mean(values: NDArray[np.floating[Any]]) -> float:
        return float(values.mean()) if values.size else float("nan")

    below = {f"whole_scr_{round(100 * level)}": mean(1.0 * (whole < level)) for level in LEVELS}
    return {**below, "whole_dino": mean(whole), "crop_dino": mean(crops)}


def _vectors(sight: Sight, images: Sequence[Image]) -> Vectors:
    vectors = sight.whole(images)
    if vectors is None:
        raise RuntimeError("a judge that tells a published protocol embeds whole pictures")
    return vectors


def _which(words: Sequence[str]) -> list[int]:
    """Which box of its word each subject gets."""
    return [0, 1] if len(words) == 2 and words[0] == words[1] else [0] * len(words)


def _cut(picture: Image, boxes: Sequence[Box], number: int) -> Image:
    if number >= len(boxes):
        return picture
    x0, y0, x1, y1 = boxes[number]
    return np.ascontiguousarray(picture[y0:y1, x0:x1])
