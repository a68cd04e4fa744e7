"""Other object stores through fsspec: memory:// in full, the rest without compare-and-set."""

from __future__ import annotations

import datetime
import hashlib
import logging
import threading
from typing import Any, BinaryIO

from focusdpo.data_schemas.errors import UserError
from focusdpo.store.remote import ABSENT, Found

log = logging.getLogger(__name__)

WHOLE = {"memory", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci"}
"""Protocols whose stores show an object when all of it has come, and never before."""


class FsspecObjects:
    """The objects below a URL. Only `memory` knows whether a condition holds at the moment of a
    write; elsewhere a tag is compared first, so two builders on one root may undo each other's
    newest-version pointer (and nothing else)."""

    _memory_lock = threading.RLock()

    def __init__(self, protocol: str, path: str) -> None:
        import fsspec

        try:
            self._fs: Any = fsspec.filesystem(protocol, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise UserError(f"{protocol}://: {error}") from error
        self._protocol = protocol
        self._base = self._fs._strip_protocol(f"{protocol}://{path}").rstrip("/")
        self._lock = self._memory_lock if protocol == "memory" else threading.RLock()
        if protocol != "memory":
            log.warning(
                "%s://: this store has no compare-and-set that focusdpo knows; run one builder at "
                "a time on this root", protocol,
            )  # fmt: skip

    def address(self, key: str) -> str:
        return str(self._fs.unstrip_protocol(self._path(key))).rstrip("/")

    def look(self, key: str) -> Found:
        info = self._fs.info(self._path(key))
        if info["type"] != "file":
            raise FileNotFoundError(key)
        return Found(info["size"], "", self._age(info))

    def get(self, key: str, offset: int, size: int) -> tuple[bytes, str]:
        path = self._path(key)
        end = None if size < 0 else offset + size
        with self._lock:
            data = bytes(self._fs.cat_file(path, start=offset or None, end=end))
        return data, _tag(data)

    def put(self, key: str, source: BinaryIO, size: int, condition: str | None) -> str | None:
        data = source.read()
        path = self._path(key)
        with self._lock:
            if condition == ABSENT:
                try:
                    self._fs.pipe_file(path, data, mode="create")
                except FileExistsError:
                    return None
                return _tag(data)
            if condition is not None and self._tag_of(key) != condition:
                return None
            self._fs.pipe_file(path, data)
        return _tag(data)

    def below(self, key: str) -> dict[str, int]:
        start = f"{self._path(key)}/"
        found = self._fs.find(self._path(key), detail=True)
        return {name.removeprefix(start): found[name]["size"] for name in sorted(found)}

    def names(self, key: str) -> list[str]:
        try:
            found = self._fs.ls(self._path(key), detail=False)
        except FileNotFoundError:
            return []
        return sorted(name.rstrip("/").rpartition("/")[2] for name in found)

    def delete(self, key: str, tag: str | None) -> None:
        with self._lock:
            if tag not in (None, self._tag_of(key)) or not self._fs.exists(self._path(key)):
                return
            self._fs.rm_file(self._path(key))

    def sweep(self, older_than: float) -> int:
        """These stores forget unfinished uploads by themselves."""
        return 0

    def passing(self, error: BaseException) -> bool:
        return isinstance(error, (ConnectionError, TimeoutError))

    def refusal(self, error: BaseException) -> str | None:
        if isinstance(error, PermissionError):
            return "the store refuses; check the credentials in the environment"
        return None

    def told(self, error: BaseException) -> str:
        return type(error).__name__

    def _path(self, key: str) -> str:
        return f"{self._base}/{key}" if key else self._base

    def _tag_of(self, key: str) -> str | None:
        try:
            return self.get(key, 0, -1)[1]
        except FileNotFoundError:
            return None

    def _age(self, info: dict[str, Any]) -> float | None:
        written = info.get("created")
        if self._protocol != "memory" or not isinstance(written, datetime.datetime):
            return None
        return (datetime.datetime.now(datetime.UTC) - written).total_seconds()


def _tag(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
