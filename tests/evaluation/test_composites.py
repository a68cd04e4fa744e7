"""Planted faults: what a composite shows is what it says, and the same every time."""

from __future__ import annotations

import numpy as np
import pytest

from focusdpo.evaluation.measure.composites import FAULTS, TRUE, composite, possible_faults
from focusdpo.evaluation.measure.fitness import FaultFound
from focusdpo.pipeline.parts import Image, ReferenceImage

COLOURS = {"red": (220, 20, 20), "blue": (20, 20, 220), "green": (20, 200, 20)}


def reference(colour: tuple[int, int, int], size: int) -> ReferenceImage:
    mask = np.zeros((64, 64), np.bool_)
    mask[32 - size : 32 + size, 32 - size : 32 + size] = True
    image = np.where(mask[..., None], np.array(colour, np.uint8), np.uint8(255))
    return ReferenceImage(image, mask)


REFERENCES = {name: [reference(c, 10), reference(c, 14)] for name, c in COLOURS.items()}
SIDE = 192


def places(picture: Image, name: str) -> list[float]:
    """Middles (x) of the regions in a subject's colour."""
    from scipy import ndimage

    gaps = np.abs(picture.astype(int) - np.array(COLOURS[name])).max(axis=2)
    labels, count = ndimage.label(ndimage.binary_opening(gaps < 45, iterations=2))
    return [float(np.nonzero(labels == n)[1].mean()) for n in range(1, count + 1)]


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("fault", FAULTS)
def test_a_composite_shows_what_it_says(fault: str, number: int) -> None:
    made = composite(fault, ("red", "blue"), REFERENCES, number, side=SIDE)  # type: ignore[arg-type]
    seen = {name: len(places(made.image, name)) for name in COLOURS}
    red_blue = sorted((seen["red"], seen["blue"]))
    counts = {"missing": [0, 1], "doubled": [1, 2], "replaced": [0, 2]}
    assert red_blue == counts.get(fault, [1, 1])
    assert seen["green"] == (fault == "stranger")
    assert bool(made.boxes) == (fault in ("in place", "swapped"))
    for name, box in zip(made.subjects, made.boxes, strict=False):
        (middle,) = places(made.image, name)
        assert (box[0] <= middle < box[2]) == (fault == "in place")
    assert all(0 <= at < 2 for at in made.held_back)
    again = composite(fault, ("red", "blue"), REFERENCES, number, side=SIDE)  # type: ignore[arg-type]
    assert (again.image == made.image).all()


def test_no_white_comes_in_at_the_edge() -> None:
    only = {"red": REFERENCES["red"]}
    made = composite("none", ("red",), only, 0, side=SIDE)
    assert not (made.image.min(axis=2) > 235).any()


def test_what_cannot_be_planted() -> None:
    assert set(possible_faults(1, 0)) == {"none", "missing", "doubled"}
    assert set(possible_faults(2, 1)) == set(FAULTS)


def test_a_fit_judge_finds_nine_in_ten_and_sees_no_ghosts() -> None:
    def row(fault: str, found: float) -> FaultFound:
        return FaultFound(fault, 40, found, 0, 0, 0, 0, 0)  # type: ignore[arg-type]

    assert row("doubled", 0.9).ok and not row("doubled", 0.89).ok
    assert row(TRUE[0], 0.05).ok and not row(TRUE[0], 0.06).ok
