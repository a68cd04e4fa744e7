"""Some held-out scenes as every arm paints them: a grid for the page and one to show elsewhere.

Scenes are taken at even distances from the evaluation's order, so nobody picks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from focusdpo.data_schemas.ablations import BASE, Arm
from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.ablation.lookup import Lookup
from focusdpo.flows.reports.files import read_json

AGAIN = "run the same `focusdpo ablate` again"
COLUMNS = 8
"""Scenes shown."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class SceneColumn:
    """A scene: its prompt and its subjects' first references."""

    id: str
    prompt: str
    references: tuple[tuple[str, Pixels], ...]
    """(class name, picture)."""


@dataclass(frozen=True, slots=True)
class Grid:
    """What is shown: `painted[arm][scene]` is (H, W, 3)."""

    scenes: tuple[SceneColumn, ...]
    arms: tuple[Arm, ...]
    painted: tuple[tuple[Pixels, ...], ...]
    source: str
    """What the trained arms were trained on."""
    of: int
    """Scenes there are."""


def read_grid(folder: Path, look: Lookup, columns: int = COLUMNS) -> Grid | None:
    """The base and the arms of the main source on some scenes; None where no pictures were kept.

    UserError when the record names pictures that are not there.
    """
    kept = look.ablation.pictures
    source = next(iter(look.sources), "")
    arms = tuple(a for a in look.ablation.arms if a.name in kept and a.source in ("", source))
    if BASE not in kept:
        return None
    # The base's evaluation, <evaluation>/images/base, tells which scenes there are.
    evaluation = (folder / kept[BASE]).parent.parent
    about = read_json(evaluation / "subjects.json", AGAIN)
    prompts = about.get("prompts", {})
    names = evenly(list(prompts), columns)
    scenes = tuple(
        SceneColumn(name, str(prompts[name]), _references(evaluation, about, name))
        for name in names
    )
    painted = tuple(
        tuple(_pixels(folder / kept[arm.name] / f"{name}-0.png") for name in names) for arm in arms
    )
    return Grid(scenes, arms, painted, source, len(prompts)) if scenes else None


def evenly(items: Sequence[str], count: int) -> list[str]:
    """`count` items in their order, from the middles of equal stretches."""
    count = min(count, len(items))
    return [items[(2 * at + 1) * len(items) // (2 * count)] for at in range(count)]


def _references(folder: Path, about: dict[str, Any], scene: str) -> tuple[tuple[str, Pixels], ...]:
    """A scene's subjects are named after it: the first 8 digits of its id, place, class."""
    return tuple(
        (str(subject["class_name"]), _pixels(folder / subject["pictures"][0]))
        for name, subject in about.get("subjects", {}).items()
        if name.startswith(f"{scene[:8]}-") and subject.get("pictures")
    )


def _pixels(path: Path) -> Pixels:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"), dtype=np.uint8)
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {AGAIN}") from error


def reference_tile(scene: SceneColumn, height: int, width: int) -> Image.Image:
    """A scene's references in one tile: one fills it, more share it as quarters."""
    tile = Image.new("RGB", (width, height), "white")
    rows = math.ceil(math.sqrt(max(1, len(scene.references))))
    size = (width // rows, height // rows)
    for at, (_, pixels) in enumerate(scene.references):
        image = _scaled(pixels, size)
        tile.paste(image, (at % rows * size[0], at // rows * size[1]))
    return tile


def _scaled(pixels: Pixels, size: tuple[int, int]) -> Image.Image:
    """Hard pixels when enlarged, smooth when shrunk."""
    image = Image.fromarray(pixels)
    if image.size == size:
        return image
    enlarged = size[0] >= image.width
    how = Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
    return image.resize(size, how)


LABELS, GAP, LINE = 170, 4, 17
"""Pixels: width of the labels, between tiles, height of a line of text."""


def labelled_sheet(grid: Grid, scale: int = 2) -> Image.Image:
    """The grid with its labels: references first, then a row per arm."""
    height, width = (scale * side for side in grid.painted[0][0].shape[:2])
    size = (
        LABELS + len(grid.scenes) * (width + GAP),
        GAP + (1 + len(grid.arms)) * (height + GAP),
    )
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    labels = ["references", *(arm.label for arm in grid.arms)]
    for row, label in enumerate(labels):
        top = GAP + row * (height + GAP)
        _write(draw, label, top + height // 2)
        for at, scene in enumerate(grid.scenes):
            if row == 0:
                tile = reference_tile(scene, height, width)
            else:
                tile = _scaled(grid.painted[row - 1][at], (width, height))
            sheet.paste(tile, (LABELS + at * (width + GAP), top))
    return sheet


def _write(draw: ImageDraw.ImageDraw, text: str, middle: int) -> None:
    """Words in lines as wide as the labels' column, about the row's middle."""
    font = ImageFont.load_default(14)
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and draw.textlength(longer, font=font) <= LABELS - 16:
            lines[-1] = longer
        else:
            lines.append(word)
    top = middle - len(lines) * LINE // 2
    for number, line in enumerate(lines):
        draw.text((8, top + number * LINE), line, fill="black", font=font)
