"""Where a run's files lie: a folder, or one of this machine with its copy at an address.

What is at the address counts. A run works in a folder of this machine that is made what the address
holds, and sends what is new: a machine whose disk is thrown away loses what came since the last
checkpoint, and no more.

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
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from focusdpo.data_schemas.environment import me
from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.runs import Watch
from focusdpo.store.addresses import HEADER, files_of, is_remote, split_address
from focusdpo.store.cache import OutputFolders
from focusdpo.store.keys import file_digest, inside, is_plain, sealed, unsealed
from focusdpo.store.leases import Lease, LeaseConfig, Leases
from focusdpo.store.local import FORBIDDEN, FULL, Files, sweep_parts

log = logging.getLogger(__name__)

STATE = "outputs.json"
FILES = "files"
SCHEMA = 1
PIECE = 32 * 2**20
"""Bytes of a file that lie in memory at once."""
AT_ONCE = 4
"""Files that travel together."""
ANEW = "remove outputs.json and files/ there, and the same command starts from the beginning"


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
    if (tagged := files.tagged(STATE)) is None:
        return None
    where = files.address(STATE)
    try:
        stored = unsealed(tagged[0])
        schema = stored["schema"]
        kept = {str(name): Kept(**file) for name, file in stored["files"].items()}
        state = State(int(stored["number"]), str(stored["writer"]), kept, tagged[1])
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
        if path.is_file() and file_digest(path) == kept.blake2b:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        hasher = hashlib.blake2b(digest_size=16)
        try:
            with part.open("wb") as sink:
                for start in range(0, kept.size, PIECE):
                    data = files.read(kept.at, start, min(PIECE, kept.size - start))
                    hasher.update(data)
                    sink.write(data)
            if hasher.hexdigest() != kept.blake2b:
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
    values = {
        "kind": "focusdpo outputs",
        "schema": SCHEMA,
        "number": number,
        "writer": writer,
        "files": {name: asdict(file) for name, file in files.items()},
    }
    return sealed(values)


def gone(files: Files, error: FileNotFoundError) -> UserError:
    """For a state that is not whole: somebody took away what it names."""
    return UserError(f"{files.root}: a file that {STATE} names is gone ({error}); {ANEW}")


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
        self._known = {name: (stamps[name], file) for name, file in kept.items()}

    def send(self) -> None:
        """Make the address what the folder is now. UserError when another took over."""
        stamps = dict(_stamps(self._folder))
        before = {name: file for name, (_, file) in self._known.items()}
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
        self._known = {name: (stamps[name], file) for name, file in now.items()}
        log.info("%s: %d files sent, %d in all", self._files.root, len(new), len(now))
        self._remove({file.at for file in before.values()} - {file.at for file in now.values()})

    def _put(self, name: str, at: str) -> Kept:
        """What is told is of the bytes that were sent: a log may grow meanwhile."""
        hasher, size = hashlib.blake2b(digest_size=16), 0
        with (self._folder / name).open("rb") as source, self._files.create(at) as sink:
            for data in _pieces(source):
                hasher.update(data)
                size += len(data)
                sink.write(data)
        return Kept(at, size, hasher.hexdigest())

    def _swap(self, files: dict[str, Kept]) -> None:
        state = state_bytes(self._number + 1, self._writer, files)
        tag = self._files.swap(STATE, state, self._tag)
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
        named = {file.at for file in kept.values()}
        numbers = {name: name.partition("-")[0] for name in self._files.below(FILES)}
        old = [
            n for n, number in numbers.items() if number.isdecimal() and int(number) <= self._number
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
        return str(self.folder / name) if not is_remote(self.name) else f"{self.name}/{name}"

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
def opened(
    out: str | Path, what: str, *, first: bool = True, processes: int = 1
) -> Iterator[Output]:
    """A run's files, to be written for the length of a block and sent when it ends well. `what`
    tells others who want to write there. Where a launcher started several `processes`, the `first`
    one fetches and sends.

    UserError for an address that cannot be used, or where a living process writes.
    """
    name = address_of(out)
    if not is_remote(name):
        if first:
            sweep_parts(Path(name))
        yield Output(name, Path(name))
        return
    folders = OutputFolders.from_environment()
    short = _short(name)
    folder = folders.place("work", short, _last(name))
    if processes > 1:
        _require_one_machine(name, processes)
    if not first:
        yield Output(name, folder)
        return
    files = files_of(name)
    with folders.alone(short, name):
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
    if not is_remote(name):
        return Path(name)
    folders = OutputFolders.from_environment()
    folders.make_room()
    base, below = _base_of(name)

    def place(state: State) -> Path:
        folder = folders.place("copies", _short(f"{base} {state.writer} {state.number}"))
        with room(folder):
            folder.mkdir(parents=True, exist_ok=True)
            os.utime(folder)
        return folder / _last(base)

    def wanted(file: str) -> bool:
        if below and file in BESIDE:
            return True
        inside = file.startswith(below) and not file.startswith(CHECKPOINTS)
        return inside and (not only or file.removeprefix(below) in only)

    copied = copy(files_of(base), place, wanted)
    if copied is None or not any(file.startswith(below) for file in copied[0].files):
        raise UserError(f"{name}: nothing is there; {_holds_what(base, copied)}")
    return copied[1] / below


def holds(out: str | Path, file: str) -> bool:
    """Whether a run has left a file."""
    name = address_of(out)
    if not is_remote(name):
        return (Path(name) / file).exists()
    state = read_state(files_of(name))
    return state is not None and file in state.files


def address_of(out: str | Path) -> str:
    """An address in one manner of writing, also where a path's folding has taken a slash from it;
    a local folder as it is."""
    protocol, rest = split_address(out)
    if protocol and not is_plain(rest.rstrip("/")):
        raise UserError(f"{out}: an address has no empty part and no '..'")
    return f"{protocol}://{rest.rstrip('/')}" if protocol else rest


@contextmanager
def _named(folder: Path, name: str) -> Iterator[None]:
    """What is wrong with a run's files is told of the address; a disk's trouble of the folder."""
    try:
        yield
    except UserError as error:
        message = str(error).replace(str(folder), name)
        if message == str(error) or isinstance(error.__cause__, OSError):
            raise
        raise UserError(message) from error


def _short(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _last(name: str) -> str:
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


def _holds_what(base: str, copied: tuple[State, Path] | None) -> str:
    if copied is None:
        return "give what `train`, `evaluate` or `retrain` had as `out`, or a folder below it"
    heads = sorted({file.partition("/")[0] for file in copied[0].files})
    return f"{base} holds {', '.join(heads[:8]) or 'no file yet'}"


def _require_one_machine(name: str, processes: int) -> None:
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    if here < processes:
        raise UserError(
            f"out={name}: processes on several machines train together, and would not see one "
            "folder; give a folder on a disk that all of them share"
        )
