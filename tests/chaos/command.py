"""The focusdpo command on a toy suite, which tells what it does and can be killed at a chosen call.

    command.py build-dataset ...    the command itself, in an interpreter of its own
    command.py --serve              a fork server: the same command, without its imports each time

CHAOS_LOG names a file to which it appends a line per stage and partition that is computed. With
CHAOS_FOLDER, calls that change files below it are counted (Python's audit events, raised before the
call is made); CHAOS_KILL_AT=n sends SIGKILL before the n-th, CHAOS_CALLS=1 writes them to the log.
Nothing of the product knows of this: stages are wrapped in their table, calls are seen from below.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
if str(HELPERS) not in sys.path:
    sys.path.append(str(HELPERS))

CHANGES = {"os.rename": 1, "os.link": 1, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0}
"""Audit events that change a folder, and which argument tells where."""
PRELOADED = {
    "toy_suite": (
        "focusdpo.flows.build.run",
        "focusdpo.flows.commands.look",
        "focusdpo.flows.doctor",
        "focusdpo.pipeline.shard",
        "pyarrow.parquet",
        "focusdpo.flows.build.preview",
    ),
    "toy_trainer": (
        "focusdpo.flows.build.run",
        "focusdpo.flows.train.run",
        "focusdpo.evaluation.run",
        "focusdpo.flows.retrain.run",
        "focusdpo.evaluation.validation",
        "focusdpo.model.training.run",
        "focusdpo.flows.doctor",
        "focusdpo.flows.commands.look",
        "focusdpo.pipeline.upkeep.purge",
        "focusdpo.pipeline.shard",
        "focusdpo.reports.report",
        "focusdpo.sharing.adapter_export",
        "focusdpo.sharing.dataset_export",
        "focusdpo.pocket.facts",
        "peft",
        "pyarrow.parquet",
        "safetensors.torch",
        "scipy.ndimage",
    ),
}


def note(**values: Any) -> None:
    """A line in the log: one write, so that several processes may append."""
    path = os.environ.get("CHAOS_LOG")
    if path:
        data = json.dumps({"process": os.getpid(), **values}).encode() + b"\n"
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(file, data)
        os.close(file)


def count_computations() -> None:
    """From now on each stage notes which partition's artefact it computes."""
    from focusdpo.flows.build.stages import STAGES

    def noted(name: str, run: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def told(work: Any) -> Any:
            note(computes=name, key=work.keys[name])
            return run(work)

        return told

    for name, stage in STAGES.items():
        STAGES[name] = dataclasses.replace(stage, run=noted(name, stage.run))


class Calls:
    """Counts calls that change files below a folder, and ends the process at one of them."""

    def __init__(self, folder: str, kill_at: int, told: bool) -> None:
        self.folder, self.kill_at, self.told, self.count = folder + os.sep, kill_at, told, 0
        self._lock = threading.RLock()

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event != "open" and event not in CHANGES:
            return
        path = args[CHANGES.get(event, 0)]
        if not isinstance(path, str) or not path.startswith(self.folder):
            return
        if event == "open" and not (args[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        with self._lock:
            self.count += 1
            if self.told or self.count == self.kill_at:
                note(call=self.count, event=event, path=path.removeprefix(self.folder))
            if self.count == self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)


class Broken:
    """A part whose results are not what they should be."""

    def __init__(self, part: Any, way: str) -> None:
        self._part, self._way = part, way

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._part, name)
        if not callable(value):
            return value
        return lambda *args, **kwargs: self._break(value(*args, **kwargs))

    def _break(self, result: Any) -> Any:
        import numpy as np

        if isinstance(result, np.ndarray) and result.dtype == np.uint8:
            return np.zeros_like(result)
        if isinstance(result, np.ndarray) and result.dtype.kind == "f":
            return result * 0 if self._way == "zero" else np.full_like(result, float(self._way))
        if isinstance(result, list):
            return [self._break(one) for one in result]
        return result


def break_part(role: str, way: str) -> None:
    """From now on what the suite gives for a role is broken."""
    suite: Any = importlib.import_module(os.environ["TOY_SUITE"])
    whole = suite.build

    def build(wanted: str, *args: Any, **kwargs: Any) -> Any:
        part = whole(wanted, *args, **kwargs)
        return Broken(part, way) if wanted == role else part

    suite.build = build


def jump_clock(seconds: float, calls: float) -> None:
    """The clock goes on from elsewhere after it was asked so often."""
    real, real_ns, asked = time.time, time.time_ns, [0]

    def offset() -> float:
        asked[0] += 1
        return seconds if asked[0] > calls else 0.0

    time.time = lambda: real() + offset()
    time.time_ns = lambda: real_ns() + int(offset() * 1e9)


def run(arguments: list[str]) -> None:
    """The command; ends the process with its exit code."""
    from focusdpo.flows import wiring
    from focusdpo.flows.cli import main

    wiring.SUITES["pocket"] = os.environ.get("TOY_SUITE", "toy_suite")
    if broken := os.environ.get("CHAOS_BROKEN"):
        break_part(*broken.split(":"))
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    count_computations()
    folder = os.environ.get("CHAOS_FOLDER")
    if folder:
        kill_at = int(os.environ.get("CHAOS_KILL_AT", "0"))
        sys.addaudithook(Calls(folder, kill_at, "CHAOS_CALLS" in os.environ))
    if jump := os.environ.get("CHAOS_JUMP"):
        jump_clock(*map(float, jump.split(":")))
    sys.argv[1:] = arguments
    main()


def serve() -> None:
    """Runs one command after the other, each in a fork of this process: a line of JSON in (its
    arguments, environment and files for its output), a line out when it has started (its id) and
    one when it is over (its status as waitpid tells it)."""
    import focusdpo.flows.program

    suite = os.environ.get("TOY_SUITE", "toy_suite")
    for name in (focusdpo.flows.program.__name__, suite, *PRELOADED[suite]):
        importlib.import_module(name)
    others = _other_threads()
    if others:  # a fork takes along just the thread that forks
        raise RuntimeError(f"threads after imports: {others}; a fork would not be a whole process")
    _tell("ready")
    for line in sys.stdin:
        given = json.loads(line)
        process = os.fork()
        if process == 0:
            os.setsid()
            _become(given)
            run(given["arguments"])
            return
        _tell(process)
        _tell(os.waitpid(process, 0)[1])


def _other_threads() -> list[str]:
    """Threads but for the first, and for jemalloc's, which starts again in a fork by itself."""
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    return [name for name in names if name != "jemalloc_bg_thd"][1:]


def _become(given: dict[str, Any]) -> None:
    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, given["stdout"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        (2, given["stderr"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        file = os.open(path, flags, 0o644)
        os.dup2(file, number)
        os.close(file)
    os.environ.update(given["environment"])
    os.chdir(given["folder"])


def _tell(what: object) -> None:
    os.write(1, f"{json.dumps(what)}\n".encode())


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve()
    else:
        run(sys.argv[1:])
