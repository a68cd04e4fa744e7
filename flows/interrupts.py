"""Ctrl-C: one line and exit code 130, within two seconds and at any moment.

A command first gets the chance to leave in order (locks, leases and progress bars let go of). After
`GRACE_SECONDS` it ends wherever it is: what is stored is whole at every moment, so nothing is lost.
Python runs signal handlers between two steps of the interpreter only, and a model may compute for
minutes in one; so a thread waits for the signal, too. Imports nothing that takes time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import NoReturn

MESSAGE = "stopped; what was finished is kept: run it again"
CODE = 130
GRACE_SECONDS = 1.2


class Interrupts:
    """For the length of a block, Ctrl-C ends this process. To be entered in the main thread."""

    def __init__(self) -> None:
        self.stopping = False

    def __enter__(self) -> Interrupts:
        self._handler = signal.getsignal(signal.SIGINT)
        if self._handler == signal.SIG_IGN:  # as for a job in the background of a script
            return self
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        threading.Thread(target=self._watch, name="interrupts", daemon=True).start()
        signal.signal(signal.SIGINT, self._interrupt)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._handler == signal.SIG_IGN:
            return
        if self.stopping:  # whatever the interrupt was turned into on its way here
            sys.stdout.flush()
            leave()
        signal.set_wakeup_fd(self._wakeup)
        signal.signal(signal.SIGINT, self._handler)
        os.close(self._write)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.stopping:
            leave()  # asked for again
        self.stopping = True
        raise KeyboardInterrupt

    def _watch(self) -> None:
        while signals := os.read(self._read, 64):
            if signal.SIGINT in signals:
                time.sleep(GRACE_SECONDS)
                leave()
        os.close(self._read)


def leave() -> NoReturn:
    """End this process, and say why where it is the one that speaks."""
    if os.environ.get("RANK", "0") == "0":
        cursor = "\r\x1b[?25h\x1b[K" if os.isatty(2) else ""  # a progress bar had hidden it
        with contextlib.suppress(OSError):  # nobody may be there to read it
            os.write(2, f"{cursor}{MESSAGE}\n".encode())
    os._exit(CODE)
