"""Who a process is, in words that another process or machine can check."""

from __future__ import annotations

import functools
import os
import socket
from pathlib import Path

FIRST_NAMESPACE = 0xEFFFFFFC
"""Linux's number for the namespace of process ids outside all containers."""


def me() -> str:
    """This process, for as long as anyone may ask: host~pid~start."""
    return _name(os.getpid())


@functools.cache
def _name(pid: int) -> str:
    return f"{host()}~{pid}~{_started(pid)}"


@functools.cache
def host() -> str:
    """This machine; two containers on one machine see other processes under the same ids, so they
    count as two."""
    name = "".join(c if c.isalnum() or c == "-" else "-" for c in socket.gethostname())
    try:
        space = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return name
    return name if space == FIRST_NAMESPACE else f"{name}-{space}"


def is_dead(name: str) -> bool | None:
    """Whether the process of that name (`me()`, and perhaps more after another "~") is gone; None
    when it is another machine's, and nobody here can tell."""
    where, _, rest = name.partition("~")
    pid, _, rest = rest.partition("~")
    if where != host() or not pid.isdecimal():
        return None
    return not _alive(int(pid)) or _started(int(pid)) != rest.partition("~")[0]


def told(name: str) -> str:
    """A process's name for people."""
    where, pid, *_ = [*name.split("~"), "?"]
    return f"{where} (process {pid})"


def _started(pid: int) -> str:
    """When a process started, so that a reused id is not mistaken for it; "0" where the system does
    not tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "0"
    return stat.rpartition(")")[2].split()[19]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Dead, but not yet asked for by its parent."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] in {"Z", "X"}
