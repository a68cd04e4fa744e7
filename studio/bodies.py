"""Bodies of requests that scripts send: small, and refused as soon as they are not."""

from __future__ import annotations

import json
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from focusdpo.data_schemas.errors import UserError

LARGEST_JSON = 64 * 1024


async def body(request: Request, largest: int, what: str) -> bytes:
    """All bytes; 413 where there are more than `largest`, as soon as that is known."""
    told = request.headers.get("content-length", "0")
    parts, size = [], 0
    if told.isdecimal() and int(told) <= largest:
        async for piece in request.stream():
            size += len(piece)
            if size > largest:
                break
            parts.append(piece)
        else:
            return b"".join(parts)
    raise HTTPException(413, f"{what}: larger than {largest} bytes")


async def json_body(request: Request) -> dict[str, Any]:
    """A JSON object; UserError for anything else."""
    try:
        values = json.loads(await body(request, LARGEST_JSON, "what was typed"))
    except (ValueError, RecursionError) as error:
        raise UserError("the request is no JSON; load the page again") from error
    if not isinstance(values, dict):
        raise UserError("the request is no JSON object; load the page again")
    return values


def text(values: dict[str, Any], key: str) -> str:
    """A text, "" where it is absent."""
    value = values.get(key, "")
    if not isinstance(value, str):
        raise UserError(f"{key}: expected a text")
    return value
