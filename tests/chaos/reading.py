"""Somebody who reads the newest version again and again while it is being built."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

from focusdpo.data_schemas.errors import UserError
from focusdpo.store.versions import open_version

PAUSE = 0.2
NOTHING_YET = ("no dataset version yet", "no dataset here")


class Reader:
    """Opens the newest version and reads from it in a thread, for the length of a block; each is
    verified to its last byte when it is seen for the first time, and again at the end."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._go, name="reader", daemon=True)
        self.looks = 0
        self.wrong: list[str] = []
        self._seen: set[str] = set()
        self._verified: set[str] = set()

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        self._verified.clear()
        self.look()

    def _go(self) -> None:
        while not self._over.wait(PAUSE):
            self.look()

    def look(self) -> None:
        """Once. Whatever is not a whole version is noted; an error of any kind is."""
        self.looks += 1
        try:
            version = open_version(self._root)
            if version.id not in self._verified:
                version.verify()
            version.read(version.rows[self.looks % len(version.rows)])
            self._seen.add(version.id)
            self._verified.add(version.id)
        except UserError as error:
            if self._seen or not any(words in str(error) for words in NOTHING_YET):
                self.wrong.append(str(error))
        except Exception as error:
            self.wrong.append(f"{type(error).__name__}: {error}")
