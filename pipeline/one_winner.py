"""Whether a root lets exactly one of many writers win, which leases and LATEST stand on."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from focusdpo.pipeline.files import Files

WRITERS = 8
ROUNDS = 4


def race(files: Files, path: str, writers: int = WRITERS, rounds: int = ROUNDS) -> list[int]:
    """How many of `writers` that compare and set one file at the same moment were told that they
    won, in each round: the first makes the file, the others replace what was there.

    All ones where it can be trusted. Ends early when a round has no winner. The file stays.
    """
    won: list[int] = []
    tag: str | None = None
    for number in range(rounds):
        won.append(_round(files, path, tag, number, writers))
        if not won[-1] or (found := files.tagged(path)) is None:
            break
        tag = found[1]
    return won


def _round(files: Files, path: str, tag: str | None, number: int, writers: int) -> int:
    start = threading.Barrier(writers)

    def write(own: int) -> bool:
        start.wait()
        return files.swap(path, b"%d of round %d" % (own, number), tag) is not None

    with ThreadPoolExecutor(writers) as pool:
        return sum(pool.map(write, range(writers)))
