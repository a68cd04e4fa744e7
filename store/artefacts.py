"""The dataset root: immutable artefacts under content keys, written once and whole.

Artefacts never change, so both stay true; one that is dropped is forgotten. A stage reads many
pictures of one artefact, and a request for each would take longer than the stage.

    dataset.json                              schema version
    stages/<stage>/<key[:2]>/<key>.tar        an artefact: artefact.json, records.parquet, more
                                              tables, *.png
    stages/<stage>/<key[:2]>/<key>.json       the seconds that it took
    shards/*.tar  versions/<id>/  LATEST      see shard.py and versions.py
    .tmp/                                     what is being written

An artefact is one file, so it is there whole or not at all on any medium, and costs one sync. Its
first member tells where the others lie: an image is read with one seek.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.images import decode_mask, decode_png, encode_png
from focusdpo.data_schemas.runs import Artefact
from focusdpo.data_schemas.subjects import ImageKey
from focusdpo.data_schemas.tables import from_parquet, to_parquet
from focusdpo.store import leases, tars
from focusdpo.store.addresses import RemoteRoot, open_root
from focusdpo.store.keys import KEY, STAGE, digest, image_key, parsed, split_image_key
from focusdpo.store.leases import LeaseConfig
from focusdpo.store.local import Files

LIMIT = 256 * 2**20
"""Bytes kept."""


class Remembered:
    """Artefacts by path, whole, those used last. Safe for threads."""

    def __init__(self, files: Files, limit: int = LIMIT) -> None:
        self._files, self._limit = files, limit
        self._lock = threading.Lock()
        self._present: set[str] = set()
        self._held: OrderedDict[str, bytes] = OrderedDict()
        self._used = 0

    def exists(self, path: str) -> bool:
        if path in self._present:
            return True
        is_present = self._files.exists(path)
        if is_present:
            self._present.add(path)
        return is_present

    def are_present(self, paths: Iterable[str]) -> None:
        self._present.update(paths)

    def read(self, path: str, offset: int, size: int, whole: int) -> bytes:
        """A range of a file of `whole` bytes, which is fetched at once unless it is huge."""
        if whole > self._limit // 4:
            return self._files.read(path, offset, size)
        data = self.held(path)
        if data is None:
            data = self._files.read(path)
            self.put(path, data)
        return data[offset : offset + size]

    def held(self, path: str) -> bytes | None:
        """A file's bytes, if they are at hand."""
        with self._lock:
            data = self._held.get(path)
            if data is not None:
                self._held.move_to_end(path)
            return data

    def put(self, path: str, data: bytes) -> None:
        """Remember what was just stored or read."""
        self._present.add(path)
        if len(data) > self._limit // 4:
            return
        with self._lock:
            self._used += len(data) - len(self._held.pop(path, b""))
            self._held[path] = data
            while self._used > self._limit:
                self._used -= len(self._held.popitem(last=False)[1])

    def forget(self) -> None:
        """Ask again for everything."""
        with self._lock:
            self._present.clear()
            self._held.clear()
            self._used = 0


INDEX = "artefact.json"
HEAD = 16384
"""Bytes read for an index in one go; most are smaller."""


@dataclass(frozen=True, slots=True)
class Index:
    """What an artefact's first member says, and where the others lie in the file."""

    artefact: Artefact
    spans: Mapping[str, tars.Span]

    @property
    def end(self) -> int:
        """Bytes up to the end of the last member."""
        return max(start + size for start, size in self.spans.values())


def artefact_bytes(artefact: Artefact, contents: Mapping[str, bytes]) -> bytes:
    """The file of an artefact; spans in its index count from the end of the index."""
    packed, spans = tars.pack(contents)
    values = dataclasses.asdict(artefact)
    # Times differ from run to run, and these bytes must not.
    del values["seconds"]
    index = {**values, "spans": spans}
    sink = io.BytesIO()
    written = tars.append(sink, INDEX, _canonical({**index, "digest": digest(_canonical(index))}))
    sink.write(packed)
    tars.finish(sink, written + len(packed))
    return sink.getvalue()


def read_index(first: Callable[[int], bytes], where: str, seconds: float) -> Index:
    """The index of a file whose first n bytes `first(n)` reads. ValueError, KeyError, TypeError or
    AttributeError when its bytes are not those that were written."""
    head = first(HEAD)
    size = tars.first_size(head, where)
    end = tars.BLOCK + size + (-size % tars.BLOCK)
    if end > len(head):
        head = first(end)
    values = parsed(head[tars.BLOCK : tars.BLOCK + size])
    if values.pop("digest") != digest(_canonical(values)):
        raise ValueError("its bytes are not those that were written")
    spans = {name: (end + int(a), int(b)) for name, (a, b) in values.pop("spans").items()}
    values["inputs"] = tuple(values["inputs"])
    return Index(Artefact(**values, seconds=seconds), spans)


def _canonical(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True).encode()


log = logging.getLogger(__name__)

R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrupt:
    """An artefact whose bytes are not those that were written."""

    stage: str
    key: str
    what: str


class Store:
    """A dataset root. Safe for threads, and for several processes at once."""

    def __init__(self, files: Files, leases: LeaseConfig | None = None) -> None:
        self.files = files
        self.leases = leases or LeaseConfig()
        self._index = functools.lru_cache(maxsize=8192)(self._read_index)
        self._far = Remembered(files) if files.local is None else None

    @classmethod
    def open(cls, root: str | Path, *, create: bool = True, write: bool = True) -> Store:
        """The store at `root`, a path or URL, made when absent and `create`; without `write`
        nothing there is changed, and what is stored is gone with the process. UserError for a root
        of another schema version, what holds something else, or no root."""
        files = open_root(root, create=create, write=write)
        if create and write and (removed := files.clean() + leases.clean(files)):
            log.info("%s: removed %d unfinished files of a stopped run", root, removed)
        return cls(files)

    @property
    def root(self) -> Path | RemoteRoot:
        """The root's folder, or its URL."""
        return self.files.local or RemoteRoot(self.files.root)

    def path(self, stage: str, key: str) -> str:
        """An artefact's file below the root."""
        if not STAGE.fullmatch(stage) or not KEY.fullmatch(key):
            raise UserError(f"{self.root}: no artefact can be called '{stage[:80]}/{key[:80]}'")
        return f"stages/{stage}/{key[:2]}/{key}.tar"

    def has(self, stage: str, key: str) -> bool:
        """Whether the artefact is there; costs one stat."""
        return (self._far or self.files).exists(self.path(stage, key))

    def stages(self) -> list[str]:
        return [name for name in self.files.names("stages") if STAGE.fullmatch(name)]

    def keys(self, stage: str) -> list[str]:
        """Keys of all artefacts of a stage, sorted. One listing: where each question is a request,
        the way to ask for many."""
        keys = {
            name.rpartition("/")[2].removesuffix(".tar"): f"stages/{stage}/{name}"
            for name in self.files.below(f"stages/{stage}")
        }
        ours = [
            key
            for key, path in keys.items()
            if KEY.fullmatch(key) and path == self.path(stage, key)
        ]
        if self._far is not None:
            self._far.are_present(keys[key] for key in ours)
        return sorted(ours)

    def lease(
        self, stage: str, key: str, partition: str, *, wait: bool = True
    ) -> AbstractContextManager[leases.Grant]:
        """The right to compute an artefact for the length of a block: see `leases.lease`."""
        return leases.lease(
            self.files,
            f"{stage}/{key}",
            f"{stage} of partition {partition}",
            lambda: self.has(stage, key),
            wait=wait,
            config=self.leases,
        )

    def publishing(self) -> AbstractContextManager[leases.Grant]:
        """The right to publish a version of this root; waits while another builder has it."""
        return leases.lease(
            self.files, "publish/version", "the next version", lambda: False, config=self.leases
        )

    def commit(
        self,
        stage: str,
        key: str,
        records: Sequence[R],
        record_type: type[R],
        *,
        images: Mapping[str, bytes | NDArray[np.generic]] | None = None,
        more: Mapping[str, tuple[type, Sequence[Any]]] | None = None,
        partition: str = "",
        inputs: Sequence[str] = (),
        seconds: float = 0.0,
        versions: Mapping[str, str] | None = None,
    ) -> Artefact:
        """Store the result of a stage for a partition; it appears whole.

        `images`: member name ("x.png") -> PNG bytes or an array; `more`: further tables by name;
        `seconds`: model computation. When the key is there already (another writer was first), what
        is there stays. UserError when the disk is full.
        """
        if self.has(stage, key):
            return self.artefact(stage, key)
        contents = {"records.parquet": to_parquet(records, record_type)}
        for name, (row_type, rows) in (more or {}).items():
            contents[f"{name}.parquet"] = to_parquet(rows, row_type)
        for member, image in (images or {}).items():
            name = image_key(stage, key, member).rpartition("/")[2]
            contents[name] = image if isinstance(image, bytes) else encode_png(image)
        artefact = Artefact(
            stage=stage,
            key=key,
            partition=partition,
            inputs=tuple(inputs),
            count=len(records),
            seconds=seconds,
            files={name: digest(data) for name, data in contents.items()},
            versions=dict(versions or {}),
        )
        path = self.path(stage, key)
        timing = json.dumps({"seconds": seconds}).encode()
        self.files.write(path.removesuffix("tar") + "json", timing, sync=False)
        data = artefact_bytes(artefact, contents)
        if not self.files.write(path, data, replace=False):
            # What a model makes may differ in its last bit: what counts is what is stored.
            return self.artefact(stage, key)
        if self._far is not None:
            self._far.put(path, data)
        log.debug("%s %s: %d records, %d images", stage, key, len(records), len(images or ()))
        return artefact

    def artefact(self, stage: str, key: str) -> Artefact:
        """What is known of an artefact; UserError when it is absent or damaged."""
        return self._index(stage, key).artefact

    def read(self, stage: str, key: str, record_type: type[R], table: str = "records") -> list[R]:
        """A table of an artefact; its bytes are checked against their hash."""
        where = self.files.address(self.path(stage, key))
        return from_parquet(self._checked(stage, key, f"{table}.parquet"), record_type, where)

    def image_bytes(self, key: ImageKey) -> bytes:
        """The PNG bytes that an image key names, checked against their hash."""
        return self._checked(*split_image_key(key))

    def image(self, key: ImageKey) -> NDArray[np.uint8]:
        """(H, W, 3) or (H, W) uint8 array."""
        return decode_png(self.image_bytes(key), f"{self.root}: {key}")

    def mask(self, key: ImageKey) -> NDArray[np.bool_]:
        """(H, W) bool array of a single-channel image."""
        return decode_mask(self.image_bytes(key), f"{self.root}: {key}")

    def verify(self, stage: str, key: str) -> None:
        """Check every byte of an artefact; UserError names what is damaged."""
        self._forget()
        for name in self._index(stage, key).artefact.files:
            self._checked(stage, key, name)
        path = self.path(stage, key)
        if not tars.is_sound(self.files.read(path), self.files.address(path)):
            raise self._damaged(stage, key, "bytes around its members are not those of a tar")

    def corrupt(self) -> list[Corrupt]:
        """All damaged artefacts of the root; reads everything."""
        damaged = []
        for stage in self.stages():
            for key in self.keys(stage):
                try:
                    self.verify(stage, key)
                except UserError as error:
                    damaged.append(Corrupt(stage=stage, key=key, what=str(error)))
        return damaged

    def drop(self, stage: str, key: str) -> None:
        """Take an artefact away, so that the next run builds it again."""
        self._forget()
        self.files.remove(self.path(stage, key))

    def _forget(self) -> None:
        self._index.cache_clear()
        if self._far is not None:
            self._far.forget()

    def repair(self) -> list[Corrupt]:
        """Drop all damaged artefacts and return them."""
        damaged = self.corrupt()
        for artefact in damaged:
            log.warning(
                "%s: dropped %s/%s: %s", self.root, artefact.stage, artefact.key, artefact.what
            )
            self.drop(artefact.stage, artefact.key)
        return damaged

    def _checked(self, stage: str, key: str, name: str) -> bytes:
        data = self._member(stage, key, name)
        if digest(data) != self._index(stage, key).artefact.files[name]:
            raise self._damaged(stage, key, f"{name} is not what was written")
        return data

    def _member(self, stage: str, key: str, name: str) -> bytes:
        index = self._index(stage, key)
        if name not in index.spans:
            raise UserError(f"{self.root}: artefact {stage}/{key} has no member '{name}'")
        offset, size = index.spans[name]
        try:
            path = self.path(stage, key)
            if self._far is None:
                data = self.files.read(path, offset, size)
            else:
                data = self._far.read(path, offset, size, index.end)
        except FileNotFoundError as error:
            raise self._absent(stage, key) from error
        if len(data) != size:
            raise self._damaged(stage, key, f"truncated inside {name}")
        return data

    def _read_index(self, stage: str, key: str) -> Index:
        path = self.path(stage, key)
        try:
            return read_index(partial(self._first, path), path, self._seconds(path))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._absent(stage, key) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(stage, key, f"{INDEX} is unreadable ({error})") from error

    def _first(self, path: str, size: int) -> bytes:
        held = None if self._far is None else self._far.held(path)
        return self.files.read(path, 0, size) if held is None else held[:size]

    def _seconds(self, path: str) -> float:
        try:
            return float(parsed(self.files.read(path.removesuffix("tar") + "json"))["seconds"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return 0.0  # a figure for reports; nothing depends on it

    def _absent(self, stage: str, key: str) -> UserError:
        return UserError(
            f"{self.root}: artefact {stage}/{key} is absent; run `focusdpo build-dataset`"
        )

    def _damaged(self, stage: str, key: str, what: str) -> UserError:
        return UserError(
            f"{self.root}: artefact {stage}/{key} is damaged: {what}. "
            f"Run `focusdpo doctor --root {self.root} --repair`, then the same build again: it "
            "makes this artefact anew and keeps all others"
        )
