"""How far it is from a command to what it is about: our functions on the stack, counted.

    python -m benchmarks.ways           # both ways with the pocket models, a line per function

A build: from the command `focusdpo build-dataset` to the function of the first stage, which
functions call one another. A pair record: from the stage `pair`, which makes it, to the training
step that learns from it, which functions give it on. `tests/flows/build/test_ways.py` holds both.
"""

from __future__ import annotations

import functools
import sys
import tempfile
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


@functools.cache
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
    functions: list[Function] = []

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and not functions and function_of(frame.f_code) == reached:
            at: FrameType | None = frame
            while at is not None:
                if (function := function_of(at.f_code)) is not None:
                    functions.insert(0, function)
                at = at.f_back
            sys.setprofile(None)

    _profiled(look, run)
    return functions


def _profiled(look: Callable[[FrameType, str, Any], None], run: Callable[[], Any]) -> None:
    """Run something; `look` sees the calls and returns of all threads."""
    threading.setprofile(look)
    sys.setprofile(look)
    try:
        run()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


def build_way(arguments: list[str]) -> list[Function]:
    """The way of `focusdpo ARGUMENTS` (a build of a new root) to its first stage."""
    return stack_at(Function("flows.build.stages", "_compose"), lambda: run_command(arguments))


def run_command(arguments: list[str]) -> None:
    """`focusdpo ARGUMENTS` in this process. RuntimeError where it does not end with 0."""
    from focusdpo.flows.cli import main

    try:
        main(arguments)
    except SystemExit as ended:
        if ended.code:
            raise RuntimeError(f"{arguments[0]} ended with {ended.code}") from ended


class PairWay:
    """Functions through which the record of one pair goes, in the order in which it does: they
    give it back, or what it has become (a sample, a part of a batch), or write it down. Those that
    only look at it are not on its way. The pair is the first one that the stage `pair` gives back;
    the way ends at the training step."""

    MADE = Function("pipeline.pair", "pair")
    WRITE = (
        Function("store.artefacts", "Store.commit"),
        Function("pipeline.shard", "write_shards"),
        Function("model.training.steps", "backward_step"),
    )

    HOLDERS = {"ShardSample": "pair", "StageOutput": "records", "Yields": "pairs"}
    RECORD = "TensorRecord."

    def __init__(self) -> None:
        self.functions: list[Function] = []
        self._id = ""

    def follow(self, run: Callable[[], Any]) -> None:
        """Run something on the way."""
        _profiled(self._look, run)

    def _look(self, frame: FrameType, event: str, value: Any) -> None:
        if self.WRITE[-1] in self.functions:
            sys.setprofile(None)
            return
        function = function_of(frame.f_code) if event in ("call", "return") else None
        if function is None or function in self.functions or "<" in function.name:
            return
        if not self._id and event == "return" and function == self.MADE and value.records:
            self._id = value.records[0].id
        if event == "call":
            on_the_way = (
                function in self.WRITE
                and self._id
                and (any(map(self._holds, frame.f_locals.values())))
            )
        else:
            # What a record does with itself (a batch is cut and moved) is no station.
            by_itself = function.module == "data_schemas.shards" or function.name.startswith(
                self.RECORD
            )
            on_the_way = bool(self._id) and not by_itself and self._holds(value)
        if on_the_way:
            self.functions.append(function)

    def _holds(self, value: Any, depth: int = 2) -> bool:
        kind = type(value).__name__
        if kind == "Pair":
            return bool(value.id == self._id)
        if kind == "EncodedPair":
            return bool(value.pair.about["id"] == self._id)
        if kind == "PairBatch":
            return self._id in value.keys
        if (inside := self.HOLDERS.get(kind)) is not None:
            return self._holds(getattr(value, inside))
        if isinstance(value, dict):
            value = list(value.values())
        if depth and isinstance(value, (list, tuple)):
            return any(self._holds(item, depth - 1) for item in value)
        return False


def as_text(way: list[Function]) -> str:
    """The way for people."""
    modules = len({function.module for function in way})
    lines = [
        f"{len(way)} functions in {modules} modules",
        *(f"  {f.module}  {f.name}" for f in way),
    ]
    return "\n".join(lines)


def main() -> None:
    """Both ways, with a small dataset of the pocket models."""
    with tempfile.TemporaryDirectory() as folder:
        small = ["--set", "world.subjects=3", "--set", "compose.variants=1", "--no-prefect"]
        build = build_way(["build-dataset", "--root", f"{folder}/first", *small])
        root, out = f"{folder}/root", f"{folder}/train"
        pair = PairWay()
        pair.follow(lambda: run_command(["build-dataset", "--root", root, *small]))
        step = ["--set", "train.steps=1", "--no-prefect"]
        pair.follow(lambda: run_command(["train", "--root", root, "--out", out, *step]))
    sys.stdout.write(f"a build: {as_text(build)}\na pair: {as_text(pair.functions)}\n")


if __name__ == "__main__":
    main()
