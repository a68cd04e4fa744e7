"""What a process remembers of artefacts that lie far away: that they are there, and their bytes.

Artefacts never change, so both stay true; one that is dropped is forgotten. A stage reads many
pictures of one artefact, and a request for each would take longer than the stage.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable

from focusdpo.pipeline.files import Files

LIMIT = 256 * 2**20
"""Bytes kept."""


class Remembered:
    """Artefacts by path, whole, those used last. Safe for threads."""

    def __init__(self, files: Files, limit: int = LIMIT) -> None:
        self._files, self._limit = files, limit
        self._lock = threading.Lock()
        self._present: set[str] = set()
        self._held: OrderedDict[str, bytes] = OrderedDict()
        self._used = 0

    def exists(self, path: str) -> bool:
        if path in self._present:
            return True
        found = self._files.exists(path)
        if found:
            self._present.add(path)
        return found

    def are_present(self, paths: Iterable[str]) -> None:
        self._present.update(paths)

    def read(self, path: str, offset: int, size: int, whole: int) -> bytes:
        """A range of a file of `whole` bytes, which is fetched at once unless it is huge."""
        if whole > self._limit // 4:
            return self._files.read(path, offset, size)
        data = self.held(path)
        if data is None:
            data = self._files.read(path)
            self.put(path, data)
        return data[offset : offset + size]

    def held(self, path: str) -> bytes | None:
        """A file's bytes, if they are at hand."""
        with self._lock:
            data = self._held.get(path)
            if data is not None:
                self._held.move_to_end(path)
            return data

    def put(self, path: str, data: bytes) -> None:
        """Remember what was just stored or read."""
        self._present.add(path)
        if len(data) > self._limit // 4:
            return
        with self._lock:
            self._used += len(data) - len(self._held.pop(path, b""))
            self._held[path] = data
            while self._used > self._limit:
                self._used -= len(self._held.popitem(last=False)[1])

    def forget(self) -> None:
        """Ask again for everything."""
        with self._lock:
            self._present.clear()
            self._held.clear()
            self._used = 0
