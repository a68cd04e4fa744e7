"""Pages from templates, pages of long lists, and how numbers and times are written."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup, escape
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.prompts import plural
from focusdpo.flows.terminal import in_words, is_users
from focusdpo.reports.charts import bucket_chart, forest_row, line_chart
from focusdpo.reports.metric_texts import bounds, mean_text, number
from focusdpo.reports.thumbnails import data_uri
from focusdpo.reports.view import Interval, Unit
from focusdpo.studio.shared import Studio


def count(value: int) -> str:
    """1234567 as 1 234 567, with spaces that do not break."""
    return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def counted(value: int, noun: str) -> str:
    """A number and what it counts: "1 shard", "1 234 shards"."""
    return f"{count(value)} {noun if value == 1 else plural(noun)}"


def score(value: float | None, digits: int = 3) -> str:
    """A score with its sign as a minus, not a hyphen; a dash where there is none."""
    if value is None or value != value:
        return "–"
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def size(value: float) -> str:
    """Bytes in the unit that suits."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def words(name: str) -> str:
    """missing_subject as missing subject."""
    return name.replace("_", " ")


def day(when: str) -> str:
    """2026-11-28T10:11:12.345+00:00 as 2026-11-28 10:11."""
    return when[:16].replace("T", " ")


def percent(part: float, whole: float) -> str:
    """A share; a dash of nothing."""
    return f"{100 * part / whole:.0f}\N{NARROW NO-BREAK SPACE}%" if whole else "–"


def symbol(text: str) -> Markup:
    """M_prior, M_s, x_t, ... as letters with a subscript; all else escaped."""
    return Markup(re.sub(r"\b(M|e|x)_(prior|s|d|w|l|t)\b", r"\1<sub>\2</sub>", str(escape(text))))


def interval(value: Interval | None, unit: Unit, signed: bool = False) -> Markup:
    """Mean and interval in their unit."""
    if value is None:
        return Markup("–")
    return Markup("{} <small>{}</small>").format(
        mean_text(value, unit, signed=signed), bounds(value, unit, signed=signed)
    )


FILTERS: dict[str, Callable[..., Any]] = {
    "count": count,
    "counted": counted,
    "score": score,
    "size": size,
    "words": words,
    "day": day,
    "percent": percent,
    "symbol": symbol,
    "interval": interval,
    "value": number,
    "line_chart": line_chart,
    "bucket_chart": bucket_chart,
    "forest_row": forest_row,
    "data_uri": data_uri,
}


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


NO_PAGE = "There is no such page."


def absent(what: str) -> HTTPException:
    """404: to be raised."""
    return HTTPException(404, what)


@dataclasses.dataclass(frozen=True)
class NavItem:
    """An entry of the navigation."""

    title: str
    path: str


def environment(navigation: tuple[NavItem, ...]) -> jinja2.Environment:
    """The studio's templates; a name that a page was not given is an error."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("focusdpo.studio"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= FILTERS
    made.globals["navigation"] = navigation
    made.globals["assets"] = _asset_tag()
    return made


def studio_of(request: Request) -> Studio:
    """The application's state."""
    studio: Studio = request.app.state.studio
    return studio


def render(request: Request, template: str, status: int = 200, **values: Any) -> Response:
    """A page. Templates always know `studio`, `path`, `csrf` and `logged_in` besides `values`."""
    state = request.app.state
    text = state.templates.get_template(template).render(
        studio=state.studio,
        path=request.url.path,
        csrf=state.keys.csrf,
        logged_in=state.keys.needs_login(),
        **values,
    )
    return HTMLResponse(text, status)


def wants_json(request: Request) -> bool:
    """Whether a script asks, not a person."""
    return "text/html" not in request.headers.get("accept", "text/html")


def failure(request: Request, status: int, message: str) -> Response:
    """A page, or JSON for scripts, that says what is wrong."""
    if wants_json(request):
        return JSONResponse({"error": message}, status)
    titles = {404: "Not found", 400: "That did not work", 413: "Too large", 409: "Too late"}
    return render(request, "error.html.j2", status, title=titles.get(status, "Error"), said=message)


async def on_user_error(request: Request, error: Exception) -> Response:
    return failure(request, 400, str(error))


async def on_os_error(request: Request, error: Exception) -> Response:
    """A disk that is full or may not be written, as on the command line."""
    assert isinstance(error, OSError)
    if not is_users(error):
        raise error
    return failure(request, 400, in_words(error))


async def on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    no_page = error.status_code == 404 and error.detail == "Not Found"
    return failure(request, error.status_code, NO_PAGE if no_page else error.detail)


def _asset_tag() -> str:
    """Changes with the static files, so that browsers may keep them."""
    hashed = hashlib.blake2b(digest_size=6)
    folder = resources.files("focusdpo.studio") / "static"
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        hashed.update(file.read_bytes())
    return hashed.hexdigest()
