"""A root in an object store: one object per file, each put whole, the first writer told.

Nothing is renamed. A file is gathered in a local temporary file and sent at the end, so that a
writer that dies leaves nothing visible, and a request that failed can be repeated.
"""

from __future__ import annotations

import io
import logging
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar, Protocol, TypeVar, cast

from pydantic import Field

from focusdpo.data_schemas.errors import UserError
from focusdpo.store.addresses import EnvironmentConfig
from focusdpo.store.local import FOREIGN_TEMP_SECONDS, FULL

log = logging.getLogger(__name__)

T = TypeVar("T")
ABSENT = "*absent*"
"""The condition that nothing is there yet, where a tag says that a certain state still is."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a look at an object tells."""

    size: int
    tag: str
    """Another one after each write."""
    age: float | None
    """Seconds since it was written, by the store's own clock."""


class Objects(Protocol):
    """One bucket and prefix. Each method is one try; keys are relative to the prefix.

    FileNotFoundError for an absent object; PermissionError where the store forbids it.
    """

    def address(self, key: str) -> str: ...

    def look(self, key: str) -> Found: ...

    def get(self, key: str, offset: int, size: int) -> tuple[bytes, str]:
        """Bytes from `offset`, `size` of them or (-1) all, and the object's tag."""
        ...

    def put(self, key: str, source: BinaryIO, size: int, condition: str | None) -> str | None:
        """Store `size` bytes whole. None when the condition does not hold: `ABSENT`, or a tag."""
        ...

    def below(self, key: str) -> dict[str, int]:
        """All keys below a folder with their sizes, in order."""
        ...

    def names(self, key: str) -> list[str]:
        """The names in a folder, folders included, in order."""
        ...

    def delete(self, key: str, tag: str | None) -> None:
        """Remove it if it is there, and with a tag only that state of it."""
        ...

    def sweep(self, older_than: float) -> int:
        """Give up uploads that began more than so many seconds ago; how many."""
        ...

    def passing(self, error: BaseException) -> bool:
        """Whether the same request may well succeed later."""
        ...

    def refusal(self, error: BaseException) -> str | None:
        """What is wrong and what to do, when only the user can mend it."""
        ...

    def told(self, error: BaseException) -> str:
        """An error in words that hold no credential."""
        ...


class Lost(ConnectionError):
    """A request that failed as often as it may."""


def persistently(
    request: Callable[[], T],
    passing: Callable[[BaseException], bool],
    told: Callable[[BaseException], str],
    what: str,
    config: RemoteConfig,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """The request's answer, perhaps after some tries. Waits double from `first_wait` to
    `longest_wait`, each shortened by chance, so that many clients do not come back at once.

    `Lost` when all tries fail; any error that is not `passing` is raised at once.
    """
    for failed in range(config.attempts):
        try:
            return request()
        except (UserError, Lost):
            raise
        except Exception as error:
            if not passing(error):
                raise
            if failed + 1 == config.attempts:
                raise Lost(
                    f"{what}: failed {config.attempts} times, at last with {told(error)}; what is "
                    "stored so far stays. Run the same command again when the store answers"
                ) from None
            wait = min(config.first_wait * 2**failed, config.longest_wait)
            log.log(
                logging.WARNING if failed else logging.INFO,
                "%s: %s; try %d of %d follows",
                what, told(error), failed + 2, config.attempts,
            )  # fmt: skip
            sleep(wait * random.uniform(0.5, 1.0))
    raise AssertionError("unreachable: attempts is at least 1")


class RemoteConfig(EnvironmentConfig):
    """Retries, time limits and parts. Each field is read from FOCUSDPO_STORAGE_<FIELD>."""

    prefix: ClassVar[str] = "FOCUSDPO_STORAGE_"

    attempts: int = Field(9, ge=1, le=50, description="tries of a request before it counts as lost")
    first_wait: float = Field(0.2, ge=0, description="seconds before the second try; then doubled")
    longest_wait: float = Field(20.0, ge=0, description="seconds between two tries at most")
    connect_timeout: float = Field(10.0, gt=0, description="seconds to wait for a connection")
    read_timeout: float = Field(60.0, gt=0, description="seconds to wait for bytes that must come")
    part_mib: int = Field(
        16,
        ge=5,
        le=5000,
        description="MiB of a part; what is written without a condition and has two parts or more "
        "travels in parts",
    )
    parts_at_once: int = Field(4, ge=1, le=64, description="parts of one file that travel together")


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
