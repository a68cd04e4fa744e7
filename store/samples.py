"""The samples of a dataset version: written into plain tars, found by the rows of its index alone.

Offsets and checksums are written once, at the build, and every reader goes by them: training,
studio, export, report and repair. So a tar may hold samples that no row names. webdataset reads the
same tars from their beginning.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.shards import IndexRow, ShardSample, decode
from focusdpo.store import tars
from focusdpo.store.artefacts import Store
from focusdpo.store.cache import RemoteShard, ShardCache
from focusdpo.store.local import Files

FOLDER = "shards"
ENCODED = "encoded"
"""Beside it: what trainings keep of encoded pictures, unless they are told another folder."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sample lies in its shard."""

    offset: int
    size: int
    checksum: str
    """blake2b-64 of its bytes."""


@dataclass(frozen=True, slots=True)
class Copies:
    """The shards of a version in a remote store, read through a cache on this machine's disk."""

    cache: ShardCache
    shards: Mapping[str, RemoteShard]
    """By file name."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """A pair of a dataset version, to be read when it is wanted."""

    row: IndexRow
    store: Store
    copies: Copies | None = None

    def read(self) -> ShardSample:
        """UserError naming shard and pair when its bytes are not those that were written."""
        where = f"{self.store.root}/{FOLDER}/{self.row.shard}, sample {self.row.pair_id}"
        return decode(read_fields(self.store, self.row, self.copies), where)


def write_samples(
    files: Files, path: str, samples: Iterable[tuple[str, Mapping[str, bytes]]]
) -> list[Place]:
    """Write samples (name, field -> bytes) into one tar, which appears whole; where each lies."""
    places = []
    offset = 0
    with files.create(path) as sink:
        for sample, fields in samples:
            hasher = hashlib.blake2b(digest_size=8)
            start = offset
            for name in sorted(fields):
                for piece in tars.member(f"{sample}.{name}", fields[name]):
                    offset += sink.write(piece)
                    hasher.update(piece)
            places.append(Place(start, offset - start, hasher.hexdigest()))
        tars.finish(sink, offset)
    return places


def read_fields(store: Store, row: IndexRow, copies: Copies | None = None) -> dict[str, bytes]:
    """The fields of a sample as bytes, for who needs only some of its pictures; checked alike."""
    data = read_bytes(store, row, copies)
    return fields_in(data, f"{store.root}/{FOLDER}/{row.shard}")


def read_bytes(store: Store, row: IndexRow, copies: Copies | None = None) -> bytes:
    """A sample as it lies in its tar, checked."""
    try:
        if copies is None:
            data = store.files.read(f"{FOLDER}/{row.shard}", row.offset, row.size)
        else:
            data = copies.cache.read(copies.shards[row.shard], row.offset, row.size)
    except FileNotFoundError as error:
        raise damaged_shard(store, row.shard, "the file is missing") from error
    if len(data) != row.size or checksum(data) != row.checksum:
        what = "truncated" if len(data) != row.size else "not what was written"
        raise damaged_shard(store, row.shard, f"the sample of pair {row.pair_id} is {what}")
    return data


def damaged_shard(store: Store, name: str, what: str) -> UserError:
    """The error for a shard that cannot be read."""
    return UserError(
        f"{store.root}/{FOLDER}/{name} is damaged: {what}. Run `focusdpo doctor --root "
        f"{store.root} --repair`, then the same build again: it writes this shard anew and "
        "computes nothing"
    )


def fields_in(data: bytes, where: str) -> dict[str, bytes]:
    """Field -> content, of a sample's bytes."""
    return {name.partition(".")[2]: content for name, content in tars.members(data, where)}


def checksum(data: bytes) -> str:
    """blake2b-64, 16 hexadecimal digits: what a row tells of its sample."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()
