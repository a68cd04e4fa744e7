"""The dataset root: immutable artefacts under content keys, written once and whole.

    dataset.json                              schema version
    stages/<stage>/<key[:2]>/<key>/           records.parquet, more tables, images.tar, stats.json,
                                              _DONE.json
    shards/*.tar  versions/<id>/  LATEST      see shard.py and versions.py
    .tmp/                                     what is being written

An artefact is there with all its files or not at all: it is written below .tmp and renamed.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.images import decode_mask, decode_png, encode_png
from focusdpo.data_schemas.runs import SCHEMA_VERSION, Artefact
from focusdpo.data_schemas.subjects import ImageKey
from focusdpo.data_schemas.tables import from_parquet, to_parquet
from focusdpo.pipeline import tars
from focusdpo.pipeline.files import TEMP, LocalFiles

log = logging.getLogger(__name__)

R = TypeVar("R")
MEMBER = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*\.png")
STAGE = re.compile(r"[a-z][a-z0-9_-]*")
KEY = re.compile(r"[0-9a-f]{8,64}")
IGNORED = {TEMP, "lost+found", ".DS_Store"}
"""Names that do not make a folder somebody else's."""
STATS = "stats.json"


def config_digest(config: BaseModel | Mapping[str, Any] | None) -> str:
    """16 hexadecimal digits of a config's values."""
    values = config.model_dump(mode="json") if isinstance(config, BaseModel) else dict(config or {})
    return _digest(json.dumps(values, sort_keys=True, allow_nan=False).encode())[:16]


def content_key(
    stage: str,
    version: int | str,
    config: BaseModel | Mapping[str, Any] | None,
    model: str = "",
    inputs: Iterable[str] = (),
) -> str:
    """32 hexadecimal digits of all that an artefact's bytes depend on: the stage's name and code
    version, its config, the fingerprint of its model, and its inputs in any order."""
    what = [stage, str(version), config_digest(config), model, sorted(inputs)]
    return _digest(json.dumps(what).encode())


def image_key(stage: str, key: str, member: str) -> ImageKey:
    """How records name an image of an artefact; `member` ends in .png."""
    if not MEMBER.fullmatch(member):
        raise ValueError(f"image member '{member}': letters, digits, '_', '-', '.', then .png")
    return f"{stage}/{key}/{member}"


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrupt:
    """An artefact whose files are not those that were written."""

    stage: str
    key: str
    what: str


@dataclass(frozen=True, slots=True)
class _Done:
    """What _DONE.json says: the artefact and where its images lie in images.tar."""

    artefact: Artefact
    members: Mapping[str, tars.Span]
    folder: str


class Store:
    """A dataset root. Safe for threads, and for several processes at once."""

    def __init__(self, files: LocalFiles) -> None:
        self.files = files
        self._done = functools.lru_cache(maxsize=8192)(self._read_done)

    @classmethod
    def open(cls, root: str | Path, *, create: bool = True) -> Store:
        """The store at `root`, made when absent and `create`. UserError for a root of another
        schema version, a folder that holds something else, or no root."""
        files = LocalFiles(root)
        path = Path(root)
        if path.exists() and not path.is_dir():
            raise UserError(f"{root}: a file, not a dataset root; choose a folder")
        if not files.exists("dataset.json"):
            others = set(files.names("")) - IGNORED
            if others:
                raise UserError(
                    f"{root}: not a FocusDPO dataset root, but it holds {sorted(others)[:3]}; "
                    "choose an empty or new folder"
                )
            if not create:
                raise UserError(f"{root}: no dataset here; run `focusdpo build-dataset` first")
            header = {"kind": "focusdpo dataset", "schema_version": SCHEMA_VERSION}
            files.write("dataset.json", (json.dumps(header, indent=1) + "\n").encode())
        _check_header(files)
        if removed := files.clean():
            log.info("%s: removed %d unfinished artefacts of a stopped run", root, removed)
        return cls(files)

    @property
    def root(self) -> Path:
        return Path(self.files.root)

    def folder(self, stage: str, key: str) -> str:
        """Path of an artefact below the root."""
        if not STAGE.fullmatch(stage) or not KEY.fullmatch(key):
            raise ValueError(f"no artefact can be named '{stage}/{key}'")
        return f"stages/{stage}/{key[:2]}/{key}"

    def has(self, stage: str, key: str) -> bool:
        """Whether the artefact is there; costs one stat."""
        return self.files.exists(f"{self.folder(stage, key)}/_DONE.json")

    def stages(self) -> list[str]:
        return self.files.names("stages")

    def keys(self, stage: str) -> list[str]:
        """Keys of all artefacts of a stage, sorted."""
        return [
            key
            for prefix in self.files.names(f"stages/{stage}")
            for key in self.files.names(f"stages/{stage}/{prefix}")
        ]

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
        `seconds`: model computation. When the key is there already (another writer was first), the
        one that is there is returned. UserError when the disk is full.
        """
        contents = {"records.parquet": to_parquet(records, record_type)}
        for name, (row_type, rows) in (more or {}).items():
            contents[f"{name}.parquet"] = to_parquet(rows, row_type)
        members: dict[str, tars.Span] = {}
        if images:
            pngs = {image_key(stage, key, m).rpartition("/")[2]: _png(i) for m, i in images.items()}
            contents["images.tar"], members = tars.pack(pngs)
        artefact = Artefact(
            stage=stage,
            key=key,
            partition=partition,
            inputs=tuple(inputs),
            count=len(records),
            seconds=seconds,
            files={name: _digest(data) for name, data in contents.items()},
            versions=dict(versions or {}),
        )
        contents[STATS] = json.dumps({"seconds": seconds}).encode()
        contents["_DONE.json"] = _done_bytes(artefact, members)
        if not self.files.publish(self.folder(stage, key), contents):
            log.info("%s %s: there already, kept", stage, key)
            return self.artefact(stage, key)
        log.debug("%s %s: %d records, %d images", stage, key, len(records), len(members))
        return artefact

    def artefact(self, stage: str, key: str) -> Artefact:
        """What is known of an artefact; UserError when it is absent or damaged."""
        return self._done(stage, key).artefact

    def read(self, stage: str, key: str, record_type: type[R], table: str = "records") -> list[R]:
        """A table of an artefact; its bytes are checked against their hash."""
        data = self._checked(self._done(stage, key), f"{table}.parquet")
        return from_parquet(data, record_type, f"{self.root}/{self.folder(stage, key)}")

    def image_bytes(self, key: ImageKey) -> bytes:
        """The PNG bytes that an image key names."""
        stage, artefact_key, member = _split(key)
        done = self._done(stage, artefact_key)
        if member not in done.members:
            raise UserError(f"{self.root}: artefact {stage}/{artefact_key} has no image '{member}'")
        offset, size = done.members[member]
        try:
            data = self.files.read_range(f"{done.folder}/images.tar", offset, size)
        except FileNotFoundError as error:
            raise self._damaged(stage, artefact_key, "images.tar is missing") from error
        if len(data) != size:
            raise self._damaged(stage, artefact_key, "images.tar is truncated")
        return data

    def image(self, key: ImageKey) -> NDArray[np.uint8]:
        """(H, W, 3) or (H, W) uint8 array."""
        stage, artefact_key, member = _split(key)
        data = self.image_bytes(key)
        try:
            return decode_png(data, member)
        except UserError as error:
            raise self._damaged(stage, artefact_key, f"image {error}") from error

    def mask(self, key: ImageKey) -> NDArray[np.bool_]:
        """(H, W) bool array of a single-channel image."""
        stage, artefact_key, member = _split(key)
        data = self.image_bytes(key)
        try:
            return decode_mask(data, member)
        except UserError as error:
            raise self._damaged(stage, artefact_key, f"image {error}") from error

    def verify(self, stage: str, key: str) -> None:
        """Check every byte of an artefact; UserError names what is damaged."""
        self._done.cache_clear()
        done = self._done(stage, key)
        for name in done.artefact.files:
            self._checked(done, name)

    def corrupt(self) -> list[Corrupt]:
        """All damaged artefacts of the root; reads everything."""
        found = []
        for stage in self.stages():
            for key in self.keys(stage):
                try:
                    self.verify(stage, key)
                except UserError as error:
                    found.append(Corrupt(stage=stage, key=key, what=str(error)))
        return found

    def drop(self, stage: str, key: str) -> None:
        """Take an artefact away, so that the next run builds it again."""
        self._done.cache_clear()
        self.files.remove(self.folder(stage, key))

    def repair(self) -> list[Corrupt]:
        """Drop all damaged artefacts and return them."""
        found = self.corrupt()
        for one in found:
            log.warning("%s: dropped %s/%s: %s", self.root, one.stage, one.key, one.what)
            self.drop(one.stage, one.key)
        return found

    def _checked(self, done: _Done, name: str) -> bytes:
        stage, key = done.artefact.stage, done.artefact.key
        if name not in done.artefact.files:
            raise UserError(f"{self.root}: artefact {stage}/{key} has no table '{name}'")
        try:
            data = self.files.read(f"{done.folder}/{name}")
        except FileNotFoundError as error:
            raise self._damaged(stage, key, f"{name} is missing") from error
        if _digest(data) != done.artefact.files[name]:
            raise self._damaged(stage, key, f"{name} is not what was written ({len(data)} bytes)")
        return data

    def _read_done(self, stage: str, key: str) -> _Done:
        folder = self.folder(stage, key)
        try:
            values = json.loads(self.files.read(f"{folder}/_DONE.json"))
            spans = {name: (int(a), int(b)) for name, (a, b) in values.pop("members").items()}
            values["inputs"] = tuple(values["inputs"])
            artefact = Artefact(**values, seconds=self._seconds(folder))
        except (FileNotFoundError, NotADirectoryError) as error:
            if self.files.exists(folder):
                raise self._damaged(stage, key, "_DONE.json is missing") from error
            raise UserError(
                f"{self.root}: artefact {stage}/{key} is absent; run `focusdpo build-dataset`"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(stage, key, f"_DONE.json is unreadable ({error})") from error
        return _Done(artefact, spans, folder)

    def _seconds(self, folder: str) -> float:
        try:
            return float(json.loads(self.files.read(f"{folder}/{STATS}"))["seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0.0  # a figure for reports; nothing depends on it

    def _damaged(self, stage: str, key: str, what: str) -> UserError:
        return UserError(
            f"{self.root}: artefact {stage}/{key} is damaged: {what}. "
            f"Run `focusdpo doctor --root {self.root} --repair`, then the same build again: it "
            "makes this artefact anew and keeps all others"
        )


def _check_header(files: LocalFiles) -> None:
    where = f"{files.root}/dataset.json"
    try:
        header = json.loads(files.read("dataset.json"))
        version = header["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{where}: damaged ({error}); write "
            f'{{"kind": "focusdpo dataset", "schema_version": {SCHEMA_VERSION}}} into it if this '
            "version of focusdpo made the root"
        ) from error
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{where}: schema version {version}, this focusdpo reads {SCHEMA_VERSION}; build into "
            "a new root, or use the focusdpo that made this one"
        )


def _png(image: bytes | NDArray[np.generic]) -> bytes:
    return image if isinstance(image, bytes) else encode_png(image)


def _split(key: ImageKey) -> tuple[str, str, str]:
    parts = key.split("/")
    if len(parts) != 3:
        raise UserError(f"image key '{key}': expected <stage>/<artefact>/<member>.png")
    return parts[0], parts[1], parts[2]


def _done_bytes(artefact: Artefact, members: Mapping[str, tars.Span]) -> bytes:
    values = dataclasses.asdict(artefact)
    # Times differ from run to run, and these bytes must not: they lie in stats.json.
    del values["seconds"]
    return (json.dumps({**values, "members": members}, indent=1, sort_keys=True) + "\n").encode()
