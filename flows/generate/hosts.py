"""Which names a page that is served here answers to: a foreign page whose name was turned to this
address (DNS rebinding) says its own name, and a request that it makes says its origin.
"""

from __future__ import annotations

import ipaddress
import socket
import urllib.parse
from collections.abc import Iterable


class Hosts:
    """The names of this machine that a server at `host` answers to. Literal addresses cannot be
    turned; `any_address` lets all of them through."""

    def __init__(self, host: str, further: Iterable[str] = (), *, any_address: bool) -> None:
        self._names = {"localhost", "127.0.0.1", "::1", *map(str.lower, further)}
        self._any_address = any_address
        if is_wildcard(host):
            self._names.add(socket.gethostname().lower())
        else:
            self._names.add(host.strip("[]").lower())

    def answer_to(self, header: str) -> bool:
        """Whether a request with this Host is ours. ValueError for a Host that is none."""
        name = urllib.parse.urlsplit(f"//{header}").hostname or ""
        return name in self._names or (self._any_address and _is_address(name))


def is_wildcard(host: str) -> bool:
    """Whether a server there listens at every address of the machine."""
    return host.strip("[]") in {"", "0.0.0.0", "::"}


def is_same_origin(origin: str | None, host: str | None) -> bool:
    """Whether a request's Origin, if it has one, is the server that it is sent to."""
    if origin is None:
        return True
    try:
        return urllib.parse.urlsplit(origin).netloc == host
    except ValueError:
        return False


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
