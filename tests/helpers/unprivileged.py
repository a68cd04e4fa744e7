"""What the superuser may do hides what others may not: give the right up for a while."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def unprivileged(reachable: Path) -> Iterator[None]:
    """Be nobody when one is root; the folders above `reachable` are opened for that."""
    if os.geteuid() != 0:
        yield
        return
    closed = [p for p in reachable.parents if not p.stat().st_mode & 0o001]
    modes = {parent: parent.stat().st_mode for parent in closed}
    for parent in closed:
        parent.chmod(modes[parent] | 0o011)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        for parent, mode in modes.items():
            parent.chmod(mode)
