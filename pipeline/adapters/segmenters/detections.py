"""From a text-prompted detector's numbers to Detections: pure functions that both segmentation
adapters share, so that equal logits, boxes and masks give equal records.

Letters: Q boxes (queries), T text tokens, W words, N kept boxes, K mask proposals of a box, H x W
pixels. Boxes of the detector are (centre x, centre y, width, height) as shares of the image.
Prompt, thresholds and the phrase of a box follow Grounding DINO (arXiv 2303.05499) and its
inference code; boxes to masks follow Grounded SAM (arXiv 2401.14159).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture
from pydantic import Field

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.strict import StrictModel
from focusdpo.pipeline.parts import Detection, Image, Mask
from focusdpo.store.checkpoints import require_files

Floats = NDArray[np.float32]

MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)
"""ImageNet's, on 0..255: what Grounding DINO, SAM and SAM 2 were trained with."""
MOST_TOKENS = 256
"""Text tokens that Grounding DINO reads; what comes after would be cut off."""


class DetectionConfig(StrictModel):
    """Which boxes of the detector become detections."""

    box_threshold: float = Field(
        0.35, ge=0, le=1, description="a box needs a token of the prompt above this"
    )
    text_threshold: float = Field(
        0.25, ge=0, le=1, description="and its word a token of its own above this"
    )
    nms_iou: float = Field(
        0.8, gt=0, le=1, description="of boxes that overlap more than this the best stays"
    )
    max_boxes: int = Field(50, ge=1, description="most boxes of an image that get a mask")
    shorter_side: int = Field(800, ge=32, description="the detector's view, pixels")
    longer_side: int = Field(1333, ge=32, description="but no side of it longer than this")
    multimask: bool = Field(
        False,
        description="SAM proposes three masks per box and the one it trusts most is taken; false:"
        " its single mask, meant for boxes",
    )


@dataclass(frozen=True, slots=True)
class Prompt:
    """A caption of all words and where each stands in it (character start, end)."""

    words: tuple[str, ...]
    caption: str
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Boxes:
    """N boxes of an image, best first."""

    words: tuple[str, ...]
    confidences: tuple[float, ...]
    corners: Floats
    """(N, 4): x0, y0, x1, y1 in pixels, within the image."""


def prompt_of(words: Sequence[str]) -> Prompt:
    """ "a cat. an old dog.": lower case, a full stop after each word, as the detector was trained.

    Full stops and question marks within a word would cut it in two and become spaces. UserError
    for a word without letters and for two words that read the same.
    """
    caption, spans, seen = "", [], dict[str, str]()
    for word in words:
        plain = " ".join(re.sub(r"[.?]", " ", word.lower()).split())
        if not plain:
            raise UserError(f"class name {word!r} has nothing that a detector could look for")
        if plain in seen:
            raise UserError(
                f"class names {seen[plain]!r} and {word!r} read the same to the detector; use one"
            )
        seen[plain] = word
        caption += (" " if caption else "") + ("an " if plain[0] in "aeiou" else "a ")
        spans.append((len(caption), len(caption) + len(plain)))
        caption += plain + "."
    return Prompt(tuple(words), caption, tuple(spans))


def token_spans(prompt: Prompt, offsets: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The tokens of each word, by place: `offsets` are the tokenizer's (character start, end) of
    each token, (0, 0) for special ones. UserError for a word without tokens and for a caption that
    is too long."""
    if len(offsets) > MOST_TOKENS:
        raise UserError(
            f"the class names of a scene make {len(offsets)} text tokens, the detector reads "
            f"{MOST_TOKENS}; use shorter or fewer ones"
        )
    tokens = [
        [at for at, (start, end) in enumerate(offsets) if start < end and first <= start < last]
        for first, last in prompt.spans
    ]
    for word, places in zip(prompt.words, tokens, strict=True):
        if not places:
            raise UserError(f"class name {word!r} has nothing that the detector's tokenizer knows")
    return tokens


def boxes_of(
    logits_QT: Floats,
    boxes_Q4: Floats,
    prompt: Prompt,
    tokens: Sequence[Sequence[int]],
    size: tuple[int, int],
    config: DetectionConfig,
) -> Boxes:
    """The boxes that answer a word, in an image of `size` (rows, columns).

    A box belongs to the word whose best token fits it best, and that fit is its confidence. Tokens
    of no word (article, full stop, [CLS]) can let a box pass `box_threshold`, as in the original,
    but give it no word.
    """
    fit_QT = _sigmoid(logits_QT)
    fit_QW = np.stack([fit_QT[:, list(places)].max(axis=1) for places in tokens], axis=1)
    word_Q = fit_QW.argmax(axis=1)
    fit_Q = fit_QW.max(axis=1)
    corners_Q4 = corners_of(boxes_Q4, size)
    real_Q = (corners_Q4[:, 2:] > corners_Q4[:, :2]).all(axis=1)
    passes_Q = (fit_QT.max(axis=1) > config.box_threshold) & (fit_Q > config.text_threshold)
    good = set(np.flatnonzero(passes_Q & real_Q).tolist())
    order = [q for q in np.argsort(-fit_Q, kind="stable").tolist() if q in good]
    kept = non_maximum(corners_Q4[order], config.nms_iou)[: config.max_boxes]
    chosen = [order[at] for at in kept]
    return Boxes(
        tuple(prompt.words[word_Q[q]] for q in chosen),
        tuple(float(fit_Q[q]) for q in chosen),
        corners_Q4[chosen],
    )


def corners_of(boxes_Q4: Floats, size: tuple[int, int]) -> Floats:
    """Centre, width, height as shares -> x0, y0, x1, y1 in pixels, within the image."""
    rows, columns = size
    scale = np.array([columns, rows, columns, rows], np.float32)
    half = boxes_Q4[:, 2:] / 2
    corners = np.concatenate([boxes_Q4[:, :2] - half, boxes_Q4[:, :2] + half], axis=1) * scale
    return corners.clip(0, scale).astype(np.float32)


def non_maximum(corners_N4: Floats, iou: float) -> list[int]:
    """Places of the boxes that overlap no better one (an earlier one) by more than `iou`."""
    kept: list[int] = []
    for at in range(len(corners_N4)):
        if not kept or (_iou(corners_N4[at], corners_N4[kept]) <= iou).all():
            kept.append(at)
    return kept


def choose_mask(proposals_KHW: NDArray[np.bool_], quality_K: Floats) -> Mask:
    """The proposal that the mask model trusts most; the first of equals."""
    chosen: Mask = proposals_KHW[int(quality_K.argmax())]
    return chosen


def detections_of(boxes: Boxes, masks: Sequence[Mask]) -> list[Detection]:
    """Detections with the tight box of their mask, most confident first; empty masks are none.

    Confidences are rounded: past the fourth decimal they tell how a kernel adds up.
    """
    detections = [
        Detection(word, mask, _box(mask), round(confidence, 4))
        for word, confidence, mask in zip(boxes.words, boxes.confidences, masks, strict=True)
        if mask.any()
    ]
    return sorted(detections, key=lambda d: (-d.confidence, d.class_name, d.box))


def view_size(size: tuple[int, int], shorter: int, longer: int) -> tuple[int, int]:
    """Rows and columns of the detector's view: the shorter side becomes `shorter`, unless the
    longer would exceed `longer`; fractions are cut, as in the original code."""
    low, high = min(size), max(size)
    if high / low * shorter > longer:
        shorter = round(longer * low / high)
    rows, columns = size
    if rows < columns:
        return shorter, int(shorter * columns / rows)
    return int(shorter * rows / columns), shorter


def inner_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Rows and columns of an image whose longer side becomes `side`, as SAM rounds them."""
    scale = side / max(size)
    rows, columns = size
    return int(rows * scale + 0.5), int(columns * scale + 0.5)


def resized(image: Image, size: tuple[int, int]) -> Floats:
    """(3, rows, columns), normalised: bilinear with antialiasing on 8 bits, as Grounding DINO and
    SAM resize."""
    if image.shape[:2] != size:
        picture = Picture.fromarray(image).resize(size[::-1], Picture.Resampling.BILINEAR)
        image = np.asarray(picture)
    pixels: Floats = (image.astype(np.float32) - MEAN) / STD
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _sigmoid(x: Floats) -> Floats:
    # Padded tokens have a logit of minus infinity; the two branches never overflow.
    positive = x >= 0
    small = np.exp(np.where(positive, -x, x))
    return np.where(positive, 1 / (1 + small), small / (1 + small)).astype(np.float32)


def _iou(corners_4: Floats, others_N4: Floats) -> NDArray[np.float32]:
    low = np.maximum(corners_4[:2], others_N4[:, :2])
    high = np.minimum(corners_4[2:], others_N4[:, 2:])
    shared = (high - low).clip(0).prod(axis=1)
    area = (corners_4[2:] - corners_4[:2]).prod()
    union = area + (others_N4[:, 2:] - others_N4[:, :2]).prod(axis=1) - shared
    return np.asarray(shared / union, np.float32)


def _box(mask: Mask) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def tokenizer_files(folder: Path, field: str) -> list[Path]:
    """Those that the folder holds, in a fixed order. UserError when none has a vocabulary."""
    whole = ("tokenizer.json", "vocab.txt")
    require_files(folder, [(name,) for name in whole], field)
    names = (*whole, "tokenizer_config.json", "special_tokens_map.json")
    return [folder / name for name in names if (folder / name).is_file()]


def require_bert_tokens(tokenizer: Any, folder: Path, field: str) -> None:
    """UserError unless the tokens that part Grounding DINO's phrases have the ids it was trained
    with; a damaged vocabulary is read without complaint and would find nothing."""
    wanted = {"[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}
    numbers = {token: tokenizer.convert_tokens_to_ids(token) for token in wanted}
    if numbers != wanted:
        raise UserError(
            f"{field}: the tokenizer in {folder} is not that of bert-base-uncased: it numbers "
            f"{numbers}, expected {wanted}; download its files again"
        )
