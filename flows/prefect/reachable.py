"""Whether the Prefect server that the environment names is one that we can use, asked before
Prefect is imported: it would find out in the middle of a run."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import urllib.error
import urllib.request
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from focusdpo.data_schemas.errors import UserError

ANSWER_SECONDS = 20.0
"""How long a busy server may take."""
EXAMPLE = "as in http://127.0.0.1:4200/api"
USER = re.compile("//([^/@]*)@")
"""Name and password in an address, which are shown to nobody."""
OR_NOT = "or use --no-prefect"


def named_address() -> str | None:
    """Where the server is that the environment, or the profile that it names, means."""
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    if not os.environ.get("PREFECT_PROFILE"):
        return None
    from prefect.settings import PREFECT_API_URL

    return PREFECT_API_URL.value()


def require_home() -> None:
    """UserError where Prefect's own folder is a file: importing Prefect would fail."""
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    if home.exists() and not home.is_dir():
        raise UserError(
            f"PREFECT_HOME={home}: a file, and Prefect keeps its settings there; name a folder"
        )


def require_server(url: str) -> str:
    """The version of the server at an address. UserError for an address that is none, for a server
    that does not answer, is not Prefect's, or is of another major version."""
    shown = USER.sub("//", url)
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(
            f"PREFECT_API_URL={shown}: an address of a Prefect server begins with http:// or "
            f"https://, {EXAMPLE}"
        )
    if _ask(url, "health", shown) is not True:
        hint = f"expected the address of Prefect's API, {EXAMPLE}, {OR_NOT}"
        if not parts.path.rstrip("/").endswith("/api"):
            beside = url.rstrip("/") + "/api"
            if _ask(beside, "health", shown) is True:
                hint = f"its API is one folder below: PREFECT_API_URL={shown.rstrip('/')}/api"
        raise UserError(f"PREFECT_API_URL={shown}: no Prefect server answers there; {hint}")
    version = _ask(url, "admin/version", shown)
    installed = metadata.version("prefect")
    if not isinstance(version, str) or version.split(".")[0] != installed.split(".")[0]:
        raise UserError(
            f"PREFECT_API_URL={shown}: the server is Prefect {version}, this is {installed}; their "
            "major versions must be the same: name a server of version "
            f"{installed.split('.')[0]}, {OR_NOT}"
        )
    return version


def _ask(url: str, path: str, shown: str) -> Any:
    """What a server says, read as JSON; None for an answer that is none of Prefect's."""
    plain = USER.sub("//", url).rstrip("/")
    request = urllib.request.Request(f"{plain}/{path}", headers=_credentials(url))
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            return json.loads(answer.read(100_000))
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise UserError(
                f"PREFECT_API_URL={shown}: the server lets nobody in without credentials; set "
                "PREFECT_API_AUTH_STRING or PREFECT_API_KEY to those that it takes"
            ) from error
        return None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"PREFECT_API_URL={shown}: the Prefect server does not answer ({reason}); start it "
            f"with `prefect server start`, name another, {OR_NOT}"
        ) from error
    except ValueError:
        return None


def _credentials(url: str) -> dict[str, str]:
    if key := os.environ.get("PREFECT_API_KEY"):
        return {"Authorization": f"Bearer {key}"}
    within = USER.search(url)
    login = os.environ.get("PREFECT_API_AUTH_STRING") or (within and unquote(within[1]))
    if login:
        return {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}
    return {}
