"""Pictures as browsers get them: thumbnails, overlays, heat maps. Made when asked for, and kept in
memory up to a bound. Shapes: H x W pixels."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.images import DECODE_ERRORS, Picture
from focusdpo.reports.thumbnails import Array, Mask, border, heat, resized

LARGEST_SIDE = 2048
"""Of a drawn mask; a view is smaller."""
LARGEST_VIEW = 1024
KEPT_BYTES = 96 * 2**20
PIXEL_ART = 128
"""Pictures up to this side stay exact: they are enlarged with hard pixels."""
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167))
"""Okabe and Ito's, of the first, second, ... subject: told apart by the colour-blind."""
GAP = 2


@dataclass(frozen=True)
class Encoded:
    """A picture's bytes."""

    data: bytes
    mime: str


class PictureCache:
    """The pictures asked for last, up to `most` bytes. Safe for threads."""

    def __init__(self, most: int = KEPT_BYTES) -> None:
        self._most, self._held = most, 0
        self._pictures: OrderedDict[tuple[object, ...], Encoded] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[object, ...], make: Callable[[], Encoded]) -> Encoded:
        """The picture under a key that says all that its bytes depend on."""
        with self._lock:
            kept = self._pictures.get(key)
            if kept is not None:
                self._pictures.move_to_end(key)
                return kept
        made = make()
        with self._lock:
            if key not in self._pictures:
                self._pictures[key] = made
                self._held += len(made.data)
            while self._held > self._most and len(self._pictures) > 1:
                self._held -= len(self._pictures.popitem(last=False)[1].data)
        return made

    @property
    def held(self) -> int:
        """Bytes that are kept now."""
        return self._held


def encode(image: Array, largest: int | None = None) -> Encoded:
    """(H, W, 3) or (H, W) as WebP: exact up to `PIXEL_ART`, else small; at most `largest` a
    side."""
    picture = Image.fromarray(image).convert("RGB")
    exact = max(picture.size) <= 2 * PIXEL_ART + GAP
    if largest is not None and max(picture.size) > largest and not exact:
        picture.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    if exact:
        return encode_exact(np.asarray(picture))
    sink = io.BytesIO()
    picture.save(sink, "WEBP", quality=85, method=2)
    return Encoded(sink.getvalue(), "image/webp")


def side_by_side(left: Array, right: Array, side: int) -> Encoded:
    """Two pictures in one, each at most `side`, with a thin gap."""
    both = [_shrunk(left, side), _shrunk(right, side)]
    height = max(picture.shape[0] for picture in both)
    width = sum(picture.shape[1] for picture in both) + GAP
    sheet = np.full((height, width, 3), 255, np.uint8)
    sheet[: both[0].shape[0], : both[0].shape[1]] = both[0]
    sheet[: both[1].shape[0], width - both[1].shape[1] :] = both[1]
    return encode(sheet)


def _shrunk(image: Array, side: int) -> Array:
    picture = Image.fromarray(image).convert("RGB")
    if max(picture.size) > max(side, PIXEL_ART):
        picture.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(picture)


def outlined(image: Array, masks: Sequence[Mask], colours: Sequence[tuple[int, int, int]]) -> Array:
    """The picture with each mask tinted and its border drawn, each in its colour."""
    out = image.astype(np.float32)
    for mask, colour in zip(masks, colours, strict=False):
        inside = resized(mask, image.shape[:2])
        out[inside] = 0.78 * out[inside] + 0.22 * np.array(colour, np.float32)
        out[border(inside, max(1, max(image.shape[:2]) // 200))] = colour
    return out.round().astype(np.uint8)


def difference(win: Array, lose: Array) -> Array:
    """Where two pictures differ, and how much: the mean over channels, bright at half the range."""
    apart = np.abs(win.astype(np.float32) - lose.astype(np.float32)).mean(axis=2) / 255.0
    return heat(apart, 0.0, 0.5)


def encode_exact(image: Array) -> Encoded:
    """As PNG, whatever its size."""
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "PNG", compress_level=1)
    return Encoded(sink.getvalue(), "image/png")


def drawn_mask(data: bytes) -> Mask:
    """A mask as a page's canvas sends it: PNG, white where the subject is."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if max(image.size) > LARGEST_SIDE:
                raise UserError("the mask is larger than any view; load the page again")
            return np.asarray(image.convert("RGB").getchannel(0)) > 127
    except UserError:
        raise
    except (*DECODE_ERRORS, Image.DecompressionBombError) as error:
        raise UserError("the mask did not arrive whole; try again") from error


def view_of(picture: Picture) -> Array:
    """(h, w, 3): what the page shows, its longer side at most `LARGEST_VIEW`."""
    height, width = picture.image.shape[:2]
    scale = min(1.0, LARGEST_VIEW / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.array(Image.fromarray(picture.image).resize(size, Image.Resampling.BOX))


def rescaled(mask: Mask, shape: tuple[int, int]) -> Mask:
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
    alpha = rescaled(mask, (shape[0], shape[1])).astype(np.uint8) * np.uint8(255)
    return Image.fromarray(np.dstack([picture.image, alpha]), "RGBA")
