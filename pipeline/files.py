"""Where a store keeps its bytes: a small interface, and its form on a local disk.

Paths are relative to the root and use "/". A store on another medium is one more class with these
methods; what they promise is all that the store relies on: a file is either there with all its
bytes or not there at all. One object put at once promises the same, so no medium needs a rename.
"""

from __future__ import annotations

import errno
import functools
import itertools
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from focusdpo.data_schemas.errors import UserError

TEMP = ".tmp"
FOREIGN_TEMP_SECONDS = 24 * 3600.0
"""Age from which another machine's unfinished file counts as left behind."""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


class Files(Protocol):
    """A root folder whose files appear whole."""

    root: str

    def exists(self, path: str) -> bool: ...

    def size(self, path: str) -> int: ...

    def names(self, path: str) -> list[str]:
        """Sorted names in a folder; empty when there is none."""
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

    def write(self, path: str, data: bytes, *, replace: bool = True, sync: bool = True) -> None:
        """`create` with all bytes at hand."""
        ...

    def remove(self, path: str) -> None:
        """Take a file away; nothing happens when there is none."""
        ...

    def clean(self) -> int:
        """Remove what dead writers left unfinished; how much that was."""
        ...


class LocalFiles:
    """A root on a local disk: a file is written below `.tmp`, synced, then renamed."""

    _numbers = itertools.count()

    def __init__(self, root: str | Path) -> None:
        self.root = str(root)
        self._root = Path(root)

    def exists(self, path: str) -> bool:
        return os.path.exists(f"{self.root}/{path}")  # noqa: PTH110  # thousands of calls a run

    def size(self, path: str) -> int:
        return (self._root / path).stat().st_size

    def names(self, path: str) -> list[str]:
        try:
            return sorted(entry.name for entry in (self._root / path).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def read(self, path: str, offset: int = 0, size: int = -1) -> bytes:
        with (self._root / path).open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def write(self, path: str, data: bytes, *, replace: bool = True, sync: bool = True) -> None:
        with self.create(path, replace=replace, sync=sync) as sink:
            sink.write(data)

    @contextmanager
    def create(self, path: str, *, replace: bool = True, sync: bool = True) -> Iterator[BinaryIO]:
        target = self._root / path
        with self._writing():
            temp = self._new_temp()
            try:
                with temp.open("xb") as sink:
                    yield sink
                    sink.flush()
                    if sync:
                        os.fsync(sink.fileno())
                target.parent.mkdir(parents=True, exist_ok=True)
                # The folder is not synced: when power fails, the file is there whole or not at
                # all, and what is not there is built again.
                if replace:
                    os.replace(temp, target)  # noqa: PTH105
                else:
                    _link(temp, target)
            finally:
                temp.unlink(missing_ok=True)

    def remove(self, path: str) -> None:
        with self._writing():
            (self._root / path).unlink(missing_ok=True)

    def clean(self) -> int:
        """A living writer's files are kept, and so are those of other machines for a day."""
        stale = [name for name in self.names(TEMP) if _is_stale(self._root / TEMP / name)]
        for name in stale:
            (self._root / TEMP / name).unlink(missing_ok=True)
        return len(stale)

    def _new_temp(self) -> Path:
        name = f"{_me(os.getpid())}~{next(self._numbers)}"
        temp = self._root / TEMP / name
        temp.parent.mkdir(parents=True, exist_ok=True)
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


def _link(temp: Path, target: Path) -> None:
    """Give `temp` its name unless that is taken: another writer was first, and equal keys mean
    equal contents."""
    try:
        os.link(temp, target)
    except FileExistsError:
        pass
    except OSError:
        # A file system without hard links: replacing equal contents is harmless.
        os.replace(temp, target)  # noqa: PTH105


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


def _is_stale(temp: Path) -> bool:
    host, _, rest = temp.name.partition("~")
    pid, _, rest = rest.partition("~")
    started = rest.partition("~")[0]
    if host == _host() and pid.isdecimal():
        return not _alive(int(pid)) or _started(int(pid)) != started
    try:
        return time.time() - temp.stat().st_mtime > FOREIGN_TEMP_SECONDS
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
