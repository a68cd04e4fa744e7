"""Finding samples in webdataset tars by offset, and reading one.

Strict where tar readers are lenient: a damaged header or a missing end is an error that names the
shard, not the end of the data.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import fsspec
from webdataset.tariterators import base_plus_ext

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.shards import ShardSample, decode

_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class Entry:
    """A sample in a shard."""

    shard: str
    key: str
    split: str
    source: str
    """disrupt or rank."""
    num_subjects: int
    digest: str
    """Of its record: where its images come from, their scores, its prompt."""
    spans: dict[str, tuple[int, int]]
    """Field -> offset and size in bytes."""


def _open(path: str) -> BinaryIO:
    try:
        return cast("BinaryIO", fsspec.open(path, "rb").open())
    except FileNotFoundError as error:
        raise UserError(f"shard {path} does not exist. Build the dataset again.") from error


def _members(stream: BinaryIO, path: str) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of every file in a tar."""
    damaged = f"shard {path} is damaged or truncated"
    advice = "Remove it and build the dataset again: what is intact is not computed anew."
    size = stream.seek(0, 2)
    offset = 0
    while True:
        stream.seek(offset)
        header = stream.read(_BLOCK)
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


def index_shard(path: str | Path) -> list[Entry]:
    """All samples of a shard in their order. UserError naming it if it is damaged."""
    path = str(path)
    spans: dict[str, dict[str, tuple[int, int]]] = {}
    entries = []
    with _open(path) as stream:
        for name, offset, size in _members(stream, path):
            key, field = base_plus_ext(name)
            if key is not None:
                spans.setdefault(key, {})[field] = (offset, size)
        for key, fields in spans.items():
            num = sum(1 for field in fields if re.fullmatch(r"ref\d+\.png", field))
            header = _read(stream, fields, "json")
            split, source = _kind(header, f"shard {path}, sample {key}")
            record = hashlib.blake2b(header["json"], digest_size=8).hexdigest()
            entries.append(Entry(path, key, split, source, num, record, fields))
    return entries


def _kind(fields: dict[str, bytes], where: str) -> tuple[str, str]:
    """Split and source of the pair."""
    # The header is checked in full when the sample is decoded; this is but a filter.
    try:
        header = json.loads(fields["json"])
        return str(header["split"]), str(header["pair"]["source"])
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{where}: no readable json ({error}); build the dataset again") from error


def _read(stream: BinaryIO, spans: dict[str, tuple[int, int]], field: str) -> dict[str, bytes]:
    if field not in spans:
        return {}
    offset, size = spans[field]
    stream.seek(offset)
    return {field: stream.read(size)}


def read_entry(entry: Entry) -> ShardSample:
    """Decodes one sample. UserError naming shard, pair and field if it is damaged."""
    fields: dict[str, bytes] = {}
    with _open(entry.shard) as stream:
        for field in entry.spans:
            fields |= _read(stream, entry.spans, field)
    return decode(fields, f"shard {entry.shard}, sample {entry.key}")
