"""Keeps an image model busy: pictures are decoded and scaled in threads while it works.

Pillow and numpy release the interpreter's lock where it counts, so the next batches are made ready
beside the forward pass; they stay uint8 until they are on the device. Letters: B pictures of a
batch, S side in pixels, D length of a vector.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from focusdpo.pipeline.parts import Image, Vectors
from focusdpo.pipeline.stage import chunks

AHEAD = 3
"""So many batches are in preparation beside the one that is looked at."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Item = TypeVar("Item")


class Looker:
    """A frozen image model with its normalisation: `look` is the bare forward pass."""

    def __init__(
        self,
        features: Callable[[Tensor], Tensor],
        mean: Sequence[float],
        std: Sequence[float],
        side: int,
        *,
        device: str,
        dtype: str,
    ) -> None:
        self.features, self.side = features, side
        self.device, self.dtype = torch.device(device), DTYPES[dtype]
        self._mean = torch.tensor(mean, device=self.device)[:, None, None]
        self._std = torch.tensor(std, device=self.device)[:, None, None]

    def normalise(self, images_BSS3: Tensor) -> Tensor:
        """uint8 -> (B, 3, S, S) in the model's dtype on its device; in float32 bit-equal to
        torchvision's ToTensor and Normalize."""
        x = images_BSS3.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        x = x.to(torch.float32, memory_format=torch.contiguous_format).div(255)
        return x.sub_(self._mean).div_(self._std).to(self.dtype)

    def look(self, images_B3SS: Tensor) -> Tensor:
        """Normalised images -> unit vectors (B, D), float32."""
        with torch.inference_mode():
            return F.normalize(self.features(images_B3SS).float(), dim=-1)


class Stream(Generic[Item]):
    """Items of any kind -> unit vectors, by way of `prepare`: item -> (S, S, 3) uint8."""

    def __init__(self, looker: Looker, prepare: Callable[[Item], Image], batch: int) -> None:
        self.looker, self.prepare, self.batch = looker, prepare, batch

    def run(self, items: Sequence[Item]) -> Vectors:
        """(N, D) in the order of the items. What `prepare` raises is raised here."""
        vectors = [self.looker.look(self.looker.normalise(x)) for x in self._batches(items)]
        if not vectors:
            return np.zeros((0, 0), dtype=np.float32)
        return torch.cat(vectors).cpu().numpy()

    def _batches(self, items: Sequence[Item]) -> Iterator[Tensor]:
        """uint8 (B, S, S, 3), each ready before it is asked for."""
        pool = ThreadPoolExecutor(max_workers=workers(), thread_name_prefix="prepare")
        waiting: deque[tuple[Tensor, list[Future[None]]]] = deque()
        try:
            for part in chunks(items, self.batch):
                waiting.append(self._start(pool, part))
                if len(waiting) > AHEAD:
                    yield _done(*waiting.popleft())
            while waiting:
                yield _done(*waiting.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _start(
        self, pool: ThreadPoolExecutor, items: Sequence[Item]
    ) -> tuple[Tensor, list[Future[None]]]:
        side = self.looker.side
        # Pinned, so that the copy to a GPU does not wait for what it computes.
        pinned = self.looker.device.type == "cuda"
        buffer = torch.empty((len(items), side, side, 3), dtype=torch.uint8, pin_memory=pinned)
        rows = buffer.numpy()

        def fill(at: int, item: Item) -> None:
            rows[at] = self.prepare(item)

        return buffer, [pool.submit(fill, at, item) for at, item in enumerate(items)]


def workers() -> int:
    """Threads that prepare pictures: those of the machine's cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _done(buffer: Tensor, jobs: Sequence[Future[None]]) -> Tensor:
    for job in jobs:
        job.result()
    return buffer
