"""Masks of photographs: found once by a segmenter, then kept in the store.

Subjects are read at every start of a build, so a mask must not cost a model each time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from focusdpo.data_schemas.subjects import Reference
from focusdpo.pipeline.keys import content_key, digest, image_key
from focusdpo.pipeline.parts import Segmenter
from focusdpo.pipeline.store import Store

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
            (found,) = self._segmenter.segment([image], [(class_name,)])
            best = max(found, key=lambda one: one.confidence, default=None)
            kept = best is not None and best.confidence >= self._min_confidence
            mask = best.mask if best is not None and kept else np.zeros(image.shape[:2], np.bool_)
            self._store.commit(STAGE, key, [], Reference, images={_MASK: mask})
        mask = self._store.mask(image_key(STAGE, key, _MASK))
        return mask if mask.any() else None
