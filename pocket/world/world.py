"""The pocket world: scenes and references of individuals, rendered with exact masks.

In a scene the place, size and depth of a subject tell nothing of its position in the list: the
order of subjects is free to be that of references, of words, or none. Letters: B items, R subjects
of a scene, H = W pixels. Item b depends on its individuals, background and seed alone, not on the
batch around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.strict import StrictModel
from focusdpo.pocket.classes import BACKGROUNDS
from focusdpo.pocket.world.backgrounds import paint_backgrounds
from focusdpo.pocket.world.identities import Identity
from focusdpo.pocket.world.sprites import TILT, Poses, load_sprites, render_bodies

SCENE_SIZE = 96
SIZES = {1: (46, 78), 2: (36, 70), 3: (28, 54), 4: (24, 46)}
"""Longer side of an upright subject in pixels of a 96 px scene by the number of subjects; subjects
of one scene differ by a factor of two at most."""
REFERENCE_SIDES = (58, 84)
REFERENCE_TILT = 20
CROPPED_SHARE, SURROUNDED_SHARE = 0.2, 0.4
"""Shares of references that a border cuts, and that have a background of their own."""
CUT = 0.18
"""How much of the longer side a border cuts off at most."""


@dataclass(frozen=True)
class Overlap:
    """How much subjects of a scene get in one another's way."""

    share: float
    """Of scenes of several in which boxes may overlap."""
    most: float
    """Share of a box that another one may take in those scenes."""


OVERLAP = Overlap(share=0.35, most=0.25)
"""The world's own."""


@dataclass(frozen=True)
class Slots:
    """Fixed places for the subjects of a scene."""

    centres: tuple[tuple[float, float], ...]
    """x, y in pixels of a 96 px scene."""
    sides: tuple[float, float]
    """Longer side of a subject in such pixels."""


SLOTS = {
    1: Slots(((48, 48),), (52, 74)),
    2: Slots(((25, 48), (71, 48)), (34, 46)),
    3: Slots(((25, 27), (71, 27), (48, 70)), (30, 42)),
    4: Slots(((25, 25), (71, 25), (25, 71), (71, 71)), (28, 42)),
}
"""By the number of subjects."""


class SlotConfig(StrictModel):
    """How subjects stand at the slots: the n-th at the n-th, but for `any_order`."""

    jitter: float = Field(
        4, ge=0, description="pixels of a 96 px scene beside the slot at most, along each axis"
    )
    tilt: int = Field(TILT, ge=0, le=TILT, description="degrees at most, to either side")
    mirrored: bool = Field(True, description="half of the subjects are mirrored; else none")
    alone: bool = Field(False, description="single subjects have a slot too; else stand anywhere")
    any_order: float = Field(
        0.0, ge=0, le=1, description="share of the scenes in which any subject stands at any slot"
    )


@dataclass(frozen=True)
class Scenes:
    """Rendered scenes with R subjects each."""

    images: Tensor
    """(B, 3, H, W) in [0, 1]."""
    masks: Tensor
    """(B, R, H, W) bool, disjoint: pixels in which more of this subject is seen than of all else
    together."""
    boxes: Tensor
    """(B, R, 4) int64: x0, y0, x1, y1 of the masks, end exclusive."""
    backgrounds: tuple[str, ...]


def render_scenes(
    identities: Sequence[Sequence[Identity]],
    seeds: Sequence[int],
    backgrounds: Sequence[str] | None = None,
    *,
    size: int = SCENE_SIZE,
    sides: tuple[float, float] | None = None,
    overlap: Overlap = OVERLAP,
    slots: SlotConfig | None = None,
) -> Scenes:
    """Scenes of identities[b] (R each, 1 to 4), `size` pixels wide.

    Without `backgrounds` each seed chooses its own; `sides` replaces the range of longer sides.
    `slots`: subjects stand at SLOTS, which the world itself never asks of them.
    Raises UserError for an unknown background.
    """
    counts = {len(row) for row in identities}
    if len(counts) != 1 or not counts <= set(SIZES) or len(identities) != len(seeds):
        raise UserError(
            f"render_scenes: got {sorted(counts)} subjects per scene and {len(seeds)} seeds for"
            f" {len(identities)} scenes; every scene needs the same 1 to 4 subjects and one seed"
        )
    rngs = [np.random.default_rng([seed, 0x6C]) for seed in seeds]
    names = _choose_backgrounds(rngs, backgrounds)
    count = counts.pop()
    if slots is not None and (count > 1 or slots.alone):
        layouts = [_slot_layout(rng, SLOTS[count], slots, size) for rng in rngs]
    else:
        sides = sides or SIZES[count]
        layouts = [
            _layout(rng, row, size, sides, overlap)
            for rng, row in zip(rngs, identities, strict=True)
        ]
    image = paint_backgrounds(names, rngs, size)
    flat = [subject for row in identities for subject in row]
    joined = Poses.joined(layouts)
    bodies = render_bodies(flat, joined, size).unflatten(0, (len(seeds), -1))
    images, masks = _composite(image, bodies, [_depth(pose) for pose in layouts])
    return Scenes(images, masks, mask_boxes(masks), names)


def render_references(
    identities: Sequence[Identity], seeds: Sequence[int], size: int = SCENE_SIZE
) -> tuple[Tensor, Tensor]:
    """One picture per individual: images (B, 3, size, size) in [0, 1], masks (B, size, size) bool.

    Pose, scale and light differ from any scene's; some are cut by a border, some stand on a
    background of their own, the others on white.
    """
    rngs = [np.random.default_rng([seed, 0x3E]) for seed in seeds]
    poses = Poses(*map(np.array, zip(*(_reference_pose(rng, size) for rng in rngs), strict=True)))
    bodies = render_bodies(identities, poses, size)
    alpha = bodies[:, 3:]
    names = [BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))] for rng in rngs]
    grounds = paint_backgrounds(names, rngs, size)
    white = torch.tensor(np.array([rng.random() >= SURROUNDED_SHARE for rng in rngs]))
    ground = torch.where(white[:, None, None, None], torch.ones(()), grounds)
    image = ground * (1 - alpha) + bodies[:, :3] * _reference_light(rngs, size)
    return image.clamp(0, 1), alpha[:, 0] > 0.5


def _composite(
    image: Tensor, bodies_BR4HW: Tensor, depths: Sequence[NDArray[np.int64]]
) -> tuple[Tensor, Tensor]:
    """Images and visible masks; depths[b] lists subjects from back to front."""
    order = torch.from_numpy(np.stack(depths))
    rows = torch.arange(len(order))
    cover = torch.zeros_like(bodies_BR4HW[:, :, 3])
    for place in range(order.shape[1]):
        which = order[:, place]
        body = bodies_BR4HW[rows, which]
        alpha = body[:, 3:]
        image = image * (1 - _shadow(alpha)) * (1 - alpha) + body[:, :3]
        cover = cover * (1 - alpha)
        cover[rows, which] = alpha[:, 0]
    return image.clamp(0, 1), cover > 0.5


def _shadow(alpha_B1HW: Tensor) -> Tensor:
    """A soft shadow below and right of a body: darkness in [0, 0.32]."""
    soft = F.avg_pool2d(F.avg_pool2d(alpha_B1HW, 5, 1, 2), 5, 1, 2)
    return 0.32 * F.pad(soft, (2, -2, 4, -4))


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


def _layout(
    rng: np.random.Generator,
    identities: Sequence[Identity],
    size: int,
    sides: tuple[float, float],
    overlap: Overlap,
) -> Poses:
    """Places anywhere in the scene, boxes apart or overlapping a little. Where no place is found
    for the drawn sizes, all shrink a little and are placed again."""
    count = len(identities)
    side = rng.uniform(*sides, count)
    tilt = rng.integers(-TILT, TILT + 1, count)
    mirrored = rng.random(count) < 0.5
    most = overlap.most if rng.random() < overlap.share else 0.0
    unit = _unit_boxes(identities, tilt, mirrored)
    while True:
        boxes = unit * side[:, None]
        low, high = 1 - boxes[:, :2], size - 1 - boxes[:, 2:]
        centres = low + rng.random((64, count, 2)) * (high - low)
        good = _clear(centres, boxes, most)
        if good.any() and (high > low).all():
            x, y = centres[good.argmax()].T
            return Poses(x, y, side, tilt.astype(np.float64), mirrored)
        side = side * 0.97


def _slot_layout(rng: np.random.Generator, slots: Slots, config: SlotConfig, size: int) -> Poses:
    """The n-th subject about the n-th slot, or about any."""
    count, scale = len(slots.centres), size / SCENE_SIZE
    centres = np.array(slots.centres) + rng.uniform(-config.jitter, config.jitter, (count, 2))
    side = scale * rng.uniform(*slots.sides, count)
    tilt = rng.integers(-config.tilt, config.tilt + 1, count).astype(np.float64)
    mirrored = (rng.random(count) < 0.5) & config.mirrored
    if config.any_order and rng.random() < config.any_order:
        centres = centres[rng.permutation(count)]
    x, y = scale * centres.T
    return Poses(x, y, side, tilt, mirrored)


def _unit_boxes(
    identities: Sequence[Identity], tilt: NDArray[np.int64], mirrored: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """(R, 4): x0, y0, x1, y1 of the tilted bodies from their middles, in units of the longer
    side."""
    sprites = load_sprites()
    index = [sprites.index[i.class_name] for i in identities]
    # A body is mirrored first and tilted then: the mirror image of its tilt the other way.
    boxes = sprites.reach[index, np.where(mirrored, -tilt, tilt) + TILT]
    flipped = boxes[:, [2, 1, 0, 3]] * (-1, 1, -1, 1)
    return np.where(mirrored[:, None], flipped, boxes)


def _clear(
    centres_TR2: NDArray[np.float64], boxes_R4: NDArray[np.float64], most: float
) -> NDArray[np.bool_]:
    """(T,) whether no box takes more than `most` of another's."""
    low, high = centres_TR2 + boxes_R4[:, :2], centres_TR2 + boxes_R4[:, 2:]
    shared = np.minimum(high[:, :, None], high[:, None]) - np.maximum(low[:, :, None], low[:, None])
    area = shared.clip(0).prod(-1)
    box_areas = (boxes_R4[:, 2:] - boxes_R4[:, :2]).prod(1)
    least = np.minimum(box_areas[:, None], box_areas[None])
    same = np.eye(len(boxes_R4), dtype=bool)
    good: NDArray[np.bool_] = ((area <= most * least) | same).all((1, 2))
    return good


def _depth(poses: Poses) -> NDArray[np.int64]:
    """Subjects from back to front: what reaches further down stands before."""
    return np.argsort(poses.y + poses.side / 2)


def _reference_pose(rng: np.random.Generator, size: int) -> tuple[float, float, float, float, bool]:
    """x, y, side, tilt, mirrored."""
    scale = size / SCENE_SIZE
    side = rng.uniform(*REFERENCE_SIDES) * scale
    place = size / 2 + rng.uniform(-1, 1, 2) * (size - side) / 2
    if rng.random() < CROPPED_SHARE:
        axis, sign = rng.integers(2), rng.choice([-1, 1])
        beyond = side / 2 - rng.uniform(0.4, 1) * CUT * side
        place[axis] = size / 2 + sign * (size / 2 - beyond)
    tilt = rng.uniform(-REFERENCE_TILT, REFERENCE_TILT)
    return float(place[0]), float(place[1]), side, tilt, bool(rng.random() < 0.5)


def _reference_light(rngs: Sequence[np.random.Generator], size: int) -> Tensor:
    """(B, 1, size, size): light from one side, 0.8 to 1.12."""
    angle, slope, level = torch.tensor(
        np.stack([rng.random(3) for rng in rngs]), dtype=torch.float32
    ).T[:, :, None, None]
    place = torch.linspace(-1, 1, size)
    angle = angle * 2 * torch.pi
    side = angle.cos() * place[None, None, :] + angle.sin() * place[None, :, None]
    return (0.9 + 0.12 * level + 0.1 * slope * side)[:, None]


def mask_boxes(masks_BRHW: Tensor) -> Tensor:
    """(B, R, 4) int64: x0, y0, x1, y1, end exclusive; an empty mask gives zeros."""
    rows, cols = masks_BRHW.any(-1), masks_BRHW.any(-2)
    x0, y0 = cols.int().argmax(-1), rows.int().argmax(-1)
    x1 = cols.shape[-1] - cols.flip(-1).int().argmax(-1)
    y1 = rows.shape[-1] - rows.flip(-1).int().argmax(-1)
    return torch.stack([x0, y0, x1, y1], -1) * rows.any(-1)[..., None]
