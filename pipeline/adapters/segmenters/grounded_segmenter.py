"""What a mask model knows of the pictures that were pointed at last, so that the next point costs
no pass of the image encoder.

Which models they are is not known here: both adapters hand in theirs, so that what surrounds the
forward passes (views, batches, thresholds, masks) is the same code for both.

Letters: B images, S side of the mask model's view, N boxes or points, K mask proposals, Q queries,
T text tokens, H x W pixels of an image, h x w of a view.
"""

from __future__ import annotations

import hashlib
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.adapters.segmenters.detections import (
    MEAN,
    STD,
    Boxes,
    DetectionConfig,
    Floats,
    Prompt,
    boxes_of,
    choose_mask,
    detections_of,
    inner_size,
    prompt_of,
    resized,
    token_spans,
    view_size,
)
from focusdpo.pipeline.parts import Detection, Image, Labels, Mask, Points


class Embeddings:
    """By the digest of a picture's pixels; the one asked for longest ago goes first. Safe for
    threads: a picture is encoded once, also where two ask at the same time."""

    MOST = 4
    """SAM keeps 4 MiB of a picture, SAM 2 up to 16 MiB, where the model lies."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._known)

    def of(self, image: Image, encode: Callable[[], Any]) -> Any:
        """What is known of a picture, else what `encode` gives, which is kept."""
        digest = hashlib.sha256(f"{image.shape} {image.dtype} ".encode())
        digest.update(image.tobytes())
        key = digest.hexdigest()
        with self._lock:
            if key not in self._known:
                made = encode()
                while len(self._known) >= self.MOST:
                    self._known.popitem(last=False)
                self._known[key] = made
            self._known.move_to_end(key)
            return self._known[key]


Size = tuple[int, int]


class Detector(Protocol):
    """A text-prompted detector."""

    def offsets(self, caption: str) -> list[tuple[int, int]]:
        """First and last-but-one character of each of the caption's tokens; (0, 0): special."""
        ...

    def detect(self, pixels_B3hw: Tensor, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Logits (B, Q, T or more) and boxes (B, Q, 4) as shares; captions of equal length."""
        ...


class MaskModel(Protocol):
    """A mask model prompted with boxes or points."""

    @property
    def view(self) -> View: ...

    def encode(self, pixels_B3SS: Tensor) -> list[Any]:
        """What it knows of each image."""
        ...

    def propose(self, known: Any, corners_N4: Tensor, multimask: bool) -> tuple[Tensor, Tensor]:
        """Mask logits (N, K, any size) over the view and their quality (N, K), for boxes in pixels
        of the view."""
        ...

    def propose_at(
        self, known: Any, points_N2: Tensor, labels_N: Tensor, multimask: bool
    ) -> tuple[Tensor, Tensor]:
        """The same for one object that all points together tell: (1, K, any size) and (1, K)."""
        ...


class View(ABC):
    """How a mask model looks at an image: in a square of `side` pixels."""

    def __init__(self, side: int) -> None:
        self.side = side

    @abstractmethod
    def inner(self, size: Size) -> Size:
        """Rows and columns that an image of `size` takes in the square."""

    @abstractmethod
    def pixels(self, image: Image) -> Tensor:
        """(3, S, S)"""

    @abstractmethod
    def logits(self, logits_NK: Tensor, size: Size) -> Tensor:
        """Logits over the view -> (N, K, H, W) over the image."""

    def places(self, places: Floats | Points, size: Size) -> Tensor:
        """Points (N, 2) or boxes (N, 4) in pixels of an image of `size` -> of its view."""
        return _scaled(places, size, self.inner(size))


class PaddedView(View):
    """SAM's: the longer side becomes `side`, zeros fill the square at its right and bottom."""

    def inner(self, size: Size) -> Size:
        return inner_size(size, self.side)

    def pixels(self, image: Image) -> Tensor:
        rows, columns = self.inner(image.shape[:2])
        pixels = torch.from_numpy(resized(image, (rows, columns)))
        return F.pad(pixels, (0, self.side - columns, 0, self.side - rows))

    def logits(self, logits_NK: Tensor, size: Size) -> Tensor:
        rows, columns = self.inner(size)
        whole = _interpolate(logits_NK, (self.side, self.side))
        return _interpolate(whole[..., :rows, :columns], size)


class SquareView(View):
    """SAM 2's: the image is squeezed into a square."""

    def inner(self, size: Size) -> Size:
        return self.side, self.side

    def pixels(self, image: Image) -> Tensor:
        """(3, S, S); resized as floats, where SAM resizes 8 bits."""
        raw = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32))[None]
        square = (self.side, self.side)
        raw = F.interpolate(raw, square, mode="bilinear", align_corners=False, antialias=True)[0]
        return (raw - torch.from_numpy(MEAN)[:, None, None]) / torch.from_numpy(STD)[:, None, None]

    def logits(self, logits_NK: Tensor, size: Size) -> Tensor:
        return _interpolate(logits_NK, size)


class GroundedSegmenter:
    """Fits `pipeline.parts.Segmenter` and `PointSegmenter`.

    Images are grouped by the size of their view and the length of their caption, so that nothing
    is padded and an image's detections do not depend on its neighbours. `batch` images enter the
    detector at once, `mask_batch` the mask model. With dtype bfloat16 the detector and the mask
    model's image encoder run under autocast; weights and mask decoder stay in float32.
    """

    def __init__(
        self,
        detector: Detector,
        mask_model: MaskModel,
        config: DetectionConfig,
        *,
        fingerprint: str,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch: int = 8,
        mask_batch: int = 2,
    ) -> None:
        self.detector, self.mask_model, self.config = detector, mask_model, config
        self.fingerprint = fingerprint
        self._device, self._dtype = torch.device(device), dtype
        self._batch, self._mask_batch = batch, mask_batch
        self._pointed = Embeddings()

    def segment(
        self, images: Sequence[Image], class_names: Sequence[Sequence[str]]
    ) -> list[list[Detection]]:
        """All instances of each of the words in each image, best first. UserError for words that
        the detector cannot read and for numbers that are not finite."""
        if len(images) != len(class_names):
            raise ValueError(f"{len(images)} images and {len(class_names)} word lists")
        boxes = self.boxes(images, class_names)
        masks: list[list[Mask]] = [[] for _ in images]
        hits = [at for at, image_boxes in enumerate(boxes) if image_boxes.words]
        for start in range(0, len(hits), self._mask_batch):
            part = hits[start : start + self._mask_batch]
            made = self._masks([images[at] for at in part], [boxes[at] for at in part])
            for at, of_boxes in zip(part, made, strict=True):
                masks[at] = of_boxes
        return [detections_of(*both) for both in zip(boxes, masks, strict=True)]

    def segment_points(self, image: Image, points: Points, labels: Labels) -> Mask:
        """What the points tell, as SAM's authors ask: a single point may mean several things, of
        which the mask model trusts one most; for several points it gives its single mask. What it
        knows of the last pictures is kept. ValueError for points without labels, or none."""
        if points.shape != (len(labels), 2) or not len(labels):
            raise ValueError(f"points {points.shape} and labels {labels.shape}: one label a point")
        view, size = self.mask_model.view, image.shape[:2]
        (known,) = self._pointed.of(image, lambda: self._encoded([image]))
        with torch.inference_mode():
            logits, quality = self.mask_model.propose_at(
                known,
                view.places(points, size).to(self._device),
                torch.from_numpy(labels.astype(np.int32)).to(self._device),
                len(labels) == 1,
            )
            masks = (view.logits(logits, size)[0] > 0).cpu().numpy()
        return choose_mask(masks, _numbers(quality)[0])

    def boxes(self, images: Sequence[Image], class_names: Sequence[Sequence[str]]) -> list[Boxes]:
        """The boxes of each image, before masks."""
        out = [Boxes((), (), np.zeros((0, 4), np.float32)) for _ in images]
        prompts = [prompt_of(words) for words in class_names]
        offsets = [self.detector.offsets(prompt.caption) for prompt in prompts]
        tokens = [token_spans(p, o) for p, o in zip(prompts, offsets, strict=True)]
        for size, part in self._batches(images, prompts, [len(o) for o in offsets]):
            pixels = torch.from_numpy(np.stack([resized(images[at], size) for at in part]))
            with torch.inference_mode(), self._autocast():
                logits, shares = self.detector.detect(
                    pixels.to(self._device), [prompts[at].caption for at in part]
                )
            for at, row, corners in zip(part, _numbers(logits), _numbers(shares), strict=True):
                out[at] = boxes_of(
                    row, corners, prompts[at], tokens[at], images[at].shape[:2], self.config
                )
        return out

    def _batches(
        self, images: Sequence[Image], prompts: Sequence[Prompt], lengths: Sequence[int]
    ) -> Iterator[tuple[Size, list[int]]]:
        """Images with words, by view size and caption length, in parts of at most a batch."""
        groups: dict[tuple[Size, int], list[int]] = defaultdict(list)
        shorter, longer = self.config.shorter_side, self.config.longer_side
        for at, image in enumerate(images):
            if prompts[at].words:
                size = view_size(image.shape[:2], shorter, longer)
                groups[size, lengths[at]].append(at)
        for (size, _), members in groups.items():
            for start in range(0, len(members), self._batch):
                yield size, members[start : start + self._batch]

    def _masks(self, images: Sequence[Image], boxes_of_each: Sequence[Boxes]) -> list[list[Mask]]:
        """A mask for each box of each image."""
        known = self._encoded(images)
        with torch.inference_mode():
            return [
                self._masks_of(encoded, boxes, image.shape[:2])
                for encoded, boxes, image in zip(known, boxes_of_each, images, strict=True)
            ]

    def _encoded(self, images: Sequence[Image]) -> list[Any]:
        """What the mask model knows of each image."""
        pixels = torch.stack([self.mask_model.view.pixels(image) for image in images])
        with torch.inference_mode(), self._autocast():
            return self.mask_model.encode(pixels.to(self._device))

    def _masks_of(self, known: Any, boxes: Boxes, size: Size) -> list[Mask]:
        view = self.mask_model.view
        corners = view.places(boxes.corners, size).to(self._device)
        logits, quality = self.mask_model.propose(known, corners, self.config.multimask)
        # One box at a time at full size: 50 boxes of three 1024 x 1024 proposals are 600 MB.
        masks = [
            (view.logits(box_logits[None], size)[0] > 0).cpu().numpy() for box_logits in logits
        ]
        return [choose_mask(m, q) for m, q in zip(masks, _numbers(quality), strict=True)]

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32)


def _scaled(places: Floats | Points, size: Size, view: Size) -> Tensor:
    """Rows of x, y or of x0, y0, x1, y1."""
    ratio = np.array([view[1] / size[1], view[0] / size[0]] * (places.shape[1] // 2))
    return torch.from_numpy((places * ratio).astype(np.float32))


def _interpolate(logits_NK: Tensor, size: Size) -> Tensor:
    return F.interpolate(logits_NK, size, mode="bilinear", align_corners=False)


def _numbers(x: Tensor) -> Floats:
    """As float32 on the CPU. UserError for NaN."""
    numbers: Floats = x.float().cpu().numpy()
    if np.isnan(numbers).any():
        raise UserError(
            "the segmenter's models gave NaN: their weights are broken, or the dtype is too "
            "coarse for them (set dtype: float32)"
        )
    return numbers
