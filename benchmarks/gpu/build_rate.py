"""`--gpu --build`: how many pictures an hour each stage of a build goes through on this device.

A build as `build-dataset` makes it, of the first scenes alone, into a new root: the same stages,
models and settings, timed by stage. Loading checkpoints is told apart, for it does not grow with
the number of scenes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.runs import quiet
from focusdpo.flows.build.builder import Builder
from focusdpo.flows.build.run import Build
from focusdpo.flows.build.stages import STAGES
from focusdpo.flows.checkpoint_suite import device_of
from focusdpo.flows.config import BuildRun
from focusdpo.flows.jobs import ResultT
from focusdpo.flows.runner import PlainSteps
from focusdpo.store.provenance import machine, packages

GIB = 2**30


@dataclass(frozen=True)
class StageRate:
    """What a stage took."""

    stage: str
    pictures: int
    """That it painted or looked at."""
    seconds: float
    """Of the clock, without loading its models."""
    loading: float
    peak_bytes: int | None
    """Most memory in tensors at once, with what stays of earlier stages; None on a CPU."""

    @property
    def per_hour(self) -> float:
        """Pictures an hour."""
        return self.pictures / self.seconds * 3600 if self.seconds else 0.0


@dataclass(frozen=True)
class BuildRate:
    """A build's stages on a device."""

    facts: dict[str, Any]
    """The device, and versions."""
    preset: str
    scenes: int
    pairs: int
    stages: tuple[StageRate, ...]

    @property
    def seconds(self) -> float:
        """Of all stages, without loading."""
        return sum(stage.seconds for stage in self.stages)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = [{**asdict(stage), "per_hour": stage.per_hour} for stage in self.stages]
        return {**asdict(self), "seconds": self.seconds, "stages": rows}

    def markdown(self) -> str:
        """The page that can be committed."""
        facts = ", ".join(f"{key} {value}" for key, value in self.facts.items() if key != "device")
        hours = self.seconds / 3600
        sums = (
            f"{self.scenes} scenes, {self.pairs} pairs in {self.seconds:.1f} s and "
            f"{sum(stage.loading for stage in self.stages):.1f} s of loading: "
            f"{self.scenes / hours:.1f} scenes and {self.pairs / hours:.1f} pairs an hour."
        )
        lines = [
            f"# {self.facts['device']}: a build with preset {self.preset}",
            f"{facts}.",
            sums,
            "\n".join(
                f"| {' | '.join(cells)} |"
                for cells in (
                    COLUMNS,
                    ("---",) * len(COLUMNS),
                    *(self.cells(stage) for stage in self.stages),
                )
            ),
        ]
        return "\n\n".join(lines) + "\n"

    def cells(self, rate: StageRate) -> tuple[str, ...]:
        """A row of the table, as COLUMNS."""
        return (
            str(self.facts["device"]),
            rate.stage,
            str(rate.pictures),
            f"{rate.per_hour:,.0f}",
            f"{rate.seconds:.2f}",
            f"{rate.seconds / self.seconds:.1%}" if self.seconds else "-",
            f"{rate.loading:.1f}",
            "not measured" if rate.peak_bytes is None else f"{rate.peak_bytes / GIB:.2f}",
        )


COLUMNS = (
    "device",
    "stage",
    "pictures",
    "pictures/hour",
    "seconds",
    "of all",
    "loading (s)",
    "peak (GiB)",
)


@dataclass
class _Timed(PlainSteps):
    """Plain calls, timed by stage."""

    loaded: Callable[[], float]
    """Seconds of loading so far."""
    device: str
    seconds: dict[str, float] = field(default_factory=dict)
    loading: dict[str, float] = field(default_factory=dict)
    peak: dict[str, int | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def step(self, kind: str, title: str, work: Callable[[], ResultT]) -> ResultT:
        from benchmarks.gpu.device import free, peaks, synchronised

        stage = title.split()[0]
        free(self.device, reset_peak=True)
        began, before = time.perf_counter(), self.loaded()
        made = work()
        synchronised(lambda: None, self.device)
        took, loading = time.perf_counter() - began, self.loaded() - before
        self.seconds[stage] = self.seconds.get(stage, 0.0) + took - loading
        self.loading[stage] = self.loading.get(stage, 0.0) + loading
        most, _ = peaks(self.device)
        self.peak[stage] = None if most is None else max(most, self.peak.get(stage) or 0)
        return made


def build_rate(run: BuildRun, scenes: int, preset: str) -> BuildRate:
    """Builds the first `scenes` scenes' partitions in `run.root`, new or empty.

    UserError for the embedded suite, a device that is not there, a root with results, a failed
    partition, and subjects that give no scene."""
    if isinstance(run.family, str):
        raise UserError(
            "--build measures models of photographs: give --preset flux-uno or another of "
            "checkpoints, and --set subjects=FOLDER"
        )
    if run.executor.kind == "ray":
        raise UserError("--build measures one device: leave executor.kind at local")
    device = _device(run.family.device)
    build = Build(run)
    builder = build.builder
    builder.keep_first(scenes)
    if any(total != absent for total, absent in builder.plan.counts().values()):
        raise UserError(f"{run.root}: has results already; --build measures anew, give a new --out")
    steps = _Timed(lambda: builder.parts.meter.load_seconds, device)
    outcomes = build.compute(steps, quiet)
    if bad := [outcome for outcome in outcomes if outcome.status != "made"]:
        raise UserError(f"--build: {bad[0].stage} {bad[0].partition} {bad[0].message}")
    counts = {stage: _records(builder, stage) for stage in STAGES}
    rates = tuple(
        StageRate(
            stage,
            _pictures(stage, counts),
            steps.seconds[stage],
            steps.loading[stage],
            steps.peak[stage],
        )
        for stage in STAGES
        if stage != "compose"
    )
    return BuildRate(_facts(device), preset, counts["compose"], counts["pair"], rates)


def _device(asked: str) -> str:
    """Where the models compute. UserError without a GPU, unless the CPU is asked for."""
    from benchmarks.gpu.device import require_device

    device = device_of(asked)
    require_device("cuda" if device == "cpu" and asked != "cpu" else device)
    return device


def _facts(device: str) -> dict[str, Any]:
    from benchmarks.gpu.device import device_facts

    return {**machine(), **packages(), **device_facts(device)}


def _records(builder: Builder, stage: str) -> int:
    """Of all partitions."""
    record = STAGES[stage].record
    return sum(
        len(builder.store.read(stage, builder.plan.key(stage, name), record))
        for name in builder.partitions
    )


def _pictures(stage: str, counts: dict[str, int]) -> int:
    """Painted anew by `generate` and `disrupt`; looked at by the others."""
    painted, repainted = counts["generate"], counts["disrupt"]
    if stage == "disrupt":
        return repainted
    return painted + repainted if stage in ("score", "pair") else painted


def measure_build(
    out: Path, run: BuildRun, scenes: int, preset: str, report: Callable[[str], None]
) -> BuildRate:
    """Measures and writes `gpu_build.json` and `gpu_build.md` into `out`."""
    from focusdpo.store.local import write_whole

    rate = build_rate(run, scenes, preset)
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rate.as_dict(), indent=1, sort_keys=True, allow_nan=False)
    write_whole(out / "gpu_build.json", (text + "\n").encode())
    write_whole(out / "gpu_build.md", rate.markdown().encode())
    for line in _lines([COLUMNS, *(rate.cells(stage) for stage in rate.stages)]):
        report(line)
    return rate


def _lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Cells under one another, for a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
