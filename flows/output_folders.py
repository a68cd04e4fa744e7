"""Folders of this machine for runs whose `out` is an address: where they lie, whose turn it is, and
how much room they take."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar

from filelock import FileLock, Timeout
from pydantic import Field

from focusdpo.data_schemas.environment import EnvironmentConfig
from focusdpo.data_schemas.errors import UserError

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
