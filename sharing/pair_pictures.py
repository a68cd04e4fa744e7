"""The pictures of imported pairs: read, checked, of one size; where winner and loser differ.

What cannot be used is a UserError that names file and line of its row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from scipy import ndimage

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.images import Picture, read_picture
from focusdpo.pipeline.parts import Image, Mask
from focusdpo.pipeline.subjects.cutouts import Finder, cut_out
from focusdpo.pipeline.subjects.ingest import Cutout, IngestConfig
from focusdpo.sharing.pair_records import ImportConfig, SubjectRecord
from focusdpo.sharing.pair_tables import TableRow


@dataclass(frozen=True, slots=True, eq=False)
class PairPictures:
    """The pictures of a row. H x W one size."""

    win: Image
    lose: Image
    prior: Mask | None
    """(H, W): where the two differ, told or found; None where they differ everywhere."""
    masks: tuple[Mask | None, ...]
    """(H, W) of each subject in the winner; None where it is to be looked for."""


def read_pair(row: TableRow, config: ImportConfig, limits: IngestConfig) -> PairPictures:
    """The pictures of a row, checked. UserError for what does not fit together, names its row."""
    record = row.record
    win, lose = (_read(row, name, limits).image for name in (record.win, record.lose))
    if win.shape != lose.shape:
        raise UserError(
            f"{row.where}: {record.win} is {_size(win)}, {record.lose} {_size(lose)} pixels; a "
            "pair's pictures have one size"
        )
    if np.array_equal(win, lose):
        raise UserError(
            f"{row.where}: {record.win} and {record.lose} are the same picture; a pair has two"
        )
    shape = win.shape[:2]
    prior = None if record.prior is None else _mask(row, record.prior, shape, limits)
    masks = tuple(_subject_mask(row, subject, shape, limits) for subject in record.subjects)
    side = config.size
    win, lose = _fitted(win, side), _fitted(lose, side)
    masks = tuple(None if mask is None else _fitted(mask, side) for mask in masks)
    if record.source != "rank":
        prior = difference(win, lose, config) if prior is None else _fitted(prior, side)
        share = 1.0 if prior is None else float(prior.mean())
        if record.source is None and share > config.everywhere:
            prior = None
    else:
        prior = None
    return PairPictures(win, lose, prior, masks)


def difference(win: Image, lose: Image, config: ImportConfig) -> Mask | None:
    """(H, W): the region in which two pictures differ, holes filled, with a rim; None where that is
    nothing by more than the tolerance, or more than the share that counts as everywhere."""
    apart = np.abs(win.astype(np.int16) - lose.astype(np.int16)).max(axis=2) > config.tolerance
    apart = ndimage.binary_opening(apart) if ndimage.binary_opening(apart).any() else apart
    grow = round(config.grow * win.shape[0])
    if grow:
        apart = ndimage.binary_dilation(apart, iterations=grow)
    region: Mask = ndimage.binary_fill_holes(apart)
    return region if region.any() and region.mean() <= config.everywhere else None


def read_reference(
    row: TableRow, subject: SubjectRecord, config: IngestConfig, find: Finder | None
) -> Cutout:
    """A subject's reference and its mask, (S, S). One that has this size and a mask is taken as it
    is; others are cut out, squared and scaled as pictures of subjects are."""
    picture = _read(row, subject.reference, config)
    if subject.reference_mask is not None:
        mask = _mask(row, subject.reference_mask, picture.image.shape[:2], config)
        if mask.shape == (config.size, config.size):
            return picture.image, mask
        alpha = mask.astype(np.uint8) * np.uint8(255)
        picture = Picture(image=picture.image, alpha=alpha, notes=picture.notes)
    where = f"{row.where}: {subject.reference}"
    image, mask, _ = cut_out(picture, config.size, config.tolerance, find, where)
    return image, mask


def _read(row: TableRow, name: str, limits: IngestConfig) -> Picture:
    try:
        return read_picture(row.path(name), min_side=limits.min_side, max_pixels=limits.max_pixels)
    except UserError as error:
        raise UserError(f"{row.where}: {error}") from error


def _mask(row: TableRow, name: str, shape: tuple[int, ...], limits: IngestConfig) -> Mask:
    """Drawn in white, or cut out."""
    drawn = _read(row, name, limits)
    if drawn.image.shape[:2] != shape:
        raise UserError(
            f"{row.where}: {name} is {_size(drawn.image)} pixels, its picture "
            f"{shape[1]} x {shape[0]}; save both with one size"
        )
    light = drawn.image.max(axis=2)
    mask: Mask = (light if drawn.alpha is None else np.minimum(light, drawn.alpha)) > 127
    if not mask.any():
        raise UserError(f"{row.where}: {name} is empty; draw it in white, or leave it out")
    return mask


def _subject_mask(
    row: TableRow, subject: SubjectRecord, shape: tuple[int, ...], limits: IngestConfig
) -> Mask | None:
    if subject.mask is not None:
        return _mask(row, subject.mask, shape, limits)
    if subject.box is None:
        return None
    x0, y0, x1, y1 = subject.box
    mask = np.zeros(shape, dtype=np.bool_)
    mask[max(0, round(y0)) : max(0, round(y1)), max(0, round(x0)) : max(0, round(x1))] = True
    if not mask.any():
        raise UserError(
            f"{row.where}: box {x0:g} {y0:g} {x1:g} {y1:g} holds no pixel of {shape[1]} x "
            f"{shape[0]}; expected x0 y0 x1 y1, end exclusive"
        )
    return mask


Pixels = TypeVar("Pixels", bound=np.generic)


def _fitted(array: NDArray[Pixels], side: int) -> NDArray[Pixels]:
    """Scaled so that the shorter side is `side`, and cropped around the middle; 0: as it is."""
    height, width = array.shape[:2]
    if side in (0, height) and side in (0, width):
        return array
    scale = side / min(height, width)
    fit = (max(side, round(width * scale)), max(side, round(height * scale)))
    is_mask = array.dtype == np.bool_
    pixels = array.astype(np.uint8) * np.uint8(255) if is_mask else array
    how = PillowImage.Resampling.BOX if is_mask else PillowImage.Resampling.LANCZOS
    scaled = np.asarray(PillowImage.fromarray(pixels).resize(fit, how))
    top, left = (fit[1] - side) // 2, (fit[0] - side) // 2
    cut = scaled[top : top + side, left : left + side]
    return (cut > 127 if is_mask else cut).astype(array.dtype, copy=False)


def _size(image: NDArray[np.generic]) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"
