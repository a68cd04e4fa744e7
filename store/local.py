"""Where a store keeps its bytes: a small interface, and its form on a local disk.

Paths are relative to the root and use "/". What the methods promise is all that the store relies
on: a file is either there with all its bytes or not there at all, and one of several writers is
told that it was first. `remote_files.py` keeps the same promises on an object store, where one PUT
does what a rename does here.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from filelock import FileLock

from focusdpo.data_schemas.errors import UserError
from focusdpo.store.processes import is_dead, me

TEMP = ".tmp"
LOCK = ".lock"
FOREIGN_TEMP_SECONDS = 24 * 3600.0
"""Age from which another machine's unfinished file counts as left behind."""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


class Files(Protocol):
    """A root whose files appear whole."""

    root: str
    """As the user names it."""
    local: Path | None
    """The folder, when it is on a local disk."""

    def address(self, path: str) -> str:
        """What any program that knows the medium calls a file: a path or URL."""
        ...

    def exists(self, path: str) -> bool: ...

    def size(self, path: str) -> int: ...

    def names(self, path: str) -> list[str]:
        """Sorted names in a folder; empty when there is none."""
        ...

    def listing(self, path: str) -> dict[str, int]:
        """All files below a folder, by path relative to it, with their sizes in bytes; one walk or
        listing, and so the way to ask for many."""
        ...

    def below(self, path: str) -> list[str]:
        """The same paths alone, in any order: on a disk without a look at each file."""
        ...

    def read(self, path: str, offset: int = 0, size: int = -1) -> bytes:
        """A file's bytes, or a range of them. FileNotFoundError when it is absent."""
        ...

    def create(
        self, path: str, *, replace: bool = True, sync: bool = True
    ) -> AbstractContextManager[BinaryIO]:
        """A file to write into; it appears when the block ends well. When it is there by then, it
        is replaced, or with `replace=False` stays as it is and the new bytes are dropped. Without
        `sync` it may be damaged when power fails."""
        ...

    def write(self, path: str, data: bytes, *, replace: bool = True, sync: bool = True) -> bool:
        """`create` with all bytes at hand. False when another's file stayed."""
        ...

    def tagged(self, path: str) -> tuple[bytes, str] | None:
        """A small file and the tag of this state of it; None when it is absent."""
        ...

    def swap(self, path: str, data: bytes, tag: str | None, *, sync: bool = True) -> str | None:
        """Compare and set: write a small file if its state is still `tag` (None: absent). The new
        tag, or None when somebody else was first. Where answers may be lost, equal bytes count as
        one's own: writers that must be told apart write their name."""
        ...

    def age(self, path: str) -> float | None:
        """Seconds since a file was last written, both times by the medium's own clock; None when
        the file is absent or the medium does not tell."""
        ...

    def remove(self, path: str, tag: str | None = None) -> None:
        """Take a file away, or with `tag` only that state of it; nothing happens when there is
        none."""
        ...

    def clean(self) -> int:
        """Remove what dead writers left unfinished; how much that was."""
        ...


class LocalFiles:
    """A root on a local disk: a file is written below `.tmp`, synced, then renamed."""

    _numbers = itertools.count()

    def __init__(self, root: str | Path) -> None:
        self.root = str(root)
        self.local: Path | None = Path(root)
        self._root = Path(root)

    def address(self, path: str) -> str:
        return f"{self.root}/{path}"

    def exists(self, path: str) -> bool:
        return os.path.exists(f"{self.root}/{path}")  # noqa: PTH110  # thousands of calls a run

    def size(self, path: str) -> int:
        return (self._root / path).stat().st_size

    def names(self, path: str) -> list[str]:
        try:
            return sorted(entry.name for entry in (self._root / path).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def listing(self, path: str) -> dict[str, int]:
        found = dict(_walk(f"{self.root}/{path}", ""))
        return dict(sorted(found.items()))

    def below(self, path: str) -> list[str]:
        found: list[str] = []
        folders = [""]
        while folders:
            prefix = folders.pop()
            try:
                with os.scandir(f"{self.root}/{path}/{prefix}") as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(f"{prefix}{entry.name}/")
                        else:
                            found.append(f"{prefix}{entry.name}")
            except (FileNotFoundError, NotADirectoryError):
                continue
        return found

    def read(self, path: str, offset: int = 0, size: int = -1) -> bytes:
        with (self._root / path).open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def write(self, path: str, data: bytes, *, replace: bool = True, sync: bool = True) -> bool:
        with self._temp() as temp:
            with temp.open("xb") as sink:
                sink.write(data)
                _flush(sink, sync)
            return self._place(temp, path, replace=replace)

    @contextmanager
    def create(self, path: str, *, replace: bool = True, sync: bool = True) -> Iterator[BinaryIO]:
        with self._temp() as temp:
            with temp.open("xb") as sink:
                yield sink
                _flush(sink, sync)
            self._place(temp, path, replace=replace)

    def tagged(self, path: str) -> tuple[bytes, str] | None:
        try:
            data = self.read(path)
        except FileNotFoundError:
            return None
        return data, _tag(data)

    def swap(self, path: str, data: bytes, tag: str | None, *, sync: bool = True) -> str | None:
        with self._writing(), self._locked():
            now = self.tagged(path)
            if (None if now is None else now[1]) != tag:
                return None
            self.write(path, data, sync=sync)
            return _tag(data)

    def age(self, path: str) -> float | None:
        """By the clock that stamps files here, which is a server's on a shared disk."""
        with self._temp() as temp:
            temp.touch()
            now = temp.stat().st_mtime
        try:
            # Opened, because a shared disk may tell an old time of a file that is not.
            with (self._root / path).open("rb") as file:
                return max(0.0, now - os.fstat(file.fileno()).st_mtime)
        except FileNotFoundError:
            return None

    def remove(self, path: str, tag: str | None = None) -> None:
        with self._writing():
            if tag is None:
                (self._root / path).unlink(missing_ok=True)
                return
            with self._locked():
                now = self.tagged(path)
                if now is not None and now[1] == tag:
                    (self._root / path).unlink(missing_ok=True)

    def clean(self) -> int:
        """A living writer's files are kept, and so are those of other machines for a day."""
        stale = [name for name in self.names(TEMP) if _is_stale(self._root / TEMP / name)]
        for name in stale:
            (self._root / TEMP / name).unlink(missing_ok=True)
        return len(stale)

    @contextmanager
    def _temp(self) -> Iterator[Path]:
        """A name for an unfinished file of this process, which is gone afterwards."""
        with self._writing():
            temp = self._root / TEMP / f"{me()}~{next(self._numbers)}"
            temp.parent.mkdir(parents=True, exist_ok=True)
            try:
                yield temp
            finally:
                temp.unlink(missing_ok=True)

    def _place(self, temp: Path, path: str, *, replace: bool) -> bool:
        """Give a finished file its name. Its folder is not synced: when power fails, the file is
        there whole or not at all, and what is not there is built again."""
        target = self._root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if replace:
            os.replace(temp, target)  # noqa: PTH105
            return True
        try:
            os.link(temp, target)
        except FileExistsError:
            return False
        except OSError:
            return self._place_locked(temp, target)
        return True

    def _place_locked(self, temp: Path, target: Path) -> bool:
        """The same on a file system without hard links."""
        with self._locked():
            if target.exists():
                return False
            os.replace(temp, target)  # noqa: PTH105
            return True

    def _locked(self) -> AbstractContextManager[object]:
        """Alone among all threads and processes; the system frees what a dead process held."""
        return FileLock(self._root / LOCK)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in FULL:
                raise UserError(self._full()) from error
            if error.errno in FORBIDDEN:
                raise UserError(
                    f"{self.root}: no permission to write ({error}); choose a root that you may "
                    "write to"
                ) from error
            raise

    def _full(self) -> str:
        free = shutil.disk_usage(self.root).free
        return (
            f"{self.root}: the disk is full ({free / 2**20:.1f} MiB free) or a quota is reached. "
            "Nothing built so far is lost: free some space and run the same command again"
        )


def _flush(sink: BinaryIO, sync: bool) -> None:
    sink.flush()
    if sync:
        os.fsync(sink.fileno())


def _tag(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _walk(folder: str, prefix: str) -> Iterator[tuple[str, int]]:
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, f"{prefix}{entry.name}/")
        else:
            try:
                yield f"{prefix}{entry.name}", entry.stat().st_size
            except FileNotFoundError:  # taken away meanwhile
                continue


def _is_stale(temp: Path) -> bool:
    dead = is_dead(temp.name)
    if dead is not None:
        return dead
    try:
        return time.time() - temp.stat().st_mtime > FOREIGN_TEMP_SECONDS
    except FileNotFoundError:
        return False
