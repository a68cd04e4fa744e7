"""What `focusdpo bench` measures. Each command runs in a process of its own, as a user's would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.bench.figure import BenchFigure
from focusdpo.flows.progress import working

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
    from focusdpo.flows.bench.steps import step_figures

    root = out / "dataset"
    if root.exists():
        raise UserError(f"{root}: is there already; bench measures a first build, give a new --out")
    common = ["--root", str(root), "--preset", preset, *_sets(overrides)]
    common += [] if prefect else ["--no-prefect"]
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


def _sets(overrides: Sequence[str]) -> list[str]:
    return [word for item in overrides for word in ("--set", item)]
