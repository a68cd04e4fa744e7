"""What the terminal is told: errors of the system in a line."""

from __future__ import annotations

import errno
import os

from focusdpo.store.local import FORBIDDEN, FULL

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
    return error.filename is not None or error.errno in FULL


def in_words(error: OSError) -> str:
    """The path, what is wrong with it and what to do, for an error that `is_users`."""
    paths = [os.fsdecode(path) for path in (error.filename, error.filename2) if path is not None]
    where = " -> ".join(paths) or "a file"
    what = (error.strerror or type(error).__name__).lower()
    if error.errno in FULL:
        return f"{where}: {what}; {ROOM}"
    return f"{where}: {what}; {REMEDIES.get(error.errno or 0, OTHERWISE)}"


def may_pass(error: OSError) -> bool:
    """Whether another try may go better: nobody gives a right or moves a file meanwhile."""
    lasting = FORBIDDEN | FULL | {errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}
    return error.errno not in lasting
