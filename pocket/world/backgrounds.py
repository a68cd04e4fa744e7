"""Backgrounds of the pocket world: grounds seen from above, calm enough for subjects to stand out.

Each name has one large texture, made once per process from a fixed seed; a picture shows a window
of it, mirrored by chance and in its own light. Letters: B items, H = W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from focusdpo.pocket.classes import BACKGROUNDS

TEXTURE_SIZE = 256
_PALETTE = {
    "sand": ((0.87, 0.78, 0.60), (0.76, 0.65, 0.47)),
    "grass": ((0.50, 0.66, 0.33), (0.36, 0.53, 0.25)),
    "water": ((0.46, 0.70, 0.82), (0.29, 0.55, 0.73)),
    "snow": ((0.97, 0.98, 1.00), (0.83, 0.88, 0.95)),
    "bricks": ((0.72, 0.42, 0.33), (0.80, 0.75, 0.69)),
    "wood": ((0.70, 0.51, 0.33), (0.50, 0.34, 0.21)),
    "asphalt": ((0.45, 0.45, 0.48), (0.33, 0.33, 0.36)),
    "tiles": ((0.84, 0.88, 0.89), (0.62, 0.68, 0.71)),
}


def paint_backgrounds(
    names: Sequence[str], rngs: Sequence[np.random.Generator], size: int
) -> Tensor:
    """(B, 3, size, size) in [0, 1]."""
    pictures = torch.stack([
        _window(name, rng, size) for name, rng in zip(names, rngs, strict=True)
    ])  # fmt: skip
    return pictures * _light(rngs, size)


def _window(name: str, rng: np.random.Generator, size: int) -> Tensor:
    row, col = rng.integers(0, TEXTURE_SIZE - size, 2)
    window = _textures()[BACKGROUNDS.index(name)][:, row : row + size, col : col + size]
    return window.flip(2) if rng.random() < 0.5 else window


def _light(rngs: Sequence[np.random.Generator], size: int) -> Tensor:
    """(B, 1, size, size): light that falls off to one side, 0.82 to 1.08."""
    angle, fall, level = torch.tensor(
        np.stack([rng.random(3) for rng in rngs]), dtype=torch.float32
    ).T[:, :, None, None]
    place = torch.linspace(-1, 1, size)
    angle = angle * 2 * torch.pi
    slope = angle.cos() * place[None, None, :] + angle.sin() * place[None, :, None]
    return (0.94 + 0.06 * level + 0.08 * fall * slope)[:, None]


@cache
def _textures() -> list[Tensor]:
    """(3, T, T) in [0, 1] for each background."""
    return [_texture(name) for name in BACKGROUNDS]


def _texture(name: str) -> Tensor:
    rng = np.random.default_rng([BACKGROUNDS.index(name), 0xB6])
    mix = np.clip(_FIGURES.get(name, _rough)(rng), 0, 1)
    first, second = (np.array(colour)[:, None, None] for colour in _PALETTE[name])
    return torch.from_numpy((first + (second - first) * mix).astype(np.float32))


def _noise(
    rng: np.random.Generator, down: float, across: float | None = None
) -> NDArray[np.float64]:
    """Smooth noise of mean 0 and standard deviation 1."""
    raw = rng.standard_normal((TEXTURE_SIZE, TEXTURE_SIZE))
    smooth: NDArray[np.float64] = ndimage.gaussian_filter(raw, (down, across or down), mode="wrap")
    return smooth / smooth.std()


def _places() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows, cols = np.mgrid[:TEXTURE_SIZE, :TEXTURE_SIZE].astype(np.float64)
    return rows, cols


def _rough(rng: np.random.Generator) -> NDArray[np.float64]:
    """Asphalt: fine grain on faint clouds."""
    return 0.45 + 0.14 * _noise(rng, 0.7) + 0.13 * _noise(rng, 9)


def _sand(rng: np.random.Generator) -> NDArray[np.float64]:
    rows, cols = _places()
    ripples = np.sin((rows + 0.35 * cols) * 0.36 + 1.7 * _noise(rng, 16))
    return 0.38 + 0.2 * ripples + 0.07 * _noise(rng, 0.7) + 0.1 * _noise(rng, 14)


def _grass(rng: np.random.Generator) -> NDArray[np.float64]:
    return 0.5 + 0.2 * _noise(rng, 2.2, 0.7) + 0.16 * _noise(rng, 10)


def _water(rng: np.random.Generator) -> NDArray[np.float64]:
    rows, _ = _places()
    waves = np.sin(rows * 0.3 + 2.2 * _noise(rng, 7, 14))
    return 0.5 + 0.25 * waves + 0.15 * _noise(rng, 10, 20)


def _snow(rng: np.random.Generator) -> NDArray[np.float64]:
    return 0.35 + 0.25 * _noise(rng, 13) + 0.05 * _noise(rng, 0.8)


def _bricks(rng: np.random.Generator) -> NDArray[np.float64]:
    rows, cols = _places()
    high, wide = 12, 28
    shifted = cols + wide / 2 * ((rows // high) % 2)
    mortar = (rows % high < 1.6) | (shifted % wide < 1.6)
    tone = rng.random((TEXTURE_SIZE, 2 * TEXTURE_SIZE))
    shade = tone[(rows // high).astype(int), (shifted // wide).astype(int)]
    return np.where(mortar, 0.85, 0.28 * shade + 0.05 * _noise(rng, 0.8))


def _wood(rng: np.random.Generator) -> NDArray[np.float64]:
    rows, cols = _places()
    wide = 24
    plank = (cols // wide).astype(int)
    tone = rng.random(TEXTURE_SIZE)[plank]
    grain = 0.14 * _noise(rng, 14, 0.9)
    return np.where(cols % wide < 1.4, 0.95, 0.15 + 0.4 * tone + grain)


def _tiles(rng: np.random.Generator) -> NDArray[np.float64]:
    rows, cols = _places()
    side = 24
    tone = rng.random((TEXTURE_SIZE, TEXTURE_SIZE))
    shade = tone[(rows // side).astype(int), (cols // side).astype(int)]
    joint = (rows % side < 1.5) | (cols % side < 1.5)
    return np.where(joint, 0.95, 0.22 * shade + 0.05 * _noise(rng, 5))


_FIGURES = {
    "sand": _sand,
    "grass": _grass,
    "water": _water,
    "snow": _snow,
    "bricks": _bricks,
    "wood": _wood,
    "tiles": _tiles,
}
