"""What a mask model knows of the pictures that were pointed at last, so that the next point costs
no pass of the image encoder."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from focusdpo.pipeline.parts import Image


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
