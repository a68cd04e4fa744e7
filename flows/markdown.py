"""Words of users inside Markdown that others will show."""

from __future__ import annotations

import re

_MARKUP = re.compile(r"([\\`*_{}\[\]#+!|<>~&$])")


def one_line(text: object) -> str:
    """Text that any Markdown shows as it is, on one line: no markup, no HTML, no control signs."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    plain = plain.replace("://", ":\u200b//")  # no address becomes a link by itself
    return _MARKUP.sub(r"\\\1", plain)
