"""Faults planted into pictures of the user's own subjects: what a judge must find before it judges.

A composite shows cut-outs of references on a blurred photograph: as asked, or with one fault. Which
picture of a subject is shown is never among those that the judge knows it by, where there are
several. All is drawn from a seed and names: the same subjects give the same composites.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageFilter
from scipy import ndimage

from focusdpo.data_schemas.scenes import stable_hash
from focusdpo.pipeline.parts import Image, Mask, ReferenceImage

Fault = Literal["none", "in place", "missing", "doubled", "replaced", "swapped", "stranger"]
"""none: as asked. in place: as asked, and the judge is told where each subject was asked to stand.
missing: one is left out. doubled: one stands there once more. replaced: one stands in another's
place. swapped: two stand in each other's places, and the judge is told the places. stranger:
another of the user's subjects, whom nobody asked for."""
FAULTS: tuple[Fault, ...] = get_args(Fault)
TRUE: tuple[Fault, ...] = ("none", "in place")
"""What is no fault."""
PLACED: tuple[Fault, ...] = ("in place", "swapped")
"""For which places are told."""
FILL = 0.8
"""Longest side of a subject, as a share of its cell."""
TILT, LIGHT = 8.0, 0.15
"""Degrees, and share of brightness, by which a subject differs from its reference."""
BLUR = 0.06
"""Of the background, as a share of the picture's side."""
SPARE = 2
"""Pictures of a subject from which one can be held back."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Composite:
    """A picture with what was asked and what is wrong with it."""

    fault: Fault
    subjects: tuple[str, ...]
    """Who was asked for."""
    image: Image
    """(S, S, 3)."""
    boxes: tuple[Box, ...]
    """Where each was asked to stand; () where nobody is told."""
    held_back: tuple[int, ...]
    """Per asked subject the picture that the judge must not know it by; -1 where it has one only:
    then the composite shows that one mirrored, tilted and lit."""


def possible_faults(asked: int, others: int) -> tuple[Fault, ...]:
    """What can be planted in a scene of so many subjects, with so many others to be strangers."""
    absent: set[Fault] = set()
    if asked < 2:
        absent |= {"in place", "replaced", "swapped"}
    if not others:
        absent.add("stranger")
    return tuple(fault for fault in FAULTS if fault not in absent)


def composite(
    fault: Fault,
    asked: Sequence[str],
    references: Mapping[str, Sequence[ReferenceImage]],
    number: int,
    *,
    side: int,
    seed: int = 0,
) -> Composite:
    """One picture of the subjects `asked`, `side` pixels a side. `references` holds all pictures of
    all subjects; strangers are drawn from those who are not asked for."""
    rng = np.random.default_rng(stable_hash("composite", seed, fault, *asked, number))
    shown = {
        name: int(rng.integers(len(pictures))) for name, pictures in sorted(references.items())
    }
    cast = _cast(fault, list(asked), sorted(set(references) - set(asked)), rng)
    cells = _cells(len(cast), side)
    order = rng.permutation(len(cells))[: len(cast)]
    picture = _background(references, asked, side, rng)
    boxes: dict[int, Box] = {}
    for place, name in enumerate(cast):
        cell = cells[order[place]]
        if name is None:
            continue
        at = shown[name]
        again = cast[:place].count(name)
        if again:  # not the same picture a second time, where there is another
            at = (at + again) % len(references[name])
        boxes[place] = _paste(picture, references[name][at], cell, rng)
    wanted = list(range(len(asked)))
    if fault == "swapped":
        first, second = (n for n, name in enumerate(asked) if cast[n] != name)
        wanted[first], wanted[second] = first, second
    placed = fault in PLACED
    return Composite(
        fault=fault,
        subjects=tuple(asked),
        image=np.asarray(picture),
        boxes=tuple(boxes[n] for n in wanted) if placed else (),
        held_back=tuple(shown[name] if len(references[name]) >= SPARE else -1 for name in asked),
    )


def _cast(
    fault: Fault, asked: list[str], others: list[str], rng: np.random.Generator
) -> list[str | None]:
    """Who stands at each place; the first places are those of the asked."""
    cast: list[str | None] = list(asked)
    first, second = (int(n) for n in rng.permutation(len(cast))[:2]) if len(cast) > 1 else (0, 0)
    if fault == "missing":
        cast[first] = None
    elif fault == "doubled":
        cast.append(cast[first])
    elif fault == "replaced":
        cast[first] = cast[second]
    elif fault == "swapped":
        cast[first], cast[second] = cast[second], cast[first]
    elif fault == "stranger":
        cast.append(others[int(rng.integers(len(others)))])
    return cast


def _cells(count: int, side: int) -> list[Box]:
    """As many equal cells as there are places, in rows of up to three."""
    columns = min(3, count) if count != 4 else 2
    rows = math.ceil(count / columns)
    width, height = side / columns, side / rows
    return [
        (round(c * width), round(r * height), round((c + 1) * width), round((r + 1) * height))
        for r in range(rows)
        for c in range(columns)
    ][:count]


def _background(
    references: Mapping[str, Sequence[ReferenceImage]],
    asked: Sequence[str],
    side: int,
    rng: np.random.Generator,
) -> PillowImage.Image:
    """Colours of a picture of somebody, so blurred that nobody is seen, and a little grain."""
    name = sorted(references)[int(rng.integers(len(references)))]
    pictures = references[name]
    image = PillowImage.fromarray(pictures[int(rng.integers(len(pictures)))].image)
    small = image.resize((side, side), PillowImage.Resampling.BILINEAR)
    blurred = small.filter(ImageFilter.GaussianBlur(BLUR * side)).filter(
        ImageFilter.GaussianBlur(4 * BLUR * side)
    )
    dim = 0.55 + 0.4 * rng.random()
    noise = rng.normal(0, 3, (side, side, 1))
    tinted = np.asarray(blurred, dtype=np.float64) * dim + noise
    return PillowImage.fromarray(np.clip(np.rint(tinted), 0, 255).astype(np.uint8))


def _paste(
    picture: PillowImage.Image, reference: ReferenceImage, cell: Box, rng: np.random.Generator
) -> Box:
    """The cut-out into its cell, mirrored or not, a little tilted and lit; its box."""
    image, mask = _cut(reference)
    subject = PillowImage.fromarray(image)
    shape = PillowImage.fromarray(mask.astype(np.uint8) * np.uint8(255))
    if rng.random() < 0.5:
        flip = PillowImage.Transpose.FLIP_LEFT_RIGHT
        subject, shape = subject.transpose(flip), shape.transpose(flip)
    degrees = float(rng.uniform(-TILT, TILT))
    turn = PillowImage.Resampling.BICUBIC
    frame = round(0.25 * max(subject.size))  # what turning brings in from outside
    wide = np.pad(np.asarray(subject), ((frame, frame), (frame, frame), (0, 0)), mode="edge")
    subject = PillowImage.fromarray(wide).rotate(degrees, turn)
    shape = PillowImage.fromarray(np.pad(np.asarray(shape), frame)).rotate(degrees, turn)
    seen = shape.point(lambda value: 255 * (value > 127)).getbbox()
    subject, shape = subject.crop(seen), shape.crop(seen)
    left, top, right, bottom = cell
    room = FILL * (0.85 + 0.15 * rng.random())
    scale = min((right - left) * room / subject.width, (bottom - top) * room / subject.height)
    size = (max(1, round(subject.width * scale)), max(1, round(subject.height * scale)))
    subject, shape = (
        layer.resize(size, PillowImage.Resampling.LANCZOS) for layer in (subject, shape)
    )
    lit = np.asarray(subject, dtype=np.float64) * (1 + rng.uniform(-LIGHT, LIGHT))
    subject = PillowImage.fromarray(np.clip(np.rint(lit), 0, 255).astype(np.uint8))
    x = left + round((right - left - size[0]) * (0.3 + 0.4 * rng.random()))
    y = top + round((bottom - top - size[1]) * (0.3 + 0.4 * rng.random()))
    picture.paste(subject, (x, y), shape)
    return (x, y, x + size[0], y + size[1])


def _cut(reference: ReferenceImage) -> tuple[Image, Mask]:
    """The subject's box of its picture; around the subject its own nearest colours, so that no
    white comes in at its edge when it is turned and scaled."""
    mask = reference.mask
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    window = np.s_[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    inside = mask[window]
    y, x = ndimage.distance_transform_edt(~inside, return_distances=False, return_indices=True)
    return reference.image[window][y, x], inside
