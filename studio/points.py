"""What a person points at in a picture: points as a page sends them, and the mask they give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.models_config import Family
from focusdpo.flows.wiring import resident_parts
from focusdpo.pipeline.parts import Image, Labels, Mask, Points

MOST_POINTS = 32
BELONGS = 1


@dataclass(frozen=True)
class Prompt:
    """At least one point belongs to the subject."""

    points: Points
    """In pixels of the view, inside of it."""
    labels: Labels


def read_prompt(values: dict[str, Any], size: tuple[int, int]) -> Prompt:
    """{"points": [[x, y], ...], "labels": [1, 0, ...]} for a view of `size` (rows, columns).
    UserError names the field that is wrong."""
    points, labels = values.get("points"), values.get("labels")
    if not isinstance(points, list) or not 1 <= len(points) <= MOST_POINTS:
        raise UserError(f"points: expected a list of 1 to {MOST_POINTS} places [x, y]")
    if not isinstance(labels, list) or len(labels) != len(points):
        raise UserError(f"labels: expected a list of {len(points)}, one for each point")
    for at, point in enumerate(points):
        if not _is_inside(point, size):
            raise UserError(
                f"points[{at}]: expected [x, y] inside the picture, x from 0 to {size[1] - 1} and "
                f"y from 0 to {size[0] - 1}"
            )
    for at, label in enumerate(labels):
        if type(label) is not int or label not in (0, BELONGS):
            raise UserError(f"labels[{at}]: expected {BELONGS} (belongs) or 0 (does not)")
    if BELONGS not in labels:
        raise UserError("labels: expected at least one point that belongs to the subject")
    return Prompt(np.array(points, np.float64), np.array(labels, np.int64))


def _is_inside(point: Any, size: tuple[int, int]) -> bool:
    if not isinstance(point, list) or len(point) != 2:
        return False
    return all(
        # To Python a bool is an int, and JSON may say NaN or Infinity: these are not in between.
        type(place) in (int, float) and 0 <= place <= most - 1
        for place, most in zip(point, (size[1], size[0]), strict=True)
    )


def mask_at(
    prompt: Prompt, view: Image, family: Family, instances: Callable[[], Sequence[Mask]]
) -> Mask:
    """The mask of all points together: what the segmenter makes of them where it takes points,
    else whole `instances`. UserError where nothing is marked."""
    segmenter = resident_parts(family).point_segmenter
    if segmenter is None:
        return whole_instances(prompt, instances(), view.shape[:2])
    mask = segmenter.segment_points(view, prompt.points, prompt.labels)
    if not mask.any():
        raise UserError("the segmenter marks nothing for these points; move them or use the brush")
    return mask


def whole_instances(prompt: Prompt, instances: Sequence[Mask], size: tuple[int, int]) -> Mask:
    """The smallest instance at each point that belongs, without those at the points that do not.
    UserError for a point at which there is none, and where nothing is left."""
    mask = np.zeros(size, bool)
    places = prompt.points.astype(int).tolist()
    # What does not belong comes last, in whichever order it was pointed at.
    for label, (x, y) in sorted(zip(prompt.labels, places, strict=True), key=lambda one: -one[0]):
        there = [one for one in instances if one[y, x]]
        if not there:
            raise UserError(f"the segmenter sees no subject at {x}, {y}; use the brush")
        smallest = min(there, key=lambda one: int(one.sum()))
        mask = mask | smallest if label == BELONGS else mask & ~smallest
    if not mask.any():
        raise UserError(
            "nothing is left: this segmenter knows whole subjects alone, and each was pointed at "
            "as not belonging too; use the eraser"
        )
    return mask
