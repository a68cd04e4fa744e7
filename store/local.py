"""Where a store keeps its bytes: a small interface, and its form on a local disk.

Paths are relative to the root and use "/". What the methods promise is all that the store relies
on: a file is either there with all its bytes or not there at all, and one of several writers is
told that it was first. `remote.py` keeps the same promises on an object store, where one PUT does
what a rename does here.

This is also the gate for names: whatever a file, perhaps a stranger's, says of another file is a
plain relative name inside the root, and no folder on the way is a link; else it is refused. Nothing
else in `store` and `pipeline` deletes from a root.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from filelock import FileLock

from focusdpo.data_schemas.environment import is_dead, me
from focusdpo.data_schemas.errors import Forbidden, Full, TakenAway, UserError
from focusdpo.store.keys import is_plain

TEMP = ".tmp"
LOCK = ".lock"
FOREIGN_TEMP_SECONDS = 24 * 3600.0
"""Age from which another machine's unfinished file counts as left behind."""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
GONE = {errno.ENOENT, errno.ENOTDIR, errno.EEXIST}
_PLAIN_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""No link is followed, and a pipe does not make its reader wait."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


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

    def prune(self, path: str) -> None:
        """Take a folder away as far as it holds nothing but empty folders."""
        ...

    def clean(self) -> int:
        """Remove what dead writers left unfinished; how much that was."""
        ...


class LocalFiles:
    """A root on a local disk: a file is written below `.tmp`, synced, then renamed."""

    def __init__(self, root: str | Path) -> None:
        self.root = str(root)
        self.local: Path | None = Path(root)
        self._root = Path(root)
        self._folders: set[str] = set()
        """Known to be real folders."""
        self._is_there = False

    def address(self, path: str) -> str:
        return f"{self.root}/{path}"

    def exists(self, path: str) -> bool:
        return self._stat(path) is not None

    def size(self, path: str) -> int:
        status = self._stat(path)
        if status is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.address(path))
        return status.st_size

    def names(self, path: str) -> list[str]:
        try:
            return sorted(os.listdir(self._folder(path)))  # noqa: PTH208
        except (FileNotFoundError, NotADirectoryError):
            return []

    def listing(self, path: str) -> dict[str, int]:
        sizes = {}
        for prefix, entry in self._entries(path):
            try:
                sizes[f"{prefix}{entry.name}"] = entry.stat(follow_symlinks=False).st_size
            except FileNotFoundError:  # taken away meanwhile
                continue
        return dict(sorted(sizes.items()))

    def below(self, path: str) -> list[str]:
        return [f"{prefix}{entry.name}" for prefix, entry in self._entries(path)]

    def read(self, path: str, offset: int = 0, size: int = -1) -> bytes:
        with self._open(path) as file:
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
            with self._open(path) as file:
                return max(0.0, now - os.fstat(file.fileno()).st_mtime)
        except FileNotFoundError:
            return None

    def remove(self, path: str, tag: str | None = None) -> None:
        with self._writing():
            if tag is None:
                self._delete(path, os.unlink)
                return
            with self._locked():
                now = self.tagged(path)
                if now is not None and now[1] == tag:
                    self._delete(path, os.unlink)

    def prune(self, path: str) -> None:
        for name in self.names(path):
            if (self._root / path / name).is_dir():
                self.prune(f"{path}/{name}")
        if not self.names(path):
            self._delete(path, os.rmdir)

    def clean(self) -> int:
        """A living writer's files are kept, and so are those of other machines for a day."""
        stale = [name for name in self.names(TEMP) if _is_stale(self._root / TEMP / name)]
        for name in stale:
            self.remove(f"{TEMP}/{name}")
        return len(stale)

    def _folder(self, path: str) -> str:
        """A folder of the root. UserError unless its name is plain and leads through no link."""
        if not path:
            return self.root
        if path not in self._folders:
            if not is_plain(path):
                raise UserError(f"{self.root}: {path[:80]!r} is no name of a file inside it")
            self._folder(path.rpartition("/")[0])
            whole = f"{self.root}/{path}"
            if os.path.islink(whole):  # noqa: PTH114
                raise self._refused(path)
            if os.path.isdir(whole):  # noqa: PTH112
                self._folders.add(path)
        return f"{self.root}/{path}"

    def _at(self, path: str) -> str:
        """Where a file lies, which may itself be a link."""
        folder, _, name = path.rpartition("/")
        if not is_plain(path):
            raise UserError(f"{self.root}: {path[:80]!r} is no name of a file inside it")
        return f"{self._folder(folder)}/{name}"

    def _stat(self, path: str) -> os.stat_result | None:
        try:
            status = os.lstat(self._at(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        if stat.S_ISLNK(status.st_mode):
            raise self._refused(path)
        return status

    def _open(self, path: str) -> BinaryIO:
        """A plain file, for reading. UserError for a link, a folder, a pipe or a device."""
        try:
            handle = os.open(self._at(path), _PLAIN_READ)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise self._refused(path) from error
            raise
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise UserError(f"{self.address(path)}: not a file, where one belongs; move it away")
        return os.fdopen(handle, "rb")

    def _delete(self, path: str, how: Callable[..., None]) -> None:
        """The one place where something of a root is deleted: each folder on the way is opened in
        the one before it, so that no link leads out, whoever makes one meanwhile."""
        self._at(path)
        *folders, name = path.split("/")
        try:
            here = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                for folder in folders:
                    above, here = here, os.open(folder, _FOLDER, dir_fd=here)
                    os.close(above)
                how(name, dir_fd=here)
            finally:
                os.close(here)
        except FileNotFoundError:
            return
        except (NotADirectoryError, IsADirectoryError) as error:
            raise self._refused(path) from error
        finally:
            self._folders.discard(path)

    def _refused(self, path: str) -> UserError:
        return UserError(
            f"{self.address(path)}: a link or a folder where none belongs. Nothing below a root is "
            "read, written or deleted through a link: put the files themselves there"
        )

    def _entries(self, path: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """What lies below a folder but is none, and the folder that it lies in."""
        folders = [""]
        while folders:
            prefix = folders.pop()
            try:
                entries = os.scandir(self._folder(f"{path}/{prefix}".strip("/")))
            except (FileNotFoundError, NotADirectoryError):
                continue
            with entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(f"{prefix}{entry.name}/")
                    else:
                        yield prefix, entry

    @contextmanager
    def _temp(self) -> Iterator[Path]:
        """A name for an unfinished file of this process, which is gone afterwards."""
        with self._writing():
            temp = Path(self._at(f"{TEMP}/{me()}~{next(_numbers)}"))
            self._make_folder(temp.parent)
            try:
                yield temp
            except FileNotFoundError as error:
                if str(error.filename) == str(temp):
                    raise self._taken_away() from error
                raise
            finally:
                temp.unlink(missing_ok=True)

    def _make_folder(self, folder: Path) -> None:
        """With the root the first time: one that is taken away then does not come back in parts."""
        if not self._is_there:
            self._root.mkdir(parents=True, exist_ok=True)
            self._is_there = True
        if folder == self._root:
            if not folder.is_dir():
                raise self._taken_away()
            return
        try:
            folder.mkdir(exist_ok=True)
        except FileNotFoundError:
            self._make_folder(folder.parent)
            try:
                folder.mkdir(exist_ok=True)
            except FileNotFoundError as error:
                raise self._taken_away() from error

    def _taken_away(self) -> TakenAway:
        return TakenAway(f"{self.root}: was taken away; {_SAME}")

    def _place(self, temp: Path, path: str, *, replace: bool) -> bool:
        """Give a finished file its name. Its folder is not synced: when power fails, the file is
        there whole or not at all, and what is not there is built again."""
        target = Path(self._at(path))
        self._make_folder(target.parent)
        if replace:
            os.replace(temp, target)  # noqa: PTH105
            return True
        try:
            os.link(temp, target)
        except FileExistsError:
            return False
        except FileNotFoundError:
            raise
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

    @contextmanager
    def still(self) -> Iterator[None]:
        """While it lasts, no other process can `swap`: so none takes or renews a lease. Needs no
        room on the disk."""
        with self._writing(), self._locked():
            yield

    def _locked(self) -> AbstractContextManager[object]:
        """Alone among all processes; the system frees what a dead one held."""
        if self._stat(LOCK) is None and self._is_there:  # whose lock would bring the root back
            self._make_folder(self._root)
        return FileLock(self._root / LOCK)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in FULL:
                raise Full(self._full()) from error
            if error.errno in FORBIDDEN:
                raise Forbidden(
                    f"{self.root}: no permission to write {error.filename or 'there'}; choose a "
                    "root that you may write to"
                ) from error
            raise

    def _full(self) -> str:
        free = shutil.disk_usage(self.root).free
        return (
            f"{self.root}: the disk is full ({free / 2**20:.1f} MiB free) or a quota is reached. "
            "Nothing built so far is lost: free some space and run the same command again"
        )


_numbers = itertools.count()


def _flush(sink: BinaryIO, sync: bool) -> None:
    sink.flush()
    if sync:
        os.fsync(sink.fileno())


def _tag(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


_PART = ".part"
"""Ends names of unfinished files outside a root; they begin with a dot and tell the writer."""


def write_whole(path: Path, data: bytes) -> None:
    """A file of a run: all its bytes or, whenever the process or the power fails, those of before.
    UserError where its folder is gone, may not be written or is full."""
    temp = path.with_name(f".{path.name}.{me()}~{next(_numbers)}{_PART}")
    with disk_errors(path):
        try:
            with temp.open("xb") as sink:
                sink.write(data)
                _flush(sink, True)
            temp.replace(path)
            sync_folder(path.parent)
        finally:
            if temp.parent.is_dir():
                temp.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """The folder and those above it; UserError where it cannot be."""
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)


def sweep_parts(folder: Path) -> None:
    """Take away what dead processes of this machine had begun to write below a folder."""
    for temp in folder.rglob(f".*{_PART}"):
        host, tilde, rest = temp.name.removesuffix(_PART).partition("~")
        if tilde and is_dead(f"{host.rpartition('.')[2]}~{rest}"):
            temp.unlink(missing_ok=True)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """What a disk refuses as a UserError that names `path` and says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL | FORBIDDEN | GONE:
            raise
        what = f"{path}: cannot be written ({error.strerror})"
        if error.errno in FULL:
            message = f"{what}. Free some space or choose another folder, then {_SAME}"
            raise Full(message) from error
        if error.errno in FORBIDDEN:
            raise Forbidden(f"{what}; choose a folder that you may write to") from error
        if error.errno != errno.ENOENT:
            below = "it is, or lies below, a file; choose another folder"
            raise UserError(f"{path}: cannot be written: {below}") from error
        raise TakenAway(f"{what}: its folder was taken away; {_SAME}") from error


_SAME = "run the same command again: what was finished is kept"


def sync_folder(folder: Path) -> None:
    """So that a name in it stays when the power fails."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_stale(temp: Path) -> bool:
    if (dead := is_dead(temp.name)) is not None:
        return dead
    try:
        return time.time() - temp.lstat().st_mtime > FOREIGN_TEMP_SECONDS
    except FileNotFoundError:
        return False
