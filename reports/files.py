"""Texts of a run, and words for times and for Markdown."""

from __future__ import annotations

import re
from pathlib import Path

from focusdpo.data_schemas.errors import UserError


def read_text(path: Path) -> str:
    """A text file; bytes that are no UTF-8 are shown as replacement signs."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def seconds_text(seconds: float) -> str:
    """3 h 4 min, 2 min 5 s or 7.3 s."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
    if seconds >= 60:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{seconds:.1f} s"


_MARKUP = re.compile(r"([\\`*_{}\[\]#+!|<>~&$])")


def one_line(text: object) -> str:
    """Text that any Markdown shows as it is, on one line: no markup, no HTML, no control signs."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    plain = plain.replace("://", ":\u200b//")  # no address becomes a link by itself
    return _MARKUP.sub(r"\\\1", plain)
