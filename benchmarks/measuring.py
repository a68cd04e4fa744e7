"""The promised figures of commands and steps. Each command runs in a process of its own."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.console import working

if TYPE_CHECKING:
    from benchmarks.step_cost import StepMemory
    from focusdpo.model.backbone import Backbone
    from focusdpo.model.training.batches import PairBatch
    from focusdpo.model.training.config import TrainConfig


@dataclass(frozen=True, slots=True)
class BenchFigure:
    """A measured figure, and what it should stay under."""

    name: str
    value: float
    unit: str
    limit: float | None = None

    @property
    def ok(self) -> bool | None:
        """None where nothing is promised."""
        return None if self.limit is None else self.value <= self.limit

    @property
    def wanted(self) -> str:
        return "" if self.limit is None else f"<= {self.limit:g}"

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "ok": self.ok}


OVERHEAD, NOTHING_SECONDS, MEMORY_GIB = 1.15, 10.0, 4.0


@dataclass(frozen=True)
class Finished:
    """A command that ended well."""

    result: dict[str, Any]
    """Its `--json` line."""
    wall: float
    cpu: float
    peak_bytes: int


def measure(
    out: Path, *, prefect: bool, repeats: int, preset: str, overrides: Sequence[str]
) -> list[BenchFigure]:
    """Build twice, then compare training steps. UserError when a command fails."""

    root = out / "dataset"
    if root.exists():
        raise UserError(f"{root}: is there already; bench measures a first build, give a new --out")
    common = [
        "--root",
        str(root),
        "--preset",
        preset,
        *(word for override in overrides for word in ("--set", override)),
    ]
    common.append("--prefect" if prefect else "--no-prefect")
    with working("building a dataset, then once more"):
        first = run_command(["build-dataset", *common])
        second = run_command(["build-dataset", *common])
    if second.result["new"] or second.result["made"]:
        raise RuntimeError(f"the second build was not idle: {second.result}")
    model = first.result["model_seconds"]
    running = first.result["wall_seconds"] - first.result["start_seconds"]
    return [
        BenchFigure("pairs", first.result["pairs"], ""),
        BenchFigure("build-dataset: model computation", model, "s"),
        BenchFigure("build-dataset: whole command", first.wall, "s"),
        BenchFigure("build-dataset: wall / model computation", first.wall / model, "", OVERHEAD),
        BenchFigure("build-dataset: start-up", first.wall - running, "s"),
        BenchFigure("build-dataset: after start-up, wall / model", running / model, "", OVERHEAD),
        BenchFigure("build-dataset: peak memory", first.peak_bytes / 2**30, "GiB", MEMORY_GIB),
        BenchFigure("nothing changed: whole command", second.wall, "s", NOTHING_SECONDS),
        BenchFigure("nothing changed: processor time", second.cpu, "s"),
        BenchFigure("nothing changed: model computation", second.result["model_seconds"], "s", 0.0),
        *step_figures(root, preset, overrides, repeats),
    ]


def run_command(arguments: Sequence[str]) -> Finished:
    """A focusdpo command in a process of its own, with its time and memory."""
    command = [sys.executable, "-m", "focusdpo.flows.cli", *arguments, "--json"]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    assert process.stdout is not None
    lines = process.stdout.read().splitlines()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - started
    if process.returncode != 0:
        raise UserError(f"`focusdpo {' '.join(arguments)}` ended with {process.returncode}")
    return Finished(
        json.loads(lines[-1]), wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
    )


PAIRS = 16
STEP_RATIO, MEMORY_RATIO = 1.03, 1.05


@dataclass(frozen=True)
class StepBench:
    """Whose pairs and settings the steps take; small enough to send to another process."""

    root: str
    preset: str
    overrides: tuple[str, ...]
    """Those of build-dataset; the ones of `train` count here."""

    def parts(self) -> tuple[Backbone, PairBatch, TrainConfig]:
        """Loads the backbone and encodes the pairs."""
        from focusdpo.flows.config import TrainRun
        from focusdpo.flows.settings import merge, parse_overrides, resolve
        from focusdpo.flows.wiring import build_part
        from focusdpo.model.training.batches import PairData
        from focusdpo.store.versions import open_version

        wanted = {k: v for k, v in parse_overrides(self.overrides).items() if k == "train"}
        tree = merge({"preset": self.preset, "root": self.root, "out": "-"}, wanted)
        config = resolve(TrainRun, tree).train
        version = open_version(self.root)
        backbone = build_part("pocket", "backbone")
        data = PairData(backbone, version.samples("train"))
        # All pairs of a batch have equally many subjects; a small dataset's come more than once.
        group = max(data.groups(), key=len)
        return backbone, data.batch([group[i % len(group)] for i in range(PAIRS)]), config


def step_figures(
    root: Path, preset: str, overrides: Sequence[str], repeats: int
) -> list[BenchFigure]:
    """Time in this process, memory in one of its own for each objective."""
    from benchmarks.step_cost import step_cost

    bench = StepBench(str(root), preset, tuple(overrides))
    with working("measuring the memory of training steps"):
        memory = {name: _alone(bench, name) for name in ("dpo", "focus_dpo")}
    with working("timing training steps"):
        cost = step_cost(*bench.parts(), repeats=repeats)
    return [
        BenchFigure(f"DPO step, {PAIRS} pairs", cost.dpo_seconds, "s"),
        BenchFigure(f"FocusDPO step, {PAIRS} pairs", cost.focus_seconds, "s"),
        BenchFigure("FocusDPO step / DPO step", cost.ratio, "", STEP_RATIO),
        *memory_figures(memory["dpo"], memory["focus_dpo"]),
    ]


def memory_figures(dpo: StepMemory | None, focus: StepMemory | None) -> list[BenchFigure]:
    """None where the system does not tell."""
    if dpo is None or focus is None:
        return []
    ratio = focus.growth_bytes / dpo.growth_bytes
    return [
        *(
            BenchFigure(f"{name} steps: {what}", size / 2**30, "GiB")
            for name, memory in (("DPO", dpo), ("FocusDPO", focus))
            for what, size in (
                ("peak memory", memory.peak_bytes),
                ("above the state before", memory.growth_bytes),
            )
        ),
        BenchFigure("FocusDPO steps / DPO steps: memory above", ratio, "", MEMORY_RATIO),
    ]


def memory_of(bench: StepBench, objective: str) -> StepMemory | None:
    """The memory of steps of one objective in this process."""
    from benchmarks.step_cost import step_memory

    return step_memory(*bench.parts(), objective)


_EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""glibc then gives back at once what is freed: growth is what is in use, the same every time. With
its own habits one objective's figure differs by several percent from run to run."""


def _alone(bench: StepBench, objective: str) -> StepMemory | None:
    before = {name: os.environ.get(name) for name in _EXACT}
    os.environ.update(_EXACT)  # a process reads them when it starts, so this one is not changed
    try:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
            return pool.submit(memory_of, bench, objective).result()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
