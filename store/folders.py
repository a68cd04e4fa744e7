"""A run's folder kept at an address, so that another machine can go on from it.

    outputs.json              every file's name, size and digest, and where it lies
    files/<sending>/<name>    what one sending of `mirror.py` brought; never written a second time

Readers go by `outputs.json` alone, which is swapped whole: they find a whole state at every moment.

    outputs.json              the state: every file's name, size and digest, and where it lies
    files/<sending>/<name>    what one sending brought; never written a second time
    .leases/output.json       who writes here

A sending puts what is new below a name of its own, then swaps `outputs.json`, and only then takes
away what no state names any more. So readers, who go by that one file, find a whole state at every
moment, and a sending that ends half-way leaves the state before it. A writer begins by swapping
`outputs.json`, too: whoever wrote before, and may only have been silent, cannot change it any more.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from focusdpo.data_schemas.errors import UserError
from focusdpo.store.keys import parsed
from focusdpo.store.leases import Lease, LeaseConfig, Leases
from focusdpo.store.local import FORBIDDEN, FULL, Files, inside, is_plain
from focusdpo.store.processes import me
from focusdpo.store.roots import HEADER

STATE = "outputs.json"
FILES = "files"
SCHEMA = 1
PIECE = 32 * 2**20
"""Bytes of a file that lie in memory at once."""
AT_ONCE = 4
"""Files that travel together."""
ANEW = "remove outputs.json and files/ there, and the same command starts from the beginning"
"""What helps when what was sent is damaged."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A file at the address."""

    at: str
    size: int
    blake2b: str


@dataclass(frozen=True, slots=True)
class State:
    """What is at the address. `tag` is that of `outputs.json`."""

    number: int
    writer: str
    files: dict[str, Kept]
    tag: str


def read_state(files: Files) -> State | None:
    """None where nothing was ever sent. UserError for a state that cannot be read."""
    found = files.tagged(STATE)
    if found is None:
        return None
    where = files.address(STATE)
    try:
        told = parsed(found[0])
        schema = told["schema"]
        kept = {str(name): Kept(**one) for name, one in told["files"].items()}
        state = State(int(told["number"]), str(told["writer"]), kept, found[1])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where}: damaged ({error}); choose another address") from error
    if schema != SCHEMA:
        raise UserError(f"{where}: schema {schema}, this focusdpo reads {SCHEMA}")
    outside = [name for name in kept if not is_plain(name) or not is_plain(kept[name].at)]
    if outside:
        raise UserError(f"{where}: names a file outside its folder: {outside[0][:80]!r}")
    return state


def fetch(files: Files, state: State, names: Iterable[str], folder: Path) -> None:
    """Make `names` in `folder` what the state says, each at once and checked; what is so already
    stays. FileNotFoundError for one that is gone from the address."""

    def one(name: str) -> None:
        kept, path = state.files[name], inside(folder, name, files.address(STATE))
        if path.is_file() and path.stat().st_size == kept.size and _digest(path) == kept.blake2b:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        found = hashlib.blake2b(digest_size=16)
        try:
            with part.open("wb") as sink:
                for start in range(0, kept.size, PIECE):
                    data = files.read(kept.at, start, min(PIECE, kept.size - start))
                    found.update(data)
                    sink.write(data)
            if found.hexdigest() != kept.blake2b:
                raise UserError(f"{files.address(kept.at)}: not the bytes that were sent; {ANEW}")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    with room(folder), ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, names))


def copy(
    files: Files, place: Callable[[State], Path], wanted: Callable[[str], bool]
) -> tuple[State, Path] | None:
    """Fetch what is `wanted` of the present state into the folder that `place` says; None where
    nothing was ever sent. Starts again when a writer has moved on meanwhile."""
    state = read_state(files)
    while state is not None:
        folder = place(state)
        try:
            fetch(files, state, filter(wanted, state.files), folder)
        except FileNotFoundError as error:
            now = read_state(files)
            if now is not None and now.tag == state.tag:
                raise gone(files, error) from error
            state = now
            continue
        return state, folder
    return None


def state_bytes(number: int, writer: str, files: dict[str, Kept]) -> bytes:
    """What `read_state` reads."""
    told = {
        "kind": "focusdpo outputs",
        "schema": SCHEMA,
        "number": number,
        "writer": writer,
        "files": {name: asdict(one) for name, one in files.items()},
    }
    return f"{json.dumps(told, indent=1)}\n".encode()


def gone(files: Files, error: FileNotFoundError) -> UserError:
    """For a state that is not whole: somebody took away what it names."""
    return UserError(f"{files.root}: a file that {STATE} names is gone ({error}); {ANEW}")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


@contextmanager
def room(folder: Path) -> Iterator[None]:
    """A full or forbidden disk in a sentence."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL | FORBIDDEN:
            raise
        raise UserError(
            f"{folder}: {error.strerror}; free some room, or set FOCUSDPO_OUTPUTS_DIR to a folder "
            "with more"
        ) from error


log = logging.getLogger(__name__)

UNFINISHED = (".part", ".tmp")
"""Endings of files that somebody is writing; so are names that begin with a dot."""

Stamp = tuple[int, int, int]
"""Inode, time and size: another one after each write."""


class Mirror:
    """A folder that this process alone changes, and its copy at an address."""

    def __init__(self, files: Files, folder: Path) -> None:
        """Take over: the folder becomes what is at the address. What is only here, as a checkpoint
        that was never sent, goes: the run makes it again, to the bit. UserError when another took
        over at the same moment, or the address is a dataset's."""
        self._files, self._folder = files, folder
        self._writer = f"{me()}~{uuid.uuid4().hex}"
        state = read_state(files)
        if state is None and files.exists(HEADER):
            raise UserError(f"{files.root}: a dataset root; choose another address for `out`")
        self._number = 0 if state is None else state.number
        self._tag = None if state is None else state.tag
        kept = {} if state is None else state.files
        self._swap(kept)
        self._sweep(kept)
        _remove_others(folder, kept)
        if state is not None:
            try:
                fetch(files, state, kept, folder)
            except FileNotFoundError as error:
                now = read_state(files)
                mine = now is not None and now.tag == self._tag
                raise (gone(files, error) if mine else self._succeeded()) from error
        stamps = dict(_stamps(folder))
        self._known = {name: (stamps[name], one) for name, one in kept.items()}

    def send(self) -> None:
        """Make the address what the folder is now. UserError when another took over."""
        stamps = dict(_stamps(self._folder))
        before = {name: one for name, (_, one) in self._known.items()}
        same = {n for n, stamp in stamps.items() if n in before and self._known[n][0] == stamp}
        if same == stamps.keys() == before.keys():
            return
        new = sorted(stamps.keys() - same)
        below = f"{FILES}/{self._number + 1:06d}-{uuid.uuid4().hex[:8]}"
        with ThreadPoolExecutor(AT_ONCE) as pool:
            sent = dict(
                zip(new, pool.map(lambda n: self._put(n, f"{below}/{n}"), new), strict=True)
            )
        now = {name: sent.get(name) or before[name] for name in sorted(stamps)}
        self._swap(now)
        self._known = {name: (stamps[name], one) for name, one in now.items()}
        log.info("%s: %d files sent, %d in all", self._files.root, len(new), len(now))
        self._remove({one.at for one in before.values()} - {one.at for one in now.values()})

    def _put(self, name: str, at: str) -> Kept:
        """What is told is of the bytes that were sent: a log may grow meanwhile."""
        found, size = hashlib.blake2b(digest_size=16), 0
        with (self._folder / name).open("rb") as source, self._files.create(at) as sink:
            for data in _pieces(source):
                found.update(data)
                size += len(data)
                sink.write(data)
        return Kept(at, size, found.hexdigest())

    def _swap(self, files: dict[str, Kept]) -> None:
        told = state_bytes(self._number + 1, self._writer, files)
        tag = self._files.swap(STATE, told, self._tag)
        if tag is None:
            raise self._succeeded()
        self._number, self._tag = self._number + 1, tag

    def _succeeded(self) -> UserError:
        return UserError(
            f"{self._files.root}: another process writes here now, and this one stops; what it "
            "had sent before is kept. Give every run an `out` of its own"
        )

    def _sweep(self, kept: dict[str, Kept]) -> None:
        """What killed writers had sent and no state names. Sendings are numbered after the state
        that they make, so those of a writer that takes over from this one, should it be slow, are
        not among these."""
        named = {one.at for one in kept.values()}
        found = {name: name.partition("-")[0] for name in self._files.below(FILES)}
        old = [
            n for n, number in found.items() if number.isdecimal() and int(number) <= self._number
        ]
        self._remove({f"{FILES}/{name}" for name in old} - named)

    def _remove(self, paths: set[str]) -> None:
        try:
            for path in sorted(paths):
                self._files.remove(path)
        except ConnectionError as error:  # costs room until the next writer begins, and no more
            log.warning(
                "%s: what is not needed any more stays for now: %s", self._files.root, error
            )


@contextmanager
def mirrored(
    files: Files, folder: Path, what: str, config: LeaseConfig | None = None
) -> Iterator[Mirror]:
    """A mirror for the length of a block, sent once more when that ends well. UserError when a
    living process writes there; one that gives no sign of life is succeeded."""
    held = _ask(files, what, config or LeaseConfig())
    try:
        mirror = Mirror(files, folder)
        yield mirror
        mirror.send()
    finally:
        try:
            held.release()
        except ConnectionError as error:
            log.warning("%s: the lease runs out by itself: %s", files.root, error)


def _ask(files: Files, what: str, config: LeaseConfig) -> Lease:
    leases, first = Leases(files, config), None
    while True:
        answer = leases.ask("output", what)
        if isinstance(answer, Lease):
            return answer
        if first is None:
            first = answer
            log.warning("%s: is %s still at work? waiting for a sign", files.root, answer)
        elif (answer.owner, answer.beat) != (first.owner, first.beat):
            raise UserError(
                f"{files.root}: {answer.what} by {answer} is writing here; wait for it, "
                "stop it, or choose another `out`"
            )
        time.sleep(min(1.0, config.seconds / config.renewals / 4))


def _stamps(folder: Path) -> Iterator[tuple[str, Stamp]]:
    """The finished files of a folder."""
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and not name.endswith(UNFINISHED):
                path = Path(where, name)
                stat = path.stat()
                stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
                yield path.relative_to(folder).as_posix(), stamp


def _remove_others(folder: Path, kept: dict[str, Kept]) -> None:
    """Files that the state does not name, unfinished ones too, and folders that are then empty."""
    with room(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for where, _, names in os.walk(folder, topdown=False):
            here = Path(where)
            for name in names:
                if (here / name).relative_to(folder).as_posix() not in kept:
                    (here / name).unlink()
            if here != folder and not any(here.iterdir()):
                here.rmdir()


def _pieces(source: BinaryIO) -> Iterator[bytes]:
    while data := source.read(PIECE):
        yield data
