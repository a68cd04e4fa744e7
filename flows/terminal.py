"""What the terminal is told: errors of the system in a line; and output that cannot be shown stops
no run: what has no sign is escaped, what a closed pipe or a full disk does not take is dropped.

The command line imports this before anything else, so it imports nothing that takes time."""

from __future__ import annotations

import errno
import io
import os
import re
import select
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

UNSAFE = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters but tab and newline, and those that turn the direction of writing."""
LOADS = "loads"
"""How the names of threads begin that load models beside the main one: a process does not end in
order while one runs, for the interpreter cannot stop it inside a library (the process aborts)."""
GONE = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF, errno.ECONNRESET}


def printable(text: str) -> str:
    """A text in which nothing, as from the name of a file, commands the terminal."""
    return UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


_SPOKEN = threading.Event()
"""Something was written since this process began."""
SILENCE = 0.7
"""Seconds after which a command that has said nothing says that it has begun."""


@contextmanager
def heard(line: str) -> Iterator[None]:
    """Writes a line on stderr where nothing else is written within `SILENCE`; in a process of its
    own, whose streams were protected."""

    def speak() -> None:
        if not _SPOKEN.is_set():
            sys.stderr.write(f"{line}\n")

    protected = isinstance(getattr(getattr(sys.stderr, "buffer", None), "raw", None), _Sink)
    late = threading.Timer(SILENCE, speak)
    late.daemon = True
    if protected:
        late.start()
    try:
        yield
    finally:
        late.cancel()


class _Sink(io.RawIOBase):
    """A file descriptor that takes everything; what its other end does not want is lost."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._gone = False

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        _SPOKEN.set()
        view = memoryview(data)  # type: ignore[arg-type]
        while not self._gone:
            try:
                return os.write(self._number, view)
            except BlockingIOError:  # its reader has not kept up
                select.select([], [self._number], [])
            except OSError as error:
                if error.errno not in GONE:
                    raise
                self._gone = True
        return view.nbytes


def protect() -> None:
    """Make stdout and stderr of this process such. What has taken their place, as a test or a
    notebook, is left alone."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # closed: else the next file that is opened would get this number
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
    sys.stdout = _protected(sys.stdout, sys.__stdout__, 1)
    sys.stderr = _protected(sys.stderr, sys.__stderr__, 2)


def _protected(stream: TextIO | None, original: TextIO | None, number: int) -> TextIO:
    if stream is not None and (stream is not original or stream.fileno() != number):
        return stream
    if stream is not None:
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Sink(number)),
        encoding=stream.encoding if stream is not None else "utf-8",
        errors="backslashreplace",
        line_buffering=number == 2 or os.isatty(number),
    )


REMEDIES = {
    errno.EACCES: "ask its owner for the right to it, or choose another path",
    errno.EPERM: "ask its owner for the right to it, or choose another path",
    errno.EROFS: "choose a path on a disk that can be written",
    errno.ENOTDIR: "a file lies where a folder should be: move it, or choose another path",
    errno.EEXIST: "something of that name is there: move it, or choose another path",
    errno.EISDIR: "a folder lies where a file should be: move it, or choose another path",
    errno.ENOTEMPTY: "somebody else has written there: run the same command again",
    errno.ENOENT: "check the path; if something has removed it, run the same command again",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "a link leads back to itself: remove it",
}
OTHERWISE = "check the disk that it lies on, then run the same command again"
ROOM = "free some space and run the same command again; what was finished is kept"


def is_users(error: OSError) -> bool:
    """Whether a path of the user's, or a full disk, is the cause; without a path it is a mistake of
    ours."""
    from focusdpo.store.local import FULL

    return error.filename is not None or error.errno in FULL


def in_words(error: OSError) -> str:
    """The path, what is wrong with it and what to do, for an error that `is_users`."""
    from focusdpo.store.local import FULL

    paths = [os.fsdecode(path) for path in (error.filename, error.filename2) if path is not None]
    where = " -> ".join(paths) or "a file"
    what = (error.strerror or type(error).__name__).lower()
    if error.errno in FULL:
        return f"{where}: {what}; {ROOM}"
    return f"{where}: {what}; {REMEDIES.get(error.errno or 0, OTHERWISE)}"


def may_pass(error: OSError) -> bool:
    """Whether another try may go better: nobody gives a right or moves a file meanwhile."""
    from focusdpo.store.local import FORBIDDEN, FULL

    lasting = FORBIDDEN | FULL | {errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}
    return error.errno not in lasting
