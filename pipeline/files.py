"""Where a store keeps its bytes: a small interface, and its form on a local disk.

Paths are relative to the root and use "/". A store on another medium is one more class with these
methods; what they promise is all that the store relies on: a file or folder is either there with
all its bytes or not there at all.
"""

from __future__ import annotations

import errno
import functools
import itertools
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from focusdpo.data_schemas.errors import UserError

TEMP = ".tmp"
FOREIGN_TEMP_SECONDS = 24 * 3600.0
"""Age from which another machine's unfinished folder counts as left behind."""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


class Files(Protocol):
    """A root folder with atomic publication."""

    root: str

    def exists(self, path: str) -> bool: ...

    def size(self, path: str) -> int: ...

    def names(self, path: str) -> list[str]:
        """Sorted names in a folder; empty when there is none."""
        ...

    def read(self, path: str) -> bytes: ...

    def read_range(self, path: str, offset: int, size: int) -> bytes: ...

    def write(self, path: str, data: bytes) -> None:
        """Create or replace a file, at once."""
        ...

    def create(self, path: str) -> contextmanager[BinaryIO]:  # type: ignore[valid-type]
        """A file to write into; it appears, or replaces another, when the block ends well."""
        ...

    def publish(self, path: str, contents: Mapping[str, bytes]) -> bool:
        """Make a folder appear with these files; False when it was there (it stays as it is)."""
        ...

    def remove(self, path: str) -> None:
        """Take a file or folder away, at once; nothing happens when there is none."""
        ...


class LocalFiles:
    """A root on a local disk: written to `.tmp`, synced, then renamed."""

    _numbers = itertools.count()

    def __init__(self, root: str | Path) -> None:
        self.root = str(root)
        self._root = Path(root)

    def path(self, path: str) -> Path:
        return self._root / path

    def exists(self, path: str) -> bool:
        return os.path.exists(f"{self.root}/{path}")  # noqa: PTH110  # thousands of calls a run

    def size(self, path: str) -> int:
        return self.path(path).stat().st_size

    def names(self, path: str) -> list[str]:
        try:
            return sorted(entry.name for entry in self.path(path).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def read(self, path: str) -> bytes:
        return self.path(path).read_bytes()

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        with self.path(path).open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def write(self, path: str, data: bytes) -> None:
        with self.create(path) as sink:
            sink.write(data)

    @contextmanager
    def create(self, path: str) -> Iterator[BinaryIO]:
        target = self.path(path)
        with self._writing():
            temp = self._new_temp()
            try:
                with (temp / "file").open("wb") as sink:
                    yield sink
                    _sync(sink)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(temp / "file", target)  # noqa: PTH105
                _sync_folder(target.parent)
            finally:
                shutil.rmtree(temp, ignore_errors=True)

    def publish(self, path: str, contents: Mapping[str, bytes]) -> bool:
        target = self.path(path)
        if target.exists():
            return False
        with self._writing():
            temp = self._new_temp()
            try:
                for name, data in contents.items():
                    with (temp / name).open("wb") as sink:
                        sink.write(data)
                        _sync(sink)
                _sync_folder(temp)
                target.parent.mkdir(parents=True, exist_ok=True)
                return _rename_folder(temp, target)
            finally:
                shutil.rmtree(temp, ignore_errors=True)

    def remove(self, path: str) -> None:
        with self._writing():
            temp = self._new_temp()
            try:
                os.rename(self.path(path), temp / "gone")  # noqa: PTH104
            except FileNotFoundError:
                pass
            finally:
                shutil.rmtree(temp, ignore_errors=True)

    def clean(self) -> int:
        """Remove what dead writers left unfinished; the number of folders removed. A living
        writer's are kept, and so are those of other machines for a day."""
        removed = 0
        for name in self.names(TEMP):
            folder = self.path(f"{TEMP}/{name}")
            if _is_stale(name, folder):
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
        return removed

    def _new_temp(self) -> Path:
        name = f"{_me(os.getpid())}~{next(self._numbers)}"
        temp = self.path(f"{TEMP}/{name}")
        temp.mkdir(parents=True)
        return temp

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


def _rename_folder(temp: Path, target: Path) -> bool:
    try:
        os.rename(temp, target)  # noqa: PTH104  # Path.rename is the same; os keeps the pair visible
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False  # another writer was first; equal keys mean equal contents
        raise
    _sync_folder(target.parent)
    return True


def _sync(sink: BinaryIO) -> None:
    sink.flush()
    os.fsync(sink.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return  # folders cannot be opened there
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@functools.cache
def _me(pid: int) -> str:
    """This process, for as long as anyone may ask: host, pid, start."""
    return f"{_host()}~{pid}~{_started(pid)}"


def _host() -> str:
    return "".join(c if c.isalnum() or c == "-" else "-" for c in socket.gethostname())


def _started(pid: int) -> str:
    """When a process started, so that a reused pid is not mistaken for the writer; "0" where the
    system does not tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "0"
    return stat.rpartition(")")[2].split()[19]


def _is_stale(name: str, folder: Path) -> bool:
    host, _, rest = name.partition("~")
    pid, _, rest = rest.partition("~")
    started = rest.partition("~")[0]
    if host == _host() and pid.isdecimal():
        return not _alive(int(pid)) or _started(int(pid)) != started
    try:
        return time.time() - folder.stat().st_mtime > FOREIGN_TEMP_SECONDS
    except FileNotFoundError:
        return False


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
