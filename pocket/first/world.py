"""The pocket world: scenes and references of identities, rendered with exact masks.

Letters: B items, R subjects of a scene, H = W pixels. Item b depends on its identities, background
and seed alone, not on the batch around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from focusdpo.data_schemas.errors import UserError
from focusdpo.pocket.first.backgrounds import paint_backgrounds
from focusdpo.pocket.first.identities import BACKGROUNDS, Identity, class_names
from focusdpo.pocket.first.sprites import SCENE_SIZE, TILT, load_sprites, render_bodies
from focusdpo.pocket.hues import hue_distance, measure_hue

GAP = 2
"""Pixels between the boxes of two subjects."""
STEP_RIGHT = 6
"""Pixels by which a subject's centre lies right of the one named before it."""
SIZES = {1: (30, 40), 2: (25, 31), 3: (19, 24)}
"""Longer side of an upright subject in pixels by the number of subjects."""
TIDY_CENTRES = {
    1: ((32.0, 32.0),),
    2: ((16.5, 32.0), (47.5, 32.0)),
    3: ((13.5, 20.0), (32.0, 46.0), (50.5, 20.0)),
}
TIDY_SIZES = {1: (34, 38, 2.0, 2.0), 2: (25, 27, 1.2, 2.5), 3: (19, 21, 1.2, 1.5)}
"""Longer side from and to, jitter of the centre in x and y: of tidy scenes."""
TIDY_TILT = 5
WINDOWS = {1: 52, 2: 40, 3: 32}
"""Side of the square in which one subject is rendered: no tilted body reaches beyond it."""


@dataclass(frozen=True)
class Scenes:
    """Rendered scenes with R subjects each."""

    images: Tensor
    """(B, 3, H, W) in [0, 1]."""
    masks: Tensor
    """(B, R, H, W) bool: pixels that a subject covers by more than half."""
    boxes: Tensor
    """(B, R, 4) int64: x0, y0, x1, y1 of the masks, end exclusive."""
    backgrounds: tuple[str, ...]


def render_scenes(
    identities: Sequence[Sequence[Identity]],
    seeds: Sequence[int],
    backgrounds: Sequence[str] | None = None,
    *,
    tidy: bool = False,
) -> Scenes:
    """Scenes of identities[b] (R each, 1 to 3), subjects from left to right in that order.

    Without `backgrounds` each seed chooses its own. `tidy` scenes have a place for each subject and
    little tilt, which a generator learns with much less training. Raises UserError for an unknown
    background.
    """
    counts = {len(row) for row in identities}
    if len(counts) != 1 or not counts <= set(SIZES) or len(identities) != len(seeds):
        raise UserError(
            f"render_scenes: got {sorted(counts)} subjects per scene and {len(seeds)} seeds for"
            f" {len(identities)} scenes; every scene needs the same 1 to 3 subjects and one seed"
        )
    rngs = [np.random.default_rng([seed, 0x5C]) for seed in seeds]
    names = _choose_backgrounds(rngs, backgrounds)
    count = counts.pop()
    place = _tidy_layout if tidy else _layout
    layouts = np.stack([place(rng, row) for rng, row in zip(rngs, identities, strict=True)])
    image = paint_backgrounds(names, rngs)
    bodies = [
        render_bodies([row[r] for row in identities], layouts[:, r], SCENE_SIZE, WINDOWS[count])
        for r in range(count)
    ]
    shadow = _shadow(torch.stack([alpha for _, alpha in bodies], 1).amax(1))
    image = image * (1 - shadow[:, None])
    for colour, alpha in bodies:
        image = image * (1 - alpha[:, None]) + colour
    brightness = torch.tensor(np.array([rng.uniform(0.9, 1.0) for rng in rngs]))
    masks = torch.stack([alpha > 0.5 for _, alpha in bodies], 1)
    return Scenes(
        images=(image * brightness.float()[:, None, None, None]).clamp(0, 1),
        masks=masks,
        boxes=_boxes(masks),
        backgrounds=names,
    )


def render_references(
    identities: Sequence[Identity], seeds: Sequence[int], size: int = 64
) -> tuple[Tensor, Tensor]:
    """One picture per identity on white: images (B, 3, size, size) in [0, 1], masks (B, size,
    size) bool. Pose, scale and shade differ from any scene's."""
    rngs = [np.random.default_rng([seed, 0x2E]) for seed in seeds]
    layout = np.stack([_reference_pose(rng) for rng in rngs])
    colour, alpha = render_bodies(identities, layout, size, SCENE_SIZE)
    shade = torch.tensor(np.array([rng.uniform(0.92, 1.0) for rng in rngs])).float()
    image = colour * shade[:, None, None, None] + 1 - alpha[:, None]
    return image.clamp(0, 1), alpha > 0.5


def prompt_for(classes: Sequence[str], background: str) -> str:
    """The world's caption of a scene with 1 to 3 subjects."""
    head = ", ".join(f"a {word}" for word in classes[:-1])
    last = f"a {classes[-1]}"
    return f"{head} and {last} on {background}" if head else f"{last} on {background}"


def _choose_backgrounds(
    rngs: Sequence[np.random.Generator], backgrounds: Sequence[str] | None
) -> tuple[str, ...]:
    drawn = [BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))] for rng in rngs]
    if backgrounds is None:
        return tuple(drawn)
    unknown = sorted(set(backgrounds) - set(BACKGROUNDS))
    if unknown or len(backgrounds) != len(rngs):
        raise UserError(
            f"pocket world: backgrounds {unknown or len(backgrounds)} do not fit; give one per"
            f" scene, each of {', '.join(BACKGROUNDS)}"
        )
    return tuple(backgrounds)


def _layout(rng: np.random.Generator, identities: Sequence[Identity]) -> NDArray[np.float64]:
    """(R, 4): centre x, centre y, longer side in pixels, tilt in degrees. Bodies lie inside the
    scene, their boxes GAP apart, centres from left to right. Where no place is found for the drawn
    sizes, all shrink a little and are placed again."""
    count = len(identities)
    sizes = rng.uniform(*SIZES[count], count)
    tilts = rng.integers(-TILT, TILT + 1, count)
    sprites = load_sprites()
    unit = sprites.reach[[sprites.index[i.class_name] for i in identities], tilts + TILT]
    while True:
        boxes = unit * sizes[:, None]
        low, high = 1 - boxes[:, :2], SCENE_SIZE - 1 - boxes[:, 2:]
        tries = low + rng.random((48, count, 2)) * (high - low)
        good = (np.diff(tries[..., 0], axis=1) >= STEP_RIGHT).all(1) & _apart(tries, boxes)
        if good.any():
            return np.concatenate([tries[good.argmax()], sizes[:, None], tilts[:, None]], 1)
        sizes = sizes * 0.97


def _tidy_layout(rng: np.random.Generator, identities: Sequence[Identity]) -> NDArray[np.float64]:
    """As `_layout`: around fixed centres, with sizes that cannot meet."""
    count = len(identities)
    low, high, jitter_x, jitter_y = TIDY_SIZES[count]
    centres = np.array(TIDY_CENTRES[count]) + rng.uniform(-1, 1, (count, 2)) * (jitter_x, jitter_y)
    sizes = rng.uniform(low, high, count)
    tilts = rng.integers(-TIDY_TILT, TIDY_TILT + 1, count)
    return np.concatenate([centres, sizes[:, None], tilts[:, None]], 1)


def _apart(centres_TR2: NDArray[np.float64], boxes_R4: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of T placements keep all boxes GAP apart in x or in y."""
    low, high = centres_TR2 + boxes_R4[:, :2], centres_TR2 + boxes_R4[:, 2:]
    clear = np.any(low[:, :, None] - high[:, None] >= GAP, axis=-1)
    same = np.eye(len(boxes_R4), dtype=bool)
    return np.asarray((clear | np.swapaxes(clear, 1, 2) | same).all((1, 2)))


def _reference_pose(rng: np.random.Generator) -> NDArray[np.float64]:
    side = rng.uniform(44, 54)
    room = (SCENE_SIZE - side * 1.1) / 2
    x, y = SCENE_SIZE / 2 + rng.uniform(-0.6, 0.6, 2) * room
    return np.array([x, y, side, rng.uniform(-8, 8)])


def _shadow(alpha_BHW: Tensor) -> Tensor:
    """A soft shadow below and right of the bodies: darkness in [0, 0.35]."""
    soft = F.avg_pool2d(alpha_BHW[:, None], 5, 1, 2, count_include_pad=True)[:, 0]
    return 0.35 * F.pad(soft, (2, 0, 3, 0))[:, : soft.shape[1], : soft.shape[2]]


def _boxes(masks_BRHW: Tensor) -> Tensor:
    """Boxes of masks; an empty mask gives zeros."""
    rows, cols = masks_BRHW.any(-1), masks_BRHW.any(-2)
    size_y, size_x = rows.shape[-1], cols.shape[-1]
    x0, y0 = cols.int().argmax(-1), rows.int().argmax(-1)
    x1 = size_x - cols.flip(-1).int().argmax(-1)
    y1 = size_y - rows.flip(-1).int().argmax(-1)
    boxes = torch.stack([x0, y0, x1, y1], -1)
    return boxes * rows.any(-1)[..., None]


__all__ = [
    "BACKGROUNDS",
    "SCENE_SIZE",
    "Scenes",
    "class_names",
    "hue_distance",
    "measure_hue",
    "prompt_for",
    "render_references",
    "render_scenes",
]
