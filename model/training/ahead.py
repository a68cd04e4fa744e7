"""Reading ahead: what is wanted next is read and decoded while the models compute."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Wanted = TypeVar("Wanted")
Read = TypeVar("Read")

_THREADS = max(2, min(8, (os.cpu_count() or 2) // 2))
"""PNG and safetensors are decoded outside Python's lock."""


def read_ahead(
    read: Callable[[Wanted], Read], order: Iterator[Wanted], depth: int
) -> Generator[tuple[Wanted, Read]]:
    """(wanted, `read(wanted)`) in the order in which `order` gives them; while one is in use, the
    next `depth` are on their way. What a read raises is raised where its turn comes. `order` is
    asked in the thread that iterates. Closing the generator stops the reading."""
    coming: deque[tuple[Wanted, Future[Read]]] = deque()
    pool = ThreadPoolExecutor(min(_THREADS, depth), thread_name_prefix="read-ahead")
    try:
        while True:
            for wanted in islice(order, depth + 1 - len(coming)):
                coming.append((wanted, pool.submit(read, wanted)))
            if not coming:
                return
            wanted, future = coming.popleft()
            yield wanted, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
