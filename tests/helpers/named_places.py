"""Files, functions and modules that a text names, and which of them the repository has not."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLACE = re.compile(r"`((?:[\w.]+/)+(?:[\w]+\.\w+)?)(?::([\w.]+))?`")
"""`folder/`, `folder/file` or `folder/file.py:name`; a method's name has its class before it."""
OURS = {
    *("data_schemas", "store", "model", "pipeline", "pocket", "evaluation", "reports", "sharing"),
    *("flows", "studio", "benchmarks", "tests", "docs", "space"),
}


def absent_places(text: str) -> list[str]:
    """Places below our folders that a text names and the tree has not."""
    return [
        place[0].strip("`")
        for place in PLACE.finditer(text)
        if place[1].split("/")[0] in OURS and "NAME" not in place[1]
        if not (ROOT / place[1]).exists()
        or (place[2] and place[2] not in defined_names(ROOT / place[1]))
    ]


def absent_imports(code: str) -> list[str]:
    """What a piece of Python imports from focusdpo that is not there."""
    return [
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("focusdpo.")
        for alias in node.names
        if not is_there(f"{node.module}.{alias.name}")
    ]


def is_there(dotted: str) -> bool:
    """Whether `focusdpo.folder.module`, or a name in one, exists."""
    parts = dotted.split(".")[1:]
    for at in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:at])
        if at == len(parts) and path.is_dir():
            return True
        if (file := path.with_suffix(".py")).is_file():
            return at == len(parts) or ".".join(parts[at:]) in defined_names(file)
    return False


def defined_names(path: Path) -> set[str]:
    """What a module defines: functions, classes, constants, and methods behind their class."""
    return set(_names(ast.parse(path.read_text("utf-8")).body, ""))


def _names(body: list[ast.stmt], above: str) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield above + node.name
        if isinstance(node, ast.ClassDef):
            yield from _names(node.body, f"{node.name}.")
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (above + target.id for target in targets if isinstance(target, ast.Name))
