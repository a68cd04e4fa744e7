"""Reading ahead: what is wanted next is read and decoded while the models compute."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Self, TypeVar

Wanted = TypeVar("Wanted")
Read = TypeVar("Read")

_THREADS = max(2, min(8, (os.cpu_count() or 2) // 2))
"""PNG and safetensors are decoded outside Python's lock."""


class Ahead(Generic[Wanted, Read]):
    """Iterates over (wanted, `read(wanted)`) in the order in which `order` gives them, `depth` of
    them on their way. What a read raises is raised where its turn comes. `order` is asked in the
    thread that iterates. To be used in a `with`, which stops the reading."""

    def __init__(self, read: Callable[[Wanted], Read], order: Iterator[Wanted], depth: int) -> None:
        self._read, self._order, self._depth = read, order, max(1, depth)
        self._pool = ThreadPoolExecutor(min(_THREADS, self._depth), thread_name_prefix="read-ahead")
        self._coming: deque[tuple[Wanted, Future[Read]]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[Wanted, Read]:
        self._fill()
        if not self._coming:
            raise StopIteration
        wanted, future = self._coming.popleft()
        result = future.result()
        self._fill()
        return wanted, result

    def _fill(self) -> None:
        while len(self._coming) < self._depth:
            try:
                wanted = next(self._order)
            except StopIteration:
                return
            self._coming.append((wanted, self._pool.submit(self._read, wanted)))
