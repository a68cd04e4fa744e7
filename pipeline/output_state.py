"""What a run has kept at an address, and fetching it: `outputs.json` and the files that it names.

    outputs.json              every file's name, size and digest, and where it lies
    files/<sending>/<name>    what one sending of `mirror.py` brought; never written a second time

Readers go by `outputs.json` alone, which is swapped whole: they find a whole state at every moment.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.files import FORBIDDEN, FULL, Files

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
        told = json.loads(found[0])
        schema = told["schema"]
        kept = {str(name): Kept(**one) for name, one in told["files"].items()}
        state = State(int(told["number"]), str(told["writer"]), kept, found[1])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where}: damaged ({error}); choose another address") from error
    if schema != SCHEMA:
        raise UserError(f"{where}: schema {schema}, this focusdpo reads {SCHEMA}")
    outside = [name for name in kept if not _is_inside(name) or not _is_inside(kept[name].at)]
    if outside:
        raise UserError(f"{where}: names a file outside its folder: {outside[0][:80]!r}")
    return state


def fetch(files: Files, state: State, names: Iterable[str], folder: Path) -> None:
    """Make `names` in `folder` what the state says, each at once and checked; what is so already
    stays. FileNotFoundError for one that is gone from the address."""

    def one(name: str) -> None:
        kept, path = state.files[name], folder / name
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


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


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
