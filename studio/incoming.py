"""What visitors send: names of files, pictures, drawn masks. None of it is believed."""

from __future__ import annotations

import io
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.images import DECODE_ERRORS, Picture, read_picture
from focusdpo.flows.config import GenerateRun
from focusdpo.studio.masks import Mask

LONGEST_SHOWN = 80
LARGEST_SIDE = 2048
"""Of a drawn mask; a view is smaller."""


def shown_name(name: str) -> str:
    """A file's name as it can be shown: no control or direction marks, not too long."""
    clean = "".join(
        one if one.isprintable() else "\N{REPLACEMENT CHARACTER}"
        for one in unicodedata.normalize("NFC", name[:1000])
    ).strip()
    if len(clean) > LONGEST_SHOWN:
        clean = f"{clean[: LONGEST_SHOWN - 20]}…{clean[-19:]}"
    return clean or "unnamed picture"


def read_named(file: Path, name: str, run: GenerateRun) -> Picture:
    """`read_picture`, whose errors call the picture by the visitor's name for it."""
    try:
        return read_picture(file, min_side=run.ingest.min_side, max_pixels=run.ingest.max_pixels)
    except UserError as error:
        raise UserError(str(error).replace(str(file), name)) from error


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
