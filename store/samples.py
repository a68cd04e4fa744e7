"""Finding samples in webdataset tars by offset, and reading one: on a local disk, or in a remote
store through the cache of `shard_cache.py`.

Strict where tar readers are lenient: a damaged header or a missing end is an error that names the
shard, not the end of the data.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from webdataset.tariterators import base_plus_ext

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.shards import ShardSample, decode
from focusdpo.store.addresses import split_address
from focusdpo.store.cache import RemoteShard, ShardCache, default_cache

_BLOCK = tarfile.BLOCKSIZE
_NOTE = 1
"""Version of the index that is kept beside a remote shard."""
_REFERENCE = re.compile(r"ref\d+\.png")


@dataclass(frozen=True)
class Entry:
    """A sample in a shard."""

    shard: str
    """Path or URL."""
    key: str
    split: str
    source: str
    """disrupt or rank."""
    num_subjects: int
    digest: str
    """Of its record: where its images come from, their scores, its prompt."""
    spans: dict[str, tuple[int, int]]
    """Field -> offset and size in bytes."""
    remote: RemoteShard | None = None
    checksum: str = ""
    """blake2b-64 of the bytes from its first field to its last, of a remote shard."""

    @property
    def extent(self) -> tuple[int, int]:
        """Where its first field begins and its last one ends."""
        starts = [offset for offset, _ in self.spans.values()]
        return min(starts), max(offset + size for offset, size in self.spans.values())


def index_shard(path: str | Path, cache: ShardCache | None = None) -> list[Entry]:
    """All samples of a shard in their order. UserError naming it if it is damaged.

    A shard at a URL is fetched into the cache (the environment's, when none is given) and its index
    kept there, so that the next run need not fetch it to know what is in it.
    """
    protocol, local = split_address(path)
    if not protocol:
        try:
            with Path(local).open("rb") as file:
                return _entries(local, file)
        except FileNotFoundError as error:
            raise UserError(f"shard {local} does not exist. Build the dataset again.") from error
    cache = cache or default_cache()
    shard = cache.shard(str(path))
    note = cache.note(shard)
    known = None if note is None else _noted(note, shard)
    if known is not None:
        return known
    with cache.whole(shard) as file:
        entries = _entries(shard.url, file, shard)
    if shard.digest is not None:
        cache.put_note(shard, _note(entries))
    return entries


def read_fields(entry: Entry, cache: ShardCache | None = None) -> dict[str, bytes]:
    """The bytes of a sample's fields: one read. UserError if the shard is gone or damaged."""
    start, end = entry.extent
    if entry.remote is not None:
        cache = cache or default_cache()
        data = cache.read(entry.remote, start, end - start, entry.checksum)
    else:
        try:
            with Path(entry.shard).open("rb", buffering=0) as file:
                file.seek(start)
                data = file.read(end - start)
        except FileNotFoundError as error:
            raise UserError(
                f"shard {entry.shard} does not exist. Build the dataset again."
            ) from error
    return {
        field: data[offset - start : offset - start + size]
        for field, (offset, size) in entry.spans.items()
    }


def read_entry(entry: Entry, cache: ShardCache | None = None) -> ShardSample:
    """Decodes one sample. UserError naming shard, pair and field if it is damaged."""
    return decode(read_fields(entry, cache), f"shard {entry.shard}, sample {entry.key}")


def _entries(path: str, file: BinaryIO, remote: RemoteShard | None = None) -> list[Entry]:
    spans: dict[str, dict[str, tuple[int, int]]] = {}
    with _mapped(file) as data:
        for name, offset, size in _members(data, path):
            key, field = base_plus_ext(name)
            if key is not None:
                spans.setdefault(key, {})[field] = (offset, size)
        entries = []
        for key, fields in spans.items():
            offset, size = fields.get("json", (0, 0))
            header = data[offset : offset + size]
            split, source = _kind(header, f"shard {path}, sample {key}")
            record = hashlib.blake2b(header, digest_size=8).hexdigest()
            num = sum(1 for field in fields if _REFERENCE.fullmatch(field))
            entry = Entry(path, key, split, source, num, record, fields, remote)
            if remote is not None:
                start, end = entry.extent
                found = hashlib.blake2b(data[start:end], digest_size=8).hexdigest()
                entry = Entry(path, key, split, source, num, record, fields, remote, found)
            entries.append(entry)
    return entries


def _mapped(file: BinaryIO) -> Any:
    """The whole file as bytes that are read when they are looked at."""
    file.seek(0, 2)
    if file.tell() == 0:
        return memoryview(b"")
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _members(data: Any, path: str) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of every file in a tar."""
    damaged = f"shard {path} is damaged or truncated"
    advice = "Remove it and build the dataset again: what is intact is not computed anew."
    size = len(data)
    offset = 0
    while True:
        header = bytes(data[offset : offset + _BLOCK])
        if len(header) < _BLOCK:
            raise UserError(f"{damaged}: it ends at byte {size} without an end mark. {advice}")
        if not any(header):
            return
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            raise UserError(f"{damaged} at byte {offset}: {error}. {advice}") from error
        start = offset + _BLOCK
        if start + info.size > size:
            raise UserError(f"{damaged} inside '{info.name}'. {advice}")
        if info.isreg():
            yield info.name, start, info.size
        offset = start + info.size + (-info.size % _BLOCK)


def _kind(header: bytes, where: str) -> tuple[str, str]:
    """Split and source of the pair."""
    # The header is checked in full when the sample is decoded; this is but a filter.
    try:
        values = json.loads(header)
        return str(values["split"]), str(values["pair"]["source"])
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{where}: no readable json ({error}); build the dataset again") from error


def _note(entries: list[Entry]) -> bytes:
    kept = [
        {name: value for name, value in asdict(one).items() if name not in ("shard", "remote")}
        for one in entries
    ]
    body = json.dumps(kept)
    check = hashlib.blake2b(body.encode(), digest_size=8).hexdigest()
    return f"{_NOTE} {check}\n{body}".encode()


def _noted(note: bytes, shard: RemoteShard) -> list[Entry] | None:
    """The index that a note holds; None when it is another version's or cut short."""
    head, _, body = note.partition(b"\n")
    if head.decode(errors="replace").split() != [
        str(_NOTE),
        hashlib.blake2b(body, digest_size=8).hexdigest(),
    ]:
        return None
    return [_entry(values, shard) for values in json.loads(body)]


def _entry(values: Mapping[str, Any], shard: RemoteShard) -> Entry:
    spans = {field: (int(a), int(b)) for field, (a, b) in values["spans"].items()}
    return Entry(**{**values, "spans": spans}, shard=shard.url, remote=shard)
