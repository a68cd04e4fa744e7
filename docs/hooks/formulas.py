"""Formulas between dollar signs as MathML, which browsers draw by themselves: no script, no font
from elsewhere."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

FOUND = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """What pymdownx.arithmatex has found, drawn."""
    return FOUND.sub(_drawn, content)


def _drawn(found: re.Match[str]) -> str:
    latex = html.unescape(found[3]).strip()
    display = "block" if found[2] == "[" else "inline"
    # A long formula is scrolled, by keyboard too.
    focus = " tabindex='0'" if display == "block" else ""
    return f"<{found[1]} class='formula'{focus}>{convert(latex, display=display)}</{found[1]}>"
