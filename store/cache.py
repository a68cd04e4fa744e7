"""What is kept of a remote store on the local disk: folders of bounded size, shared by processes.

A shard comes whole, is checked against the digest that its version tells, and only then gets its
name. Those used last stay. When a run's shards together are more than the folder holds, what is in
it stays and the rest is read by range, sample by sample: a shard thrown out for each random sample
would be fetched again and again.

Files: <digest> a shard, <digest>.part one on its way.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO, ClassVar

from filelock import FileLock, Timeout
from pydantic import Field

from focusdpo.data_schemas.environment import EnvironmentConfig
from focusdpo.data_schemas.errors import UserError
from focusdpo.store.local import Files

log = logging.getLogger(__name__)

PIECE = 8 * 2**20
"""Bytes of one request."""
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


class CacheConfig(EnvironmentConfig):
    """The folder. From FOCUSDPO_CACHE_DIR and FOCUSDPO_CACHE_GIB: which copy of a shard is read
    changes no result."""

    prefix: ClassVar[str] = "FOCUSDPO_CACHE_"

    dir: str = Field("~/.cache/focusdpo/shards", description="where copies of shards lie")
    gib: float = Field(20.0, gt=0, description="GiB that they may take together")


@dataclass(frozen=True, slots=True)
class RemoteShard:
    """A shard of which a copy may be kept."""

    files: Files
    path: str
    size: int
    digest: str
    """blake2b-128 of its bytes; its copy is called so."""

    @property
    def url(self) -> str:
        return self.files.address(self.path)


class ShardCache:
    """The copies in a folder. Safe for threads and processes."""

    def __init__(self, folder: str | Path, limit: int) -> None:
        self._folder = Path(folder).expanduser()
        self._limit = limit
        self._checked: set[str] = set()
        self._wanted: dict[str, int] = {}

    @contextmanager
    def whole(self, shard: RemoteShard) -> Iterator[BinaryIO]:
        """The copy of a shard, fetched when it is not there. It stays readable until the block
        ends, even when another process throws it out. UserError when it is damaged or too large."""
        self._wanted[shard.digest] = shard.size
        while True:
            file = self._kept(shard.digest)
            if file is None:
                self._fetch(shard)
                continue
            with file:
                if self._is_whole(shard, file):
                    yield file
                    return
            log.warning("%s: the copy in %s is damaged; fetched anew", shard.url, self._folder)
            self._path(shard.digest).unlink(missing_ok=True)

    def read(self, shard: RemoteShard, offset: int, size: int) -> bytes:
        """A range, from the copy or, where all copies would not fit, from the store, where it is
        not checked."""
        self._wanted[shard.digest] = shard.size
        roomy = sum(self._wanted.values()) <= self._limit
        if roomy or self._path(shard.digest).exists():
            with self.whole(shard) as file:
                file.seek(offset)
                return file.read(size)
        return shard.files.read(shard.path, offset, size)

    def _path(self, name: str) -> Path:
        return self._folder / name

    def _kept(self, name: str) -> BufferedReader | None:
        try:
            file = self._path(name).open("rb")
        except FileNotFoundError:
            return None
        with suppress(FileNotFoundError):  # thrown out just now
            _touch(self._path(name))
        return file

    def _is_whole(self, shard: RemoteShard, file: BufferedReader) -> bool:
        """Looked at once a process: a copy may have been cut short when power failed."""
        if shard.digest in self._checked:
            return True
        if os.fstat(file.fileno()).st_size != shard.size:
            return False
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        if digest != shard.digest:
            return False
        self._checked.add(shard.digest)
        return True

    def _fetch(self, shard: RemoteShard) -> None:
        """One process fetches a shard; others that want it wait."""
        if shard.size > self._limit:
            raise UserError(
                f"{shard.url}: {shard.size / 2**30:.2f} GiB are more than the cache may hold; set "
                "FOCUSDPO_CACHE_GIB higher, or shard.max_pairs lower"
            )
        with self._alone(shard.digest):
            if self._path(shard.digest).exists():
                return
            part = self._folder / f"{shard.digest}.part"
            try:
                self._reserve(part, shard.size)
                try:
                    digest = self._download(shard, part)
                except FileNotFoundError as error:
                    raise _damaged(shard, "the file is missing") from error
                if digest != shard.digest:
                    raise _damaged(shard, "its bytes are not those that were published")
                _touch(part)
                with self._alone("folder"):  # who counts the files sees it under one name
                    part.replace(self._path(shard.digest))
                self._checked.add(shard.digest)
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                raise UserError(
                    f"{self._folder}: {error.strerror}; free some room, or set FOCUSDPO_CACHE_DIR "
                    "and FOCUSDPO_CACHE_GIB"
                ) from error
            finally:
                part.unlink(missing_ok=True)

    def _download(self, shard: RemoteShard, part: Path) -> str:
        hasher = hashlib.blake2b(digest_size=16)
        with part.open("r+b") as file:
            for start in range(0, shard.size, PIECE):
                data = shard.files.read(shard.path, start, min(PIECE, shard.size - start))
                hasher.update(data)
                file.write(data)
        return hasher.hexdigest()

    def _reserve(self, part: Path, size: int) -> None:
        """Make room, and take it before another process does. What others are fetching is not
        thrown out but waited for."""
        while not self._try_reserve(part, size):
            time.sleep(0.05)

    def _try_reserve(self, part: Path, size: int) -> bool:
        with self._alone("folder"):
            part.unlink(missing_ok=True)
            held = self._files()
            used = sum(stat.st_size for stat in held.values())
            for path in sorted(held, key=lambda path: held[path].st_mtime_ns):
                if used + size <= self._limit:
                    break
                if path.suffix != ".part" or self._is_orphan(path):
                    path.unlink(missing_ok=True)
                    used -= held[path].st_size
            if used + size > self._limit:
                return False
            with part.open("wb") as file:
                file.truncate(size)
            return True

    def _files(self) -> dict[Path, os.stat_result]:
        files = {}
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):  # a fetch that failed, a copy found damaged
                files[path] = path.stat()
        return {path: stat for path, stat in files.items() if S_ISREG(stat.st_mode)}

    def _is_orphan(self, part: Path) -> bool:
        """Nobody is fetching it: its lock is free."""
        try:
            with FileLock(self._lock(part.name.removesuffix(".part")), timeout=0):
                return True
        except Timeout:
            return False

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """The system frees the lock of a process that dies."""
        try:
            self._lock(name).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self._folder}: {error.strerror}; set FOCUSDPO_CACHE_DIR") from error
        with FileLock(self._lock(name)):
            yield

    def _lock(self, name: str) -> Path:
        return self._folder / "locks" / name


@functools.cache
def _cache_of(config: CacheConfig) -> ShardCache:
    return ShardCache(config.dir, int(config.gib * 2**30))


def default_cache() -> ShardCache:
    """The cache that the environment names."""
    return _cache_of(CacheConfig.from_environment())


def _touch(path: Path) -> None:
    """Used now, by a clock finer than the one that the system stamps files with."""
    now = time.time_ns()
    os.utime(path, ns=(now, now))


def _damaged(shard: RemoteShard, what: str) -> UserError:
    return UserError(
        f"shard {shard.url} is damaged: {what}. Run `focusdpo doctor --root ... --repair` on its "
        "dataset, then the same build again"
    )


IN_USE = 24 * 3600.0
"""Seconds for which what was fetched is not taken away."""


class OutputFolders(EnvironmentConfig):
    """From FOCUSDPO_OUTPUTS_DIR and FOCUSDPO_OUTPUTS_GIB: where a run works changes no result."""

    prefix: ClassVar[str] = "FOCUSDPO_OUTPUTS_"

    dir: str = Field("~/.cache/focusdpo/outputs", description="where they lie")
    gib: float = Field(20.0, gt=0, description="GiB above which the oldest are taken away")

    def place(self, *parts: str) -> Path:
        """A folder or file below."""
        return Path(self.dir).expanduser().joinpath(*parts)

    @contextmanager
    def alone(self, key: str, name: str) -> Iterator[None]:
        """No other process works in the folder `key`. UserError when one does; `name`: of what."""
        lock = self._lock(key)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(
                f"{name}: another process of this machine writes here; wait for it, or choose "
                "another `out`"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _lock(self, key: str) -> FileLock:
        path = self.place("locks", key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path.parent}: {error.strerror}; set FOCUSDPO_OUTPUTS_DIR") from error
        return FileLock(path)

    def make_room(self) -> None:
        """Take away the folders that were begun with longest ago, until the bound holds; but none
        that a run works in, and none of the last day."""
        folders = [path for kind in ("work", "copies") for path in self.place(kind).glob("*")]
        sizes = {path: _size(path) for path in folders}
        too_much = sum(sizes.values()) - int(self.gib * 2**30)
        for path in sorted(folders, key=_time):
            if too_much <= 0 or time.time() - _time(path) < IN_USE:
                return
            try:
                with self._lock(path.name).acquire(timeout=0):
                    shutil.rmtree(path, ignore_errors=True)
            except Timeout:
                continue
            too_much -= sizes[path]
            log.info("%s: taken away to make room", path)


def _time(path: Path) -> float:
    with suppress(FileNotFoundError):  # another process makes room, too
        return path.stat().st_mtime
    return 0.0


def _size(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            size += path.stat().st_size if path.is_file() else 0
    return size
