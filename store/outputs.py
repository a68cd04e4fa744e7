"""Where a run's files lie: a folder, or one of this machine with its copy at an address.

What is at the address counts. A run works in a folder of this machine that is made what the address
holds, and sends what is new (store/folders.py): so a machine whose disk is thrown away loses what
came since the last checkpoint, and no more.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar

from filelock import FileLock, Timeout
from pydantic import Field

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.progress import Watch
from focusdpo.model.training.parallel import is_first, num_launched
from focusdpo.store.addresses import EnvironmentConfig, split_address
from focusdpo.store.folders import STATE, Mirror, State, copy, mirrored, read_state, room
from focusdpo.store.roots import files_of

log = logging.getLogger(__name__)

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
    def alone(self, own: str, name: str) -> Iterator[None]:
        """No other process works in the folder `own`. UserError when one does; `name`: of what."""
        lock = self._lock(own)
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

    def _lock(self, own: str) -> FileLock:
        path = self.place("locks", own)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path.parent}: {error.strerror}; set FOCUSDPO_OUTPUTS_DIR") from error
        return FileLock(path)

    def make_room(self) -> None:
        """Take away the folders that were begun with longest ago, until the bound holds; but none
        that a run works in, and none of the last day."""
        found = [path for kind in ("work", "copies") for path in self.place(kind).glob("*")]
        sizes = {path: _size(path) for path in found}
        too_much = sum(sizes.values()) - int(self.gib * 2**30)
        for path in sorted(found, key=_time):
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
    for one in folder.rglob("*"):
        with suppress(FileNotFoundError):
            size += one.stat().st_size if one.is_file() else 0
    return size


CHECKPOINTS = "checkpoints/"
"""Below a training run: only who goes on with it wants them."""
BESIDE = ("run.yaml", "run.json", "config.json")
"""What tells of an adapter how it was made, in the folder that it lies in."""
SEND_EVERY = 300.0
"""Seconds between two sendings of what is unfinished and can be gone on with."""


class Output:
    """The files of a run."""

    def __init__(self, name: str, folder: Path, mirror: Mirror | None = None) -> None:
        self.name, self.folder, self._mirror = name, folder, mirror
        self._sent = time.monotonic()

    def at(self, name: str) -> str:
        """What a file or folder below is called: as the run's `out` is."""
        return str(self.folder / name) if _is_here(self.name) else f"{self.name}/{name}"

    def send(self) -> None:
        """What is finished now may be gone on with from elsewhere."""
        if self._mirror is not None:
            self._mirror.send()
            self._sent = time.monotonic()

    def sending(self, watch: Watch) -> Watch:
        """The same watch; besides, what is there is sent every few minutes."""

        def look(what: str, done: int, total: int, figures: Mapping[str, float]) -> None:
            watch(what, done, total, figures)
            if time.monotonic() - self._sent > SEND_EVERY:
                self.send()

        return look if self._mirror is not None else watch


@contextmanager
def opened(out: str | Path, what: str) -> Iterator[Output]:
    """A run's files, to be written for the length of a block and sent when it ends well. `what`
    tells others who want to write there. Where a launcher started several processes, the first one
    fetches and sends.

    UserError for an address that cannot be used, or where a living process writes.
    """
    name = address_of(out)
    if _is_here(name):
        yield Output(name, Path(name))
        return
    folders = OutputFolders.from_environment()
    own = _short(name)
    folder = folders.place("work", own, _last(name))
    if num_launched() > 1:
        _require_one_machine(name)
    if not is_first():
        yield Output(name, folder)
        return
    files = files_of(name)
    with folders.alone(own, name):
        folders.make_room()
        with mirrored(files, folder, what) as mirror:
            os.utime(folder.parent)
            with _named(folder, name):
                yield Output(name, folder, mirror)


def local(address: str | Path, *only: str) -> Path:
    """A folder that holds what a run left at an address, to be read: all but its checkpoints, or
    `only` the files named, as far as they are there. A local folder is itself.

    The address may be a folder within what was sent, as in s3://bucket/run/adapter. UserError when
    there is nothing.
    """
    name = address_of(address)
    if _is_here(name):
        return Path(name)
    folders = OutputFolders.from_environment()
    folders.make_room()
    base, below = _base_of(name)

    def place(state: State) -> Path:
        own = folders.place("copies", _short(f"{base} {state.writer} {state.number}"))
        with room(own):
            own.mkdir(parents=True, exist_ok=True)
            os.utime(own)
        return own / _last(base)

    def wanted(file: str) -> bool:
        if below and file in BESIDE:
            return True
        inside = file.startswith(below) and not file.startswith(CHECKPOINTS)
        return inside and (not only or file.removeprefix(below) in only)

    found = copy(files_of(base), place, wanted)
    if found is None or not any(file.startswith(below) for file in found[0].files):
        raise UserError(f"{name}: nothing is there; {_holds_what(base, found)}")
    return found[1] / below


def holds(out: str | Path, file: str) -> bool:
    """Whether a run has left a file."""
    name = address_of(out)
    if _is_here(name):
        return (Path(name) / file).exists()
    state = read_state(files_of(name))
    return state is not None and file in state.files


def address_of(out: str | Path) -> str:
    """An address in one manner of writing, also where a path's folding has taken a slash from it;
    a local folder as it is."""
    protocol, rest = split_address(out)
    return f"{protocol}://{rest.rstrip('/')}" if protocol else rest


def _is_here(name: str) -> bool:
    return not split_address(name)[0]


@contextmanager
def _named(folder: Path, name: str) -> Iterator[None]:
    """What is wrong with a run's files is told of the address; a disk's trouble of the folder."""
    try:
        yield
    except UserError as error:
        told = str(error).replace(str(folder), name)
        if told == str(error) or isinstance(error.__cause__, OSError):
            raise
        raise UserError(told) from error


def _short(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _last(name: str) -> str:
    """What a report calls the folder."""
    return name.rpartition("/")[2]


def _base_of(name: str) -> tuple[str, str]:
    """Of a folder within what a run sent: where the run's files are, and the folder below that."""
    protocol, rest = split_address(name)
    bucket, *parts = rest.split("/")
    files = files_of(f"{protocol}://{bucket}")
    for number in range(len(parts), -1, -1):
        if files.exists("/".join([*parts[:number], STATE])):
            base = "/".join([bucket, *parts[:number]])
            return f"{protocol}://{base}", "".join(f"{part}/" for part in parts[number:])
    return name, ""


def _holds_what(base: str, found: tuple[State, Path] | None) -> str:
    if found is None:
        return "give what `train`, `evaluate` or `retrain` had as `out`, or a folder below it"
    heads = sorted({file.partition("/")[0] for file in found[0].files})
    return f"{base} holds {', '.join(heads[:8]) or 'no file yet'}"


def _require_one_machine(name: str) -> None:
    here = int(os.environ.get("LOCAL_WORLD_SIZE", num_launched()))
    if here < num_launched():
        raise UserError(
            f"out={name}: processes on several machines train together, and would not see one "
            "folder; give a folder on a disk that all of them share"
        )
