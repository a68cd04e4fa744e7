"""Whatever stands out of a picture, as regions: U2-Net (arXiv 2005.09007) in ONNX.

It reads no words: a region is an instance of nobody in particular, and looks alone tell whose it
is. Two things that touch are one region. Small enough for a CPU (0.3 s a picture).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from scipy import ndimage

from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.adapters.preprocess import IMAGENET_MEAN, IMAGENET_STD
from focusdpo.pipeline.parts import Detection, Image, Mask
from focusdpo.store.checkpoints import digest_files

VERSION = 1
SIDE = 320
"""Pixels a side at which the network looks."""
SALIENT = 0.5
"""Of the map, scaled to [0, 1], what belongs to a region."""
OPENING = 2
"""Pixels of the map by which thin bridges between regions are cut."""
LEAST = 0.004
"""Share of the picture below which a region is a speck."""
FRAGMENT = 0.15
"""Of the largest region: a smaller one is a piece that was cut off, not a thing of its own."""
PREPARING = 2
"""Threads beside the network's own."""
FLAT = 0.1
"""A map whose values spread less than this shows nothing that stands out."""


class SaliencySegmenter:
    """Fits `pipeline.parts.Segmenter`, but for the words, which it gives back as ''."""

    def __init__(self, source: Path, field: str) -> None:
        """UserError that names `field` for an absent or wrong file, or without onnxruntime."""
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise UserError(
                f"{field}: needs the package onnxruntime; pip install 'focusdpo[lite]'"
            ) from error
        if not source.is_file():
            raise UserError(f"{field}: {source} is absent; docs/measure.md says how to make it")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # As many threads as torch has: a machine that is shared is not taken over.
        options.intra_op_num_threads = _threads()
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(source), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own classes share no public base
            if not type(error).__module__.startswith("onnxruntime"):
                raise
            raise UserError(f"{field}: {source} is no ONNX network that can be read") from error
        (self._input,) = (get_input.name for get_input in self._session.get_inputs())
        self.fingerprint = digest_files([source], f"saliency-{VERSION}")

    def segment(
        self, images: Sequence[Image], class_names: Sequence[Sequence[str]]
    ) -> list[list[Detection]]:
        """The regions of each image, the largest first, whatever the words are."""
        # The network looks at one while threads prepare the next and read the map of the last.
        with ThreadPoolExecutor(PREPARING, "saliency") as pool:
            ready = [pool.submit(_prepared, image) for image in images]
            futures = [
                pool.submit(regions, _scaled(self.look(future.result())), image.shape[:2])
                for future, image in zip(ready, images, strict=True)
            ]
            return [future.result() for future in futures]

    def look(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Bare forward pass of one normalised picture (1, 3, SIDE, SIDE) -> (SIDE, SIDE)."""
        plane: NDArray[np.float32] = self._session.run(None, {self._input: batch})[0]
        return plane.reshape(SIDE, SIDE)


def _prepared(image: Image) -> NDArray[np.float32]:
    """(1, 3, SIDE, SIDE), normalised."""
    small = np.asarray(Pillow.fromarray(image).resize((SIDE, SIDE), Pillow.Resampling.LANCZOS))
    # A table of what each of the 256 values becomes, looked up: no arithmetic on pixels.
    scaled = np.arange(256, dtype=np.float32) / max(float(small.max()), 1.0)
    values = (scaled[:, None] - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    table = values.astype(np.float32)
    return np.stack([np.take(table[:, at], small[..., at]) for at in range(3)])[None]


def _scaled(plane: NDArray[np.float32]) -> NDArray[np.float32]:
    """The map from 0 to 1; all 0 where nothing stands out."""
    low, high = float(plane.min()), float(plane.max())
    if high - low < FLAT:
        return np.zeros_like(plane)
    return np.asarray((plane - low) / (high - low), np.float32)


def regions(plane: NDArray[np.float32], shape: tuple[int, int]) -> list[Detection]:
    """The connected regions of a map as detections in a picture of this shape (H, W)."""
    solid = _grown(~_grown(~(plane > SALIENT), beyond=True), beyond=False)
    labels, count = ndimage.label(solid)
    parts = [labels == label for label in range(1, count + 1)]
    least = max([FRAGMENT * float(part.mean()) for part in parts] + [LEAST])
    detections = []
    for part in parts:
        if part.mean() < least:
            continue
        soft = np.where(_grown(part, beyond=False), plane, np.float32(0))
        mask = _enlarged(soft, shape)
        if not mask.any():
            continue
        rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = (int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1)
        confidence = float(plane[part].mean())
        detections.append(
            Detection(class_name="", mask=mask, box=box, confidence=min(1.0, confidence))
        )
    return sorted(
        detections, key=lambda detection: (-np.count_nonzero(detection.mask), detection.box)
    )


def _grown(solid: Mask, *, beyond: bool) -> Mask:
    """The mask and all within `OPENING` steps up, down, left or right; `beyond` is what lies past
    the border. As scipy's binary_dilation, a tenth of its time."""
    for _ in range(OPENING):
        wide = np.pad(solid, 1, constant_values=beyond)
        beside = wide[1:-1, :-2] | wide[1:-1, 2:] | wide[:-2, 1:-1] | wide[2:, 1:-1]
        solid = solid | beside
    return solid


def _enlarged(soft: NDArray[np.float32], shape: tuple[int, int]) -> Mask:
    """Where a map that is 0 but for one region is over `SALIENT` when scaled to `shape` (H, W).

    Pillow scales along rows, then along columns: only rows and columns with some of the region are
    scaled, which gives the same numbers.
    """
    height, width = shape
    mask = np.zeros(shape, np.bool_)
    rows = np.flatnonzero(soft.any(axis=1))
    if not rows.size:
        return mask
    band = np.s_[rows[0] : rows[-1] + 1]
    wide = np.zeros((SIDE, width), np.float32)
    wide[band] = _resized(soft[band], (width, rows[-1] + 1 - rows[0]))
    cols = np.flatnonzero(wide.any(axis=0))
    part = np.s_[cols[0] : cols[-1] + 1]
    mask[:, part] = _resized(wide[:, part], (cols[-1] + 1 - cols[0], height)) > SALIENT
    return mask


def _resized(plane: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Scaled to (width, height)."""
    image = Pillow.fromarray(np.ascontiguousarray(plane))
    return np.asarray(image.resize(size, Pillow.Resampling.BILINEAR))


def _threads() -> int:
    import torch

    return torch.get_num_threads()
