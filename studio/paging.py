"""Pages of a long list, and addresses that keep what was chosen."""

from __future__ import annotations

import math
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.requests import Request

from focusdpo.data_schemas.errors import UserError

LONGEST_TEXT = 300


@dataclass(frozen=True)
class Page:
    """Which part of a list is shown."""

    number: int
    """From 1 on."""
    size: int
    total: int
    address: str
    """Of the first page, with what was chosen."""

    @property
    def last(self) -> int:
        return max(1, math.ceil(self.total / self.size))

    @property
    def start(self) -> int:
        return (self.number - 1) * self.size

    @property
    def stop(self) -> int:
        return min(self.total, self.start + self.size)

    def to(self, number: int) -> str:
        """The address of a page."""
        return with_query(self.address, page=str(number))


def page_of(request: Request, total: int, size: int) -> Page:
    """The page that ?page= asks for; beyond the last, the last."""
    last = max(1, math.ceil(total / size))
    number = number_of(request, "page", 1)
    return Page(min(max(1, number or 1), last), size, total, chosen(request))


def chosen(request: Request) -> str:
    """Path and query, without the page and without empty fields."""
    kept = [(k, v) for k, v in request.query_params.multi_items() if v and k != "page"]
    query = urllib.parse.urlencode(kept)
    return request.url.path + (f"?{query}" if query else "")


def with_query(address: str, **values: str) -> str:
    """An address with more in its query."""
    mark = "&" if "?" in address else "?"
    return f"{address}{mark}{urllib.parse.urlencode(values)}"


def query_of(values: Mapping[str, object]) -> str:
    """A query of the values that are there, with its question mark."""
    text = urllib.parse.urlencode({k: str(v) for k, v in values.items() if v not in (None, "")})
    return f"?{text}" if text else ""


def text_of(request: Request, name: str) -> str:
    """A field of the query; UserError when it is overlong."""
    text = request.query_params.get(name, "")
    if len(text) > LONGEST_TEXT:
        raise UserError(f"{name}: {len(text)} characters, expected at most {LONGEST_TEXT}")
    return text


def number_of(request: Request, name: str, default: int | None = None) -> int | None:
    """A whole number of the query; UserError when it is none."""
    text = text_of(request, name).strip()
    if not text:
        return default
    if not text.lstrip("-").isdecimal() or len(text) > 12:
        raise UserError(f"{name}: '{text}' is no whole number")
    return int(text)


def float_of(request: Request, name: str) -> float | None:
    """A number of the query; UserError when it is none."""
    text = text_of(request, name).strip()
    if not text:
        return None
    try:
        value = float(text.replace(",", "."))
    except ValueError as error:
        raise UserError(f"{name}: '{text}' is no number") from error
    if not math.isfinite(value):
        raise UserError(f"{name}: '{text}' is no number")
    return value
