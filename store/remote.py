"""A root in an object store: one object per file, each put whole, the first writer told.

Nothing is renamed. A file is gathered in a local temporary file and sent at the end, so that a
writer that dies leaves nothing visible, and a request that failed can be repeated.
"""

from __future__ import annotations

import contextlib
import io
import logging
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar, cast

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PreconditionError,
)

from focusdpo.data_schemas.errors import Forbidden, UserError
from focusdpo.store.keys import is_plain
from focusdpo.store.local import FOREIGN_TEMP_SECONDS, FULL
from focusdpo.store.media import (
    Medium,
    RemoteConfig,
    in_words,
    is_forbidden,
    is_passing,
    refusal,
    refuse_after_fork,
    status_of,
)

log = logging.getLogger(__name__)


T = TypeVar("T")
Meta = dict[str, Any]
"""What obstore tells of an object: size, e_tag, last_modified."""
Condition = Literal["overwrite", "create"] | dict[str, str]
"""A write in any case, where nothing is yet, or where an object still has the tag `e_tag`."""


class Lost(ConnectionError):
    """A request that failed as often as it may."""


def persistently(
    request: Callable[[], T],
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
            if not is_passing(error):
                raise
            if failed + 1 == config.attempts:
                raise Lost(
                    f"{what}: failed {config.attempts} times, at last with {in_words(error)}; what "
                    "is stored so far stays. Run the same command again when the store answers"
                ) from None
            wait = min(config.first_wait * 2**failed, config.longest_wait)
            log.log(
                logging.WARNING if failed else logging.INFO,
                "%s: %s; try %d of %d follows",
                what, in_words(error), failed + 2, config.attempts,
            )  # fmt: skip
            sleep(wait * random.uniform(0.5, 1.0))
    raise AssertionError("unreachable: attempts is at least 1")


class RemoteFiles:
    """`Files` on any `Medium`. Safe for threads."""

    def __init__(self, medium: Medium, config: RemoteConfig | None = None) -> None:
        self.root = medium.url
        self.local: Path | None = None
        self._medium = medium
        self._config = config or RemoteConfig.from_environment()

    def address(self, path: str) -> str:
        return f"{self.root}/{path}".rstrip("/")

    def look(self, path: str) -> Meta:
        """Size in bytes, tag and time of an object. FileNotFoundError when it is absent."""
        return self._ask(path, lambda key: cast(Meta, obstore.head(self._medium.store, key)))

    def exists(self, path: str) -> bool:
        try:
            self.look(path)
        except FileNotFoundError:
            return False
        return True

    def size(self, path: str) -> int:
        return int(self.look(path)["size"])

    def names(self, path: str) -> list[str]:
        def request(key: str) -> list[str]:
            listing = obstore.list_with_delimiter(self._medium.store, key or None)
            paths = [*listing["common_prefixes"], *(meta["path"] for meta in listing["objects"])]
            return sorted(name.rstrip("/").rpartition("/")[2] for name in paths)

        return self._ask(path, request, folder=True)

    def listing(self, path: str) -> dict[str, int]:
        def request(key: str) -> dict[str, int]:
            start = len(key) + 1 if key else 0
            pages = obstore.list(self._medium.store, key or None, chunk_size=1000)
            return {meta["path"][start:]: meta["size"] for page in pages for meta in page}

        return dict(sorted(self._ask(path, request, folder=True).items()))

    def below(self, path: str) -> list[str]:
        return list(self.listing(path))

    def read(self, path: str, offset: int = 0, size: int = -1) -> bytes:
        return self._read(path, offset, size)[0]

    def write(self, path: str, data: bytes, *, replace: bool = True, sync: bool = True) -> bool:
        """`sync` changes nothing: an object that was accepted is safe."""
        condition: Condition = "overwrite" if replace else "create"
        return self._put(path, io.BytesIO(data), len(data), condition) is not None

    @contextmanager
    def create(self, path: str, *, replace: bool = True, sync: bool = True) -> Iterator[BinaryIO]:
        with self._room(), tempfile.SpooledTemporaryFile(self._config.part_mib * 2**20) as spool:
            sink = cast(BinaryIO, spool)
            yield sink
            size = sink.seek(0, io.SEEK_END)
            self._put(path, sink, size, "overwrite" if replace else "create")

    def tagged(self, path: str) -> tuple[bytes, str] | None:
        try:
            return self._read(path, 0, -1)
        except FileNotFoundError:
            return None

    def swap(self, path: str, data: bytes, tag: str | None, *, sync: bool = True) -> str | None:
        return self._put(
            path, io.BytesIO(data), len(data), "create" if tag is None else {"e_tag": tag}
        )

    def age(self, path: str) -> float | None:
        try:
            return self._ask(path, self._medium.age)
        except FileNotFoundError:
            return None

    def remove(self, path: str, tag: str | None = None) -> None:
        def request(key: str) -> None:
            if tag is None:
                with contextlib.suppress(FileNotFoundError):
                    obstore.delete(self._medium.store, key)
            else:
                self._medium.delete_if(key, tag)

        self._ask(path, request)

    def prune(self, path: str) -> None:
        """An object store has no empty folders."""

    def clean(self) -> int:
        """Uploads in parts that were never ended cost room and are seen by nobody; a living
        writer's is younger than a day."""
        return self._ask("", lambda _: self._medium.sweep(FOREIGN_TEMP_SECONDS), folder=True)

    def _read(self, path: str, offset: int, size: int) -> tuple[bytes, str]:
        """Bytes from `offset`, `size` of them or (-1) all, and the object's tag."""
        if size == 0:
            return b"", str(self.look(path)["e_tag"])
        where: Any = {}
        if size > 0:
            where = {"range": (offset, offset + size)}
        elif offset:
            where = {"range": {"offset": offset}}

        def request(key: str) -> tuple[bytes, str]:
            try:
                answer = obstore.get(self._medium.store, key, options=where)
                return bytes(answer.bytes()), str(answer.meta["e_tag"])
            except BaseError as error:
                if where and (status_of(error) == 416 or "StartTooLarge" in str(error)):
                    return b"", str(obstore.head(self._medium.store, key)["e_tag"])
                raise

        return self._ask(path, request)

    def _put(self, path: str, source: BinaryIO, size: int, condition: Condition) -> str | None:
        """The new tag; None when the condition does not hold."""
        # Not every store that decides atomically between conditional PUTs does so between
        # completed uploads in parts (SeaweedFS 4.48 does not), so a condition takes one PUT.
        part = self._config.part_mib * 2**20
        in_parts = condition == "overwrite" and size >= 2 * part

        def request(key: str) -> str | None:
            source.seek(0)
            store = self._medium.patient_store if in_parts else self._medium.store
            try:
                made = obstore.put(
                    store,
                    key,
                    source if in_parts else source.read(),
                    mode=cast(Any, condition),
                    use_multipart=in_parts,
                    chunk_size=part,
                    max_concurrency=self._config.parts_at_once,
                )
            except (AlreadyExistsError, PreconditionError):
                return None
            return str(made["e_tag"])

        tag = self._ask(path, request)
        # A try whose answer was lost may have been the one that wrote it; HTTP clients repeat by
        # themselves where a kept connection turns out to be closed, so it cannot be known here.
        if tag is None and (stored := self.tagged(path)) is not None and len(stored[0]) == size:
            source.seek(0)
            tag = stored[1] if stored[0] == source.read() else None
        return tag

    def _ask(self, path: str, request: Callable[[str], T], *, folder: bool = False) -> T:
        if not (is_plain(path) or (folder and not path)):
            raise UserError(f"{self.root}: {path[:80]!r} is no name of a file inside it")
        what = self.address(path)
        refuse_after_fork()

        def held() -> T:
            with self._medium.lock:
                return request(self._medium.key(path))

        try:
            return persistently(held, what, self._config)
        except Exception as error:
            if (why := refusal(error, self.root)) is not None:
                kind = Forbidden if is_forbidden(error) else UserError
                raise kind(f"{what}: {why}") from None
            if isinstance(error, BaseError):  # its text repeats what the store answered
                raise OSError(f"{what}: {in_words(error)}") from None
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
