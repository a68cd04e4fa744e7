"""One sample of a shard: its fields by name, and the way from a pair to bytes and back.

Fields: json, win.png, lose.png, prior.png, complexity.png, losecomplexity.png, and for each of the
R subjects in scene order mask{i}.png, ref{i}.png, refmask{i}.png. A shard holds samples of one R
only, because readers want the same fields in every sample.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.images import decode_mask, decode_png, encode_png
from focusdpo.data_schemas.pairs import Pair, PairSource
from focusdpo.data_schemas.strict import first_problem

SAMPLE_VERSION = 2
"""Version of a sample's fields, apart from the store's: shards are cheap to write anew from a store
whose stages are in place."""
Split = Literal["train", "val"]
Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampleImages:
    """The pictures of a pair. H x W the scene's size, h x w a reference's, R subjects."""

    win: Image
    """(H, W, 3)"""
    lose: Image
    """(H, W, 3)"""
    masks: tuple[Mask, ...]
    """R of (H, W): where each subject stands."""
    prior: Mask
    """(H, W): the region really repainted (disrupt), or the union of `masks` (rank)."""
    complexity: NDArray[np.float32]
    """(H, W) in [0, 1], of the winner; the shard keeps 8 bits of it."""
    lose_complexity: NDArray[np.float32]
    """The same of the loser, inside the same prior."""
    references: tuple[Image, ...]
    """R of (h, w, 3), white outside the mask."""
    reference_masks: tuple[Mask, ...]
    """R of (h, w)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShardSample:
    """A sample as it comes out of a shard."""

    pair: Pair
    split: Split
    images: SampleImages


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRow:
    """Where a pair of a dataset version lies, and what one may want to choose it by."""

    pair_id: str
    digest: str
    """Content of the pair: its record with the keys of its images."""
    scene_id: str
    partition: str
    split: Split
    source: PairSource
    mode: str
    num_subjects: int
    subject_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    prompt: str
    margin: float
    win_identity: tuple[float, ...]
    lose_identity: tuple[float, ...]
    win_clip_t: float
    lose_clip_t: float
    shard: str
    """File name below shards/."""
    offset: int
    """Of the sample's first tar header, in bytes."""
    size: int
    """Bytes of the sample in the tar, headers and padding included."""
    checksum: str
    """blake2b-64 of those bytes."""


def field_names(num_subjects: int) -> list[str]:
    """The fields of a sample with R subjects, in the order in which they lie in the tar."""
    per_subject = [
        f"{part}{i}.png" for i in range(num_subjects) for part in ("mask", "ref", "refmask")
    ]
    shared = [f"{name}.png" for name in ("win", "lose", "prior", "complexity", "losecomplexity")]
    return sorted(["json", *shared, *per_subject])


def pair_digest(pair: Pair) -> str:
    """16 hexadecimal digits of a pair's record; image keys are content keys, so of its pixels."""
    text = json.dumps(dataclasses.asdict(pair), sort_keys=True, allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def encode(pair: Pair, images: SampleImages, split: Split) -> dict[str, bytes]:
    """Field name -> bytes, in `field_names` order. ValueError when sizes or counts disagree."""
    _check(pair, images)
    values = dataclasses.asdict(pair)
    # Readers that infer a column's type from the first samples must not meet null among strings.
    values["prior"] = pair.prior or ""
    header = {"schema_version": SAMPLE_VERSION, "split": split, "pair": values}
    fields = {
        "json": json.dumps(header, sort_keys=True, allow_nan=False).encode(),
        "win.png": encode_png(images.win),
        "lose.png": encode_png(images.lose),
        "prior.png": encode_png(images.prior),
        "complexity.png": encode_png(_levels(images.complexity)),
        "losecomplexity.png": encode_png(_levels(images.lose_complexity)),
    }
    for i in range(len(pair.subject_ids)):
        fields[f"mask{i}.png"] = encode_png(images.masks[i])
        fields[f"ref{i}.png"] = encode_png(images.references[i])
        fields[f"refmask{i}.png"] = encode_png(images.reference_masks[i])
    return {name: fields[name] for name in field_names(len(pair.subject_ids))}


def _levels(share_HW: NDArray[np.float32]) -> NDArray[np.uint8]:
    levels: NDArray[np.uint8] = np.rint(np.clip(share_HW, 0.0, 1.0) * 255.0).astype(np.uint8)
    return levels


def decode(fields: Mapping[str, Any], where: str = "sample") -> ShardSample:
    """The sample of a mapping from field name to bytes; webdataset's `__key__` and the like are
    passed over. UserError names `where`, the pair and the field."""
    header = _header(fields, where)
    pair = header.pair
    where = f"{where}, pair {pair.id}"
    missing = [name for name in field_names(len(pair.subject_ids)) if name not in fields]
    if missing:
        raise UserError(f"{where}: fields {missing} are missing; the shard is damaged")

    def image(name: str) -> Image:
        array = decode_png(fields[f"{name}.png"], f"{where}, {name}.png")
        if array.ndim != 3:
            raise UserError(f"{where}, {name}.png: expected three channels")
        return array

    def mask(name: str) -> Mask:
        return decode_mask(fields[f"{name}.png"], f"{where}, {name}.png")

    def share(name: str) -> NDArray[np.float32]:
        levels = decode_png(fields[f"{name}.png"], f"{where}, {name}.png")
        return levels.astype(np.float32) / np.float32(255.0)

    num = range(len(pair.subject_ids))
    images = SampleImages(
        win=image("win"),
        lose=image("lose"),
        prior=mask("prior"),
        complexity=share("complexity"),
        lose_complexity=share("losecomplexity"),
        masks=tuple(mask(f"mask{i}") for i in num),
        references=tuple(image(f"ref{i}") for i in num),
        reference_masks=tuple(mask(f"refmask{i}") for i in num),
    )
    return ShardSample(pair=pair, split=header.split, images=images)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    schema_version: int
    split: Split
    pair: Pair


@functools.cache
def _header_adapter() -> TypeAdapter[_Header]:
    return TypeAdapter(_Header)


def _header(fields: Mapping[str, Any], where: str) -> _Header:
    if "json" not in fields:
        raise UserError(f"{where}: field 'json' is missing; the shard is damaged")
    try:
        header = _header_adapter().validate_json(fields["json"])
    except ValidationError as error:
        raise UserError(f"{where}: json, {first_problem(error)}") from error
    if header.schema_version != SAMPLE_VERSION:
        raise UserError(
            f"{where}: schema version {header.schema_version}, this focusdpo reads "
            f"{SAMPLE_VERSION}; build the dataset again"
        )
    pair = dataclasses.replace(header.pair, prior=header.pair.prior or None)
    return dataclasses.replace(header, pair=pair)


def _check(pair: Pair, images: SampleImages) -> None:
    """A sample of unequal sizes would train without an error and wrongly."""
    num = len(pair.subject_ids)
    if not num == len(images.masks) == len(images.references) == len(images.reference_masks):
        raise ValueError(f"pair {pair.id}: {num} subjects but another number of images")
    size = images.win.shape[:2]
    for name, array in (
        ("lose", images.lose),
        ("prior", images.prior),
        ("complexity", images.complexity),
        ("lose_complexity", images.lose_complexity),
        *((f"mask{i}", mask) for i, mask in enumerate(images.masks)),
    ):
        if array.shape[:2] != size:
            raise ValueError(f"pair {pair.id}: {name} is {array.shape}, the winner {size}")
    for i, (picture, mask) in enumerate(
        zip(images.references, images.reference_masks, strict=True)
    ):
        if picture.shape[:2] != mask.shape:
            raise ValueError(f"pair {pair.id}: ref{i} is {picture.shape}, its mask {mask.shape}")
