"""From pictures to what image encoders look at: pure functions of uint8 images, no torch.

The protocol of DINO and DINOv2 is that of torchvision's `Resize(256, BICUBIC)`, `CenterCrop(224)`
on a PIL image, and bit-equal to it; normalisation happens on the model's device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image as Pillow

from focusdpo.data_schemas.images import read_picture
from focusdpo.pipeline.parts import Image, Mask
from focusdpo.pipeline.score import crop_on_white

VERSION = 1
"""Raised whenever the same picture would give other pixels; part of encoders' fingerprints."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESIZE, SIDE = 256, 224
"""Official evaluation transform of DINO (arXiv 2104.14294) and DINOv2 (arXiv 2304.07193)."""

CropPolicy = Literal["official", "square"]
"""What of a square instance crop is looked at: "official" = `official`, which cuts a sixteenth
off each side; "square" = all of it, scaled to 224 x 224."""


def read_image(image: Image | Path) -> Image:
    """(H, W, 3) uint8: the array itself, or the pixels of a file, upright and in sRGB; what a
    transparent picture shows under its alpha is put on white. UserError as `read_picture`."""
    if isinstance(image, np.ndarray):
        return image
    picture = read_picture(image, min_side=1)
    if picture.alpha is None:
        return picture.image
    alpha = picture.alpha[..., None].astype(np.float32) / 255
    on_white = picture.image * alpha + 255 * (1 - alpha)
    return np.rint(on_white).astype(np.uint8)


def instance(image: Image, mask: Mask, margin: float, policy: CropPolicy) -> Image:
    """(224, 224, 3): the masked subject on white, in a square crop with a border of `margin` of
    its longer side. Under "official" nothing of the subject is lost from margin 0.072 on."""
    crop = crop_on_white(image, mask, margin)
    return official(crop) if policy == "official" else square(crop, SIDE)


def official(image: Image, resize: int = RESIZE, side: int = SIDE) -> Image:
    """(side, side, 3): the shorter side scaled to `resize`, bicubic, and the centre cut out."""
    height, width = image.shape[:2]
    short, long = min(height, width), max(height, width)
    grown = int(resize * long / short)  # truncated, as torchvision does
    size = (resize, grown) if width <= height else (grown, resize)
    scaled = _scaled(image, size)
    # Rounded half to even, as torchvision does.
    top, left = round((size[1] - side) / 2), round((size[0] - side) / 2)
    return np.asarray(scaled.crop((left, top, left + side, top + side)))


def square(image: Image, side: int) -> Image:
    """(side, side, 3): the whole picture, whatever its aspect."""
    return np.asarray(_scaled(image, (side, side)))


def _scaled(image: Image, size: tuple[int, int]) -> Pillow.Image:
    return Pillow.fromarray(np.ascontiguousarray(image)).resize(size, Pillow.Resampling.BICUBIC)
