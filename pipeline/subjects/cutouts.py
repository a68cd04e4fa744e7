"""From a picture to a reference: its mask found or read, the subject cut out, squared, on white.

Subjects are read at every start of a build, so a mask must not cost a model each time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.images import Picture
from focusdpo.data_schemas.subjects import Reference
from focusdpo.pipeline.parts import Segmenter
from focusdpo.pipeline.subjects.picture_checks import picture_notes
from focusdpo.store.artefacts import Store
from focusdpo.store.keys import content_key, digest, image_key

Finder = Callable[[NDArray[np.uint8]], NDArray[np.bool_] | None]
"""Picture (H, W, 3) -> mask (H, W) of its subject; None when it finds none."""

MIN_SHARE, MAX_SHARE = 0.02, 0.98
"""A background guess that leaves less or more of the picture than this found no subject; an alpha
that leaves more cut nothing out."""
ROUND_SHARE, ALIKE = 0.94, 0.995
"""Corners rounded by a fifth of the side leave more of the picture than this, and are each other's
mirror images but for so few pixels."""
MIN_PIXELS = 64
"""Fewer opaque pixels are no subject: stray ones are left behind by erasers."""
FITS = 3
"""Rounds of fitting the background, each without what the last one could not explain."""
BORDER_SHARE = 0.9
"""So much of the picture's border must show the background: a photograph's seldom does, and a
subject may touch one side."""
NEAR_BELOW, RIM = 0.5, 0.1
"""A subject whose longer side is a smaller share of the picture's is gone near to, with a rim of
this share of it around."""


def cut_out(
    picture: Picture,
    size: int,
    tolerance: int,
    find: Finder | None = None,
    where: object = "the picture",
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], list[str]]:
    """Image (size, size, 3) on white, mask (size, size), and what its owner should know.

    The mask is `find_subject`'s. UserError that names `where` when nothing is visible.
    """
    if picture.alpha is not None:
        _check_visible(picture.alpha, where)
    picture, alpha, note = find_subject(picture, size, tolerance, find)
    notes = [note] if note else picture_notes(picture, alpha, size)
    image, opacity = _square(picture.image, alpha, size)
    mask = opacity > 127
    if not mask.any():
        raise UserError(f"{where}: nothing is left of the subject at {size} pixels; it is too thin")
    return image, mask, notes


def _check_visible(alpha: NDArray[np.uint8], where: object) -> None:
    most, count = int(alpha.max()), int((alpha > 127).sum())
    if most <= 127:
        seen = f"at most {most} of 255; 128 and more count" if most else "0 everywhere"
        raise UserError(f"{where}: nothing is visible (alpha is {seen}); replace or remove it")
    if count < MIN_PIXELS:
        raise UserError(
            f"{where}: alpha leaves {count} opaque pixel{'s' * (count > 1)}, a subject has at "
            f"least {MIN_PIXELS}; replace or remove it"
        )


def find_subject(
    picture: Picture, size: int, tolerance: int, find: Finder | None = None
) -> tuple[Picture, NDArray[np.uint8], str]:
    """The picture, perhaps made smaller, its subject's opacity (H, W), and a note or "".

    The opacity is the alpha channel where that cuts something out; without, what differs from a
    uniform background that touches the border; failing that, what `find` finds, and if that is
    nothing, the whole picture.
    """
    note = ""
    if picture.alpha is not None and _cuts_out(picture.alpha > 127):
        alpha = picture.alpha
    else:
        # Small enough to be quick, large enough to be exact at `size`.
        picture = _shrink(picture, 4 * size)
        seen = None if picture.alpha is None else picture.alpha > 127
        subject = _subject_before_background(picture.image, tolerance, seen)
        looked_for = ""
        if subject is None and find is not None:
            subject, looked_for = find(picture.image), ", and the segmenter found nothing"
        if subject is None:
            note = (
                f"no alpha and no uniform background{looked_for}: the whole picture counts as the "
                "subject; for better pairs cut it out (transparent background)"
            )
            subject = np.ones(picture.image.shape[:2], dtype=np.bool_)
        if seen is not None:
            subject = subject & seen
        alpha = subject.astype(np.uint8) * np.uint8(255)
    return picture, alpha, note


def _cuts_out(solid: NDArray[np.bool_]) -> bool:
    """Whether an alpha (H, W) leaves a subject, and not the whole picture but for a few pixels or
    its corners."""
    share = solid.mean()
    if share > MAX_SHARE:
        return False
    corners = solid[[0, 0, -1, -1], [0, -1, 0, -1]]
    height, width = solid.shape
    sides = [solid[0, width // 2], solid[-1, width // 2], solid[height // 2, [0, -1]].all()]
    mirrored = min((solid == solid[::-1]).mean(), (solid == solid[:, ::-1]).mean())
    rounded = share > ROUND_SHARE and not corners.any() and all(sides) and mirrored > ALIKE
    return not rounded


def _shrink(picture: Picture, side: int) -> Picture:
    height, width = picture.image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return picture
    fit = (max(1, round(width * scale)), max(1, round(height * scale)))

    def smaller(plane: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.array(Image.fromarray(plane).resize(fit, Image.Resampling.BOX))

    alpha = None if picture.alpha is None else smaller(picture.alpha)
    return Picture(image=smaller(picture.image), alpha=alpha, notes=picture.notes)


def _subject_before_background(
    image: NDArray[np.uint8], tolerance: int, seen: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_] | None:
    """(H, W) bool: what is not background; None when the border shows no single background. Of
    what is not `seen` (H, W) the colours do not count."""
    alike = np.abs(image - _smooth_background(image, seen)).max(axis=2) <= tolerance
    if seen is not None:
        alike |= ~seen
    if _border(alike).mean() < BORDER_SHARE:
        return None
    # Only what the border reaches: a white belly on white ground belongs to the subject.
    labels, _ = ndimage.label(alike)
    reached = np.unique(_border(labels))
    background = np.isin(labels, reached[reached > 0])
    subject: NDArray[np.bool_] = ndimage.binary_opening(~background, iterations=1)
    return subject if MIN_SHARE <= subject.mean() <= MAX_SHARE else None


def _smooth_background(
    image: NDArray[np.uint8], seen: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """(H, W, 3): the quadratic surface per channel that the border's colours suggest. Even
    studio light falls off towards a corner, so one colour is too strict."""
    height, width = image.shape[:2]
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=2)
    rows, colours = _border(terms), _border(image).astype(np.float64)
    if seen is not None and _border(seen).any():
        rows, colours = rows[_border(seen)], colours[_border(seen)]
    kept = np.ones(len(rows), dtype=np.bool_)
    for _ in range(FITS):
        fit, *_ = np.linalg.lstsq(rows[kept], colours[kept], rcond=None)
        error = np.abs(rows @ fit - colours).max(axis=1)
        # A subject that touches the border must not bend the surface.
        kept = error <= max(2 * float(np.median(error)), 1.0)
    return np.asarray(terms @ fit)


def _border(plane: NDArray[Any]) -> NDArray[Any]:
    """The outermost pixels of (H, W, ...) in a row."""
    return np.concatenate([plane[0], plane[-1], plane[1:-1, 0], plane[1:-1, -1]])


def _square(
    image: NDArray[np.uint8], alpha: NDArray[np.uint8], size: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The picture, or the part of it around a small subject, scaled to fit and centred on a white
    square, and its opacity."""
    image, alpha = _near(image, alpha)
    height, width = alpha.shape
    scale = size / max(height, width)
    fit = (max(1, round(width * scale)), max(1, round(height * scale)))
    # Premultiplied, so that colours under a transparent alpha do not bleed into the edge.
    weight = alpha.astype(np.float32) / np.float32(255)
    opacity = _resize(weight, fit)
    colours = [_resize(image[..., c].astype(np.float32) * weight, fit) for c in range(3)]
    on_white = np.stack(colours, axis=2) + np.float32(255) * (1 - opacity[..., None])
    square = np.full((size, size, 3), 255, dtype=np.uint8)
    cover = np.zeros((size, size), dtype=np.uint8)
    top, left = (size - fit[1]) // 2, (size - fit[0]) // 2
    square[top : top + fit[1], left : left + fit[0]] = _to_uint8(on_white)
    cover[top : top + fit[1], left : left + fit[0]] = _to_uint8(opacity * 255)
    return square, cover


def _near(
    image: NDArray[np.uint8], alpha: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A subject that fills less than half of its picture, with a rim around: it would have no
    detail left at the size of a stored reference. Others are left as they are."""
    shape = alpha.shape
    solid = alpha > 127
    rows, cols = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    if not rows.size:
        return image, alpha
    side = max(rows[-1] - rows[0], cols[-1] - cols[0]) + 1
    if side >= NEAR_BELOW * max(shape):
        return image, alpha
    rim = round(side * RIM)
    window = tuple(
        slice(max(0, line[0] - rim), min(size, line[-1] + 1 + rim))
        for line, size in zip((rows, cols), shape, strict=True)
    )
    return image[window], alpha[window]


def _resize(plane: NDArray[np.float32], fit: tuple[int, int]) -> NDArray[np.float32]:
    # BOX has no negative lobes: opacity stays within [0, 1].
    scaled = Image.fromarray(plane).resize(fit, Image.Resampling.BOX)
    return np.asarray(scaled, dtype=np.float32)


def _to_uint8(plane: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.rint(np.clip(plane, 0, 255)).astype(np.uint8)


VERSION = 1
STAGE = "cutouts"
_MASK = "mask.png"


class StoredMasks:
    """Fits `ingest.FindSubject`: the most confident instance of the class word."""

    def __init__(self, store: Store, segmenter: Segmenter, min_confidence: float = 0.0) -> None:
        self._store, self._segmenter = store, segmenter
        self._min_confidence = min_confidence

    def __call__(self, image: NDArray[np.uint8], *, class_name: str) -> NDArray[np.bool_] | None:
        """Mask (H, W) of a picture (H, W, 3); None when nothing confident is found."""
        key = content_key(
            STAGE,
            VERSION,
            {"class_name": class_name, "min_confidence": self._min_confidence},
            self._segmenter.fingerprint,
            [digest(np.ascontiguousarray(image).tobytes() + str(image.shape).encode())],
        )
        if not self._store.has(STAGE, key):
            (detections,) = self._segmenter.segment([image], [(class_name,)])
            best = max(detections, key=lambda detection: detection.confidence, default=None)
            kept = best is not None and best.confidence >= self._min_confidence
            mask = best.mask if best is not None and kept else np.zeros(image.shape[:2], np.bool_)
            self._store.commit(STAGE, key, [], Reference, images={_MASK: mask})
        mask = self._store.mask(image_key(STAGE, key, _MASK))
        return mask if mask.any() else None
