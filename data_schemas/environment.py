"""Where this process runs: settings from environment variables, and its name, checked by others."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from focusdpo.data_schemas.errors import UserError


class EnvironmentConfig(BaseModel):
    """Each field is read from the variable `<prefix><FIELD>`; an empty one says nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    prefix: ClassVar[str]

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """UserError that names a variable which says nothing usable."""
        names = {name: f"{cls.prefix}{name.upper()}" for name in cls.model_fields}
        given = {name: environment[key] for name, key in names.items() if environment.get(key)}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(f"{names[str(first['loc'][0])]}: {first['msg']}") from error


FIRST_NAMESPACE = 0xEFFFFFFC
"""Linux's number for the namespace of process ids outside all containers."""


def me() -> str:
    """This process, in words that another process or machine can check: host~pid~start."""
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
    return (_facts(pid) or ["0"] * 20)[19]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # A zombie is dead, but not yet asked for by its parent.
    return (_facts(pid) or ["R"])[0] not in {"Z", "X"}


def _facts(pid: int) -> list[str] | None:
    """What Linux tells of a process, from its state on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
