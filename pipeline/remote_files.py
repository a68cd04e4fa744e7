"""A root in an object store: one object per file, each put whole, the first writer told.

Nothing is renamed. A file is gathered in a local temporary file and sent at the end, so that a
writer that dies leaves nothing visible, and a request that failed can be repeated.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.files import FOREIGN_TEMP_SECONDS, FULL
from focusdpo.pipeline.objects import ABSENT, Objects, persistently
from focusdpo.pipeline.remote_config import RemoteConfig

T = TypeVar("T")


class RemoteFiles:
    """`Files` on any `Objects`. Safe for threads."""

    def __init__(self, root: str, objects: Objects, config: RemoteConfig | None = None) -> None:
        self.root = root.rstrip("/")
        self.local: Path | None = None
        self._objects = objects
        self._config = config or RemoteConfig.from_environment()

    def address(self, path: str) -> str:
        return self._objects.address(path)

    def exists(self, path: str) -> bool:
        try:
            self._ask(path, lambda: self._objects.look(path))
        except FileNotFoundError:
            return False
        return True

    def size(self, path: str) -> int:
        return self._ask(path, lambda: self._objects.look(path)).size

    def names(self, path: str) -> list[str]:
        return self._ask(path, lambda: self._objects.names(path))

    def listing(self, path: str) -> dict[str, int]:
        return self._ask(path, lambda: self._objects.below(path))

    def below(self, path: str) -> list[str]:
        return list(self.listing(path))

    def read(self, path: str, offset: int = 0, size: int = -1) -> bytes:
        return self._ask(path, lambda: self._objects.get(path, offset, size))[0]

    def write(self, path: str, data: bytes, *, replace: bool = True, sync: bool = True) -> bool:
        """`sync` changes nothing: an object that was accepted is safe."""
        return self._put(path, io.BytesIO(data), len(data), None if replace else ABSENT) is not None

    @contextmanager
    def create(self, path: str, *, replace: bool = True, sync: bool = True) -> Iterator[BinaryIO]:
        with self._room(), tempfile.SpooledTemporaryFile(self._config.part_mib * 2**20) as spool:
            sink = cast(BinaryIO, spool)
            yield sink
            size = sink.seek(0, io.SEEK_END)
            self._put(path, sink, size, None if replace else ABSENT)

    def tagged(self, path: str) -> tuple[bytes, str] | None:
        try:
            return self._ask(path, lambda: self._objects.get(path, 0, -1))
        except FileNotFoundError:
            return None

    def swap(self, path: str, data: bytes, tag: str | None, *, sync: bool = True) -> str | None:
        return self._put(path, io.BytesIO(data), len(data), ABSENT if tag is None else tag)

    def age(self, path: str) -> float | None:
        try:
            return self._ask(path, lambda: self._objects.look(path)).age
        except FileNotFoundError:
            return None

    def remove(self, path: str, tag: str | None = None) -> None:
        self._ask(path, lambda: self._objects.delete(path, tag))

    def clean(self) -> int:
        """Uploads in parts that were never ended cost room and are seen by nobody; a living
        writer's is younger than a day."""
        return self._ask("", lambda: self._objects.sweep(FOREIGN_TEMP_SECONDS))

    def _put(self, path: str, source: BinaryIO, size: int, condition: str | None) -> str | None:
        def request() -> str | None:
            source.seek(0)
            return self._objects.put(path, source, size, condition)

        tag = self._ask(path, request)
        # A try whose answer was lost may have been the one that wrote it; HTTP clients repeat by
        # themselves where a kept connection turns out to be closed, so it cannot be known here.
        if tag is None and (stored := self.tagged(path)) is not None and len(stored[0]) == size:
            source.seek(0)
            tag = stored[1] if stored[0] == source.read() else None
        return tag

    def _ask(self, path: str, request: Callable[[], T]) -> T:
        what = self.address(path)
        objects = self._objects
        try:
            return persistently(request, objects.passing, objects.told, what, self._config)
        except Exception as error:
            if (why := objects.refusal(error)) is not None:
                raise UserError(f"{what}: {why}") from None
            raise

    @contextmanager
    def _room(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in FULL:
                raise UserError(
                    f"{tempfile.gettempdir()}: no room for a file on its way to {self.root}; free "
                    "some, or set TMPDIR to a larger disk"
                ) from error
            raise
