"""Masks of pictures that are being added: the one that a build would use, and what a segmenter that
takes no points sees.

Everything is in pixels of the view, which is the picture, made smaller where it is large.
"""

from __future__ import annotations

import functools
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from focusdpo.data_schemas.images import Picture
from focusdpo.flows.config import GenerateRun
from focusdpo.flows.wiring import resident_parts
from focusdpo.pipeline.subjects.cutouts import StoredMasks, find_subject
from focusdpo.store.artefacts import Store

LARGEST_VIEW = 1024
POCKET_SIDE = 64
"""Side of the pictures that the pocket segmenter reads."""
ANY = "object"

Array = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def view_of(picture: Picture) -> Array:
    """(h, w, 3): what the page shows, its longer side at most `LARGEST_VIEW`."""
    height, width = picture.image.shape[:2]
    scale = min(1.0, LARGEST_VIEW / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.array(Image.fromarray(picture.image).resize(size, Image.Resampling.BOX))


def found_mask(
    picture: Picture, run: GenerateRun, class_name: str, store: Store | None
) -> tuple[Mask, str]:
    """The mask of `view_of(picture)` that `subjects add` would find, and a note or "".

    As there, the segmenter is asked only where it belongs to the suite and the class is known.
    """
    finder = None
    if run.suite != "pocket" and store is not None and class_name:
        masks = StoredMasks(store, resident_parts(run.family).segmenter)
        finder = functools.partial(masks, class_name=class_name)
    _, alpha, note = find_subject(picture, run.ingest.size, run.ingest.tolerance, finder)
    height, width = view_of(picture).shape[:2]
    return resized(alpha > 127, (height, width)), note


def resized(mask: Mask, shape: tuple[int, int]) -> Mask:
    """The mask at another size, its edge smooth."""
    if mask.shape == shape:
        return mask
    soft = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    grey = soft.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    if (growth := max(shape) / max(mask.shape)) > 1:
        grey = grey.filter(ImageFilter.GaussianBlur(growth / 2))  # else steps, as large as pixels
    return np.asarray(grey) > 127


def with_alpha(picture: Picture, mask: Mask) -> Image.Image:
    """The picture with the mask as its alpha."""
    shape = picture.image.shape[:2]
    alpha = resized(mask, (shape[0], shape[1])).astype(np.uint8) * np.uint8(255)
    return Image.fromarray(np.dstack([picture.image, alpha]), "RGBA")


class Instances:
    """What the suite's segmenter finds in a view; asked once per view and class."""

    MOST = 8

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[Any, list[Mask]] = {}

    def of(self, view: Array, name: str, run: GenerateRun, class_name: str) -> list[Mask]:
        """All of them. `name` tells views apart."""
        with self._lock:
            key = (name, view.shape, class_name)
            if key not in self._known:
                while len(self._known) >= self.MOST:
                    del self._known[next(iter(self._known))]
                self._known[key] = _instances(view, run, class_name)
            return self._known[key]


def _instances(view: Array, run: GenerateRun, class_name: str) -> list[Mask]:
    words = tuple(dict.fromkeys([class_name or ANY, ANY]))
    segmenter = resident_parts(run.family).segmenter
    height, width = view.shape[:2]
    if run.suite != "pocket":
        (found,) = segmenter.segment([view], [words])
        return [one.mask for one in found]
    # The pocket segmenter reads small squares: white is put around, and taken away again.
    side = max(height, width)
    square = np.full((side, side, 3), 255, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = view
    small = Image.fromarray(square).resize((POCKET_SIDE, POCKET_SIDE), Image.Resampling.BOX)
    (found,) = segmenter.segment([np.array(small)], [words])
    masks = [resized(one.mask, (side, side)) for one in found]
    return [mask[top : top + height, left : left + width] for mask in masks]
