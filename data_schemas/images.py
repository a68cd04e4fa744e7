"""Images as bytes: PNG of our own arrays, and pictures that people bring."""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from focusdpo.data_schemas.errors import UserError

PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""What a picture may really be, whatever its name says."""
MAX_SIDE = 16_384
"""Pixels a side: decoders and resizers work by rows, so that few long ones or many short ones cost
far more than their pixels."""
MAX_PIXELS = 50_000_000
DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError,
    MemoryError, ZeroDivisionError, AttributeError, RuntimeError, struct.error, zlib.error,
)  # fmt: skip
"""What Pillow's decoders raise on damaged bytes (found by feeding them such)."""
MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
"""Pillow's names of the kinds of pixels that become RGB without a question."""
SIGNATURES = (
    (b"....ftyp(heic|heix|hevc|heim|heis|hevm|hevs|mif1|msf1)", "HEIC, as phones make it"),
    (b"....ftypavi[fs]", "AVIF, which the installed Pillow cannot read"),
    (b"....ftyp", "a film"),
    (b"%PDF", "a PDF"),
    (b"8BPS", "a Photoshop file"),
    (rb"\s*(<\?xml[^>]*>\s*)?<svg", "SVG, a drawing"),
    (rb"\s*<(!doctype )?html", "a web page"),
    (b"PK\x03\x04", "a zip archive"),
    (b"version https://git-lfs", "a pointer of Git LFS and not the picture itself"),
)
"""How files begin that people take for pictures, and what they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A decoded picture. H x W pixels, upright."""

    image: NDArray[np.uint8]
    """(H, W, 3), sRGB; colours under a transparent alpha are as stored."""
    alpha: NDArray[np.uint8] | None
    """(H, W), 0 to 255; None when the picture is opaque everywhere."""
    notes: tuple[str, ...]
    """What was done to it that its owner may want to know."""


def encode_png(array: NDArray[np.generic], *, effort: int = 6) -> bytes:
    """PNG of (H, W, 3) uint8, (H, W) uint8 or (H, W) bool (0 or 255); same array and effort (0 to
    9), same bytes. With effort 1 it takes a fifth of the time and a tenth more room."""
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    if array.dtype != np.uint8 or not (
        array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    ):
        raise ValueError(f"image is {array.shape} {array.dtype}, expected uint8 (H, W[, 3])")
    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(sink, format="PNG", compress_level=effort)
    return sink.getvalue()


SYNTHETIC = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's word for a picture that a trained model has painted: what its DigitalSourceType says."""
XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" '
    'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">'
    f"<Iptc4xmpExt:DigitalSourceType>{SYNTHETIC}</Iptc4xmpExt:DigitalSourceType>"
    "</rdf:Description></rdf:RDF></x:xmpmeta>"
    '<?xpacket end="w"?>'
).encode()
"""The mark of a painted picture as an XMP packet: what JPEG and WebP take as it is."""
_IHDR_END = 33
"""Bytes of a PNG's signature and header chunk, which come first."""


def mark_png(png: bytes, wanted: bool = True) -> bytes:
    """The PNG with the mark of a painted picture (IPTC, as XMP), its pixels untouched; as it is
    where that is not wanted or the mark is there."""
    if not wanted or is_marked(png):
        return png
    text = b"iTXt" + b"XML:com.adobe.xmp\0" + b"\0\0\0\0" + XMP
    size, check = (len(text) - 4).to_bytes(4, "big"), zlib.crc32(text).to_bytes(4, "big")
    return png[:_IHDR_END] + size + text + check + png[_IHDR_END:]


def is_marked(picture: bytes) -> bool:
    """Whether a PNG, JPEG or WebP of ours says that it was painted."""
    return XMP in picture


def decode_png(data: bytes, where: str = "image") -> NDArray[np.uint8]:
    """The array of `encode_png`'s bytes: (H, W, 3) or (H, W). UserError names `where`."""
    return _decoded(data, where, "PNG")


def encode_jpeg(array: NDArray[np.uint8]) -> bytes:
    """JPEG of a picture (H, W, 3), for eyes alone: a tenth of a PNG's time and room."""
    sink = io.BytesIO()
    Image.fromarray(array).save(sink, format="JPEG", quality=90)
    return sink.getvalue()


def decode_jpeg(data: bytes, where: str = "image") -> NDArray[np.uint8]:
    """The array (H, W, 3) of `encode_jpeg`'s bytes, nearly. UserError names `where`."""
    return _decoded(data, where, "JPEG")


def _decoded(data: bytes, where: str, kind: str) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as image:
            check_size(where, image.size)
            if image.mode not in ("RGB", "L"):
                raise UserError(f"{where}: {kind} of mode {image.mode}, expected RGB or L")
            return np.array(image)
    except UserError:
        raise
    except (*DECODE_ERRORS, Image.DecompressionBombError) as error:
        raise UserError(f"{where}: not a readable {kind} ({error})") from error


def contact_sheet(
    pictures: Sequence[NDArray[np.uint8]], *, columns: int, scale: int = 1
) -> Image.Image:
    """Pictures of equal size (H, W, 3) in rows, a white line between them."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * (height + 2) + 2, columns * (width + 2) + 2, 3), 255, dtype=np.uint8)
    for at, picture in enumerate(pictures):
        y = 2 + at // columns * (height + 2)
        x = 2 + at % columns * (width + 2)
        sheet[y : y + height, x : x + width] = picture
    image = Image.fromarray(sheet)
    size = (image.width * scale, image.height * scale)
    return image.resize(size, Image.Resampling.NEAREST)


def decode_mask(data: bytes, where: str = "mask") -> NDArray[np.bool_]:
    """(H, W) bool of a single-channel PNG: above 127."""
    array = decode_png(data, where)
    if array.ndim != 2:
        raise UserError(f"{where}: a mask has one channel, this has {array.shape[2]}")
    return array > 127


def read_picture(path: str | Path, *, min_side: int = 16, max_pixels: int = MAX_PIXELS) -> Picture:
    """A picture from a user's file, upright, 8-bit sRGB, its alpha apart.

    The size is read from the header and checked before a pixel is decoded. Raises UserError that
    names the file for anything that is not a whole PNG, JPEG, WebP or GIF, that is narrower than
    `min_side` or has more than `max_pixels` pixels or `MAX_SIDE` a side.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise UserError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
        if path.stat().st_size == 0:
            raise UserError(f"{path}: the file is empty (0 bytes); replace or remove it")
        with warnings.catch_warnings():
            # Our own limit below is stricter and names the file.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            # Of odd tags in a picture that can be read all the same.
            warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
            with Image.open(path, formats=PICTURE_FORMATS) as image:
                check_size(path, image.size, min_side, max_pixels)
                return _decode(path, image)
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(_too_large(path, "hundreds of", max_pixels)) from error
    except PermissionError as error:
        raise UserError(f"{path}: no permission to read it") from error
    except Image.UnidentifiedImageError as error:
        kind = _kind_of(path)
        raise UserError(
            f"{path}: {f'this is {kind}, ' if kind else ''}not an image that can be read; save it "
            "as PNG, JPEG or WebP"
        ) from error
    except DECODE_ERRORS as error:
        raise UserError(
            f"{path}: the image is damaged or truncated ({error}); save it again or remove it"
        ) from error


def _kind_of(path: Path) -> str | None:
    """What a file that is no picture is, by its first bytes, whatever its name says."""
    with path.open("rb") as file:
        start = file.read(512)
    return next(
        (kind for sign, kind in SIGNATURES if re.match(sign, start, re.DOTALL | re.IGNORECASE)),
        None,
    )


def _too_large(path: str | Path, megapixels: object, max_pixels: int) -> str:
    return (
        f"{path}: {megapixels} megapixels, at most {max_pixels / 1e6:g} are read; "
        "scale it down (a subject needs no more than 2000 pixels a side)"
    )


def check_size(
    path: str | Path, size: tuple[int, int], min_side: int = 1, max_pixels: int = MAX_PIXELS
) -> None:
    """UserError that names `path` unless a picture of `size` (width, height) may be decoded: to be
    asked when its header was read, before a pixel is."""
    width, height = size
    if min(size) < min_side:
        raise UserError(
            f"{path}: {width} x {height} pixels, each side must have at least {min_side}"
        )
    if width * height > max_pixels:
        megapixels = f"{width} x {height} pixels = {width * height / 1e6:.0f}"
        raise UserError(_too_large(path, megapixels, max_pixels))
    if max(size) > MAX_SIDE:
        raise UserError(
            f"{path}: {width} x {height} pixels, at most {MAX_SIDE} a side are read; crop it or "
            "scale it down"
        )


def _decode(path: Path, image: Image.Image) -> Picture:
    notes = []
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        several = "{} pages" if image.format == "TIFF" else "animated ({} frames)"
        notes.append(f"{several.format(image.n_frames)}: the first is used")  # type: ignore[attr-defined]
    image.load()
    upright = image
    if image.getexif().get(0x0112, 1) != 1:
        upright = ImageOps.exif_transpose(image)
        notes.append("turned upright by its EXIF orientation")
    if upright.mode.startswith("I"):
        notes.append("16-bit grey reduced to 8 bits")
        upright = _to_8_bit(upright)
    if upright.mode not in MODES:
        raise UserError(
            f"{path}: its pixels are of the kind {upright.mode}; save it as RGB with 8 bits"
        )
    alpha = None
    if upright.has_transparency_data:
        channel = np.array(upright.convert("RGBA").getchannel("A"))
        alpha = channel if channel.min() < 255 else None
    rgb = _to_srgb(upright, image.info.get("icc_profile"), notes)
    return Picture(image=np.array(rgb), alpha=alpha, notes=tuple(notes))


def _to_8_bit(image: Image.Image) -> Image.Image:
    # convert("L") would clip at 255 instead of scaling.
    wide = np.array(image)  # uint16, or int32 that may hold more
    np.clip(wide, 0, 65535, out=wide)
    wide //= 257
    return Image.fromarray(wide.astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """RGB, through the picture's own colour profile where it has one."""
    if image.mode == "CMYK":
        notes.append("CMYK converted to RGB")
    if profile:
        try:
            return _through_profile(image, profile)
        except (ImageCms.PyCMSError, *DECODE_ERRORS):
            notes.append("its colour profile cannot be read and is ignored")
    return _without_alpha(image)


def _without_alpha(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in ("RGBA", "CMYK"):
        return image.convert("RGB")
    # By way of RGBA, so that palettes with transparency keep their colours.
    return image.convert("RGBA").convert("RGB")


def _through_profile(image: Image.Image, data: bytes) -> Image.Image:
    source = ImageCms.ImageCmsProfile(io.BytesIO(data))
    space = source.profile.xcolor_space.strip()
    if space == "RGB":
        image = _without_alpha(image)
    elif space == "GRAY" and image.mode in ("1", "L", "LA", "La"):
        image = image.convert("L")
    elif space != image.mode:
        raise ValueError(f"a profile of {space} for pixels of {image.mode}")
    target = ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    if converted is None:
        raise ValueError("no conversion")
    return converted
