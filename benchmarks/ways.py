"""How far it is from a command to what it is about: our functions on the stack, counted.

    python -m benchmarks.ways                  # the two ways, a line per function

A build: from the command `focusdpo build-dataset` to the function of the first stage. A pair
record: from the stage `pair`, which makes it, to the training step that learns from it; there the
functions count that are handed the record, or the sample that it became, or give it back.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OURS = ("data_schemas", "store", "model", "pipeline", "pocket", "evaluation", "flows")


@dataclass(frozen=True, order=True)
class Function:
    """One of our functions."""

    module: str
    name: str


def function_of(code: CodeType) -> Function | None:
    """The function of a code object; None when it is not ours (or no function: a comprehension, a
    class body, a module)."""
    file = Path(code.co_filename)
    parts = file.parts
    if "focusdpo" in parts:  # through the folder of links under which it is imported
        inside = parts[len(parts) - parts[::-1].index("focusdpo") :]
    elif file.is_relative_to(ROOT):
        inside = file.relative_to(ROOT).parts
    else:
        return None
    if inside[0] not in OURS or code.co_name.startswith("<") and code.co_name != "<lambda>":
        return None
    return Function(".".join(inside).removesuffix(".py"), code.co_qualname)


def stack_at(reached: Function, run: Callable[[], Any]) -> list[Function]:
    """Our functions on the stack, outermost first, when `reached` is first called in `run`. A
    generator that another function iterates counts like a call."""
    found: list[Function] = []

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and not found and function_of(frame.f_code) == reached:
            at: FrameType | None = frame
            while at is not None:
                if (function := function_of(at.f_code)) is not None:
                    found.insert(0, function)
                at = at.f_back

    threading.setprofile(look)
    sys.setprofile(look)
    try:
        run()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return found


def build_way(arguments: list[str]) -> list[Function]:
    """The way of `focusdpo ARGUMENTS` (a build of a new root) to its first stage."""
    from focusdpo.flows.cli import main

    def run() -> None:
        try:
            main(arguments)
        except SystemExit as ended:
            if ended.code:
                raise RuntimeError(f"the build ended with {ended.code}") from ended

    return stack_at(Function("flows.build.stages", "_compose"), run)


def told(way: list[Function]) -> str:
    """The way for people."""
    modules = len({function.module for function in way})
    lines = [
        f"{len(way)} functions in {modules} modules",
        *(f"  {f.module}  {f.name}" for f in way),
    ]
    return "\n".join(lines)
