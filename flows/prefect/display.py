"""What Prefect's pages show of a run: tables, pictures, links.

Pictures lie in the server's database as parts of Markdown, so that the page shows them wherever the
server runs and long after a worker is gone. (Prefect's artefact of type image shows its whole
address below the picture, which for such a picture is a line of half a megabyte.)
"""

from __future__ import annotations

import base64
import io
import os
import socket
from pathlib import Path
from typing import Any

from PIL import Image as PillowImage

from focusdpo.flows.jobs import Exhibit, Page, Picture, Table, Text

LARGEST = 400_000
"""Bytes of a picture in the server's database, at most."""
REPORTS = "FOCUSDPO_REPORTS_URL"
"""Environment variable: where the working folder's files are served, as in https://host/runs."""


def display(exhibit: Exhibit) -> None:
    """Show something on the page of this run."""
    from prefect import artifacts

    match exhibit:
        case Text(key, title, markdown):
            artifacts.create_markdown_artifact(markdown, key=key, description=title)
        case Picture(key, title, png):
            markdown = f"![{title}]({as_address(png)})\n"
            artifacts.create_markdown_artifact(markdown, key=key, description=title)
        case Table(key, title, rows):
            shown = [{name: _shortened(value) for name, value in row.items()} for row in rows]
            artifacts.create_table_artifact(shown, key=key, description=title)
        case Page(key, path, png):
            if (address := address_of(path)) is not None:
                artifacts.create_link_artifact(
                    address, link_text=path.name, key=key, description=str(path)
                )
                return
            artifacts.create_markdown_artifact(in_words(path, png), key=key, description=str(path))


def _shortened(value: Any) -> Any:
    """Numbers to four digits."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def in_words(path: Path, png: bytes | None) -> str:
    """Markdown for a page that is not served: no browser follows a link from http to a file."""
    shown = f"![{path.name}]({as_address(png)})\n\n" if png else ""
    return (
        f"{shown}`{path.resolve()}` on {socket.gethostname()}: open it there. With "
        f"`{REPORTS}`, the address under which the worker's folder is served, a link stands here.\n"
    )


def address_of(path: Path) -> str | None:
    """Where a browser finds a file of ours: below FOCUSDPO_REPORTS_URL. None where that is not set,
    or the file lies elsewhere."""
    whole, base = path.resolve(), os.environ.get(REPORTS)
    here = Path.cwd().resolve()
    if base and whole.is_relative_to(here):
        return f"{base.rstrip('/')}/{whole.relative_to(here).as_posix()}"
    return None


def as_address(png: bytes) -> str:
    """The picture as a data address of about LARGEST bytes at most; a larger one shrinks."""
    kind, data = "png", png
    scale = 1.0
    while len(data) > LARGEST * 3 / 4:
        image = PillowImage.open(io.BytesIO(png)).convert("RGB")
        size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
        sink = io.BytesIO()
        image.resize(size).save(sink, "JPEG", quality=85)
        kind, data, scale = "jpeg", sink.getvalue(), scale * 0.7
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
