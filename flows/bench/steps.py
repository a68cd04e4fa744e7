"""The part of `focusdpo bench` about training: a FocusDPO step beside a plain DPO step."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from focusdpo.flows.bench.figure import BenchFigure
from focusdpo.flows.progress import working

if TYPE_CHECKING:
    from focusdpo.model.backbone import Backbone
    from focusdpo.model.batches import PairBatch
    from focusdpo.model.bench import StepMemory
    from focusdpo.model.configs import TrainConfig

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
        from focusdpo.model.batches import PairData
        from focusdpo.pipeline.versions import open_version

        wanted = {k: v for k, v in parse_overrides(self.overrides).items() if k == "train"}
        tree = merge({"preset": self.preset, "root": self.root, "out": "-"}, wanted)
        config = resolve(TrainRun, tree).train
        version = open_version(self.root)
        backbone = build_part("pocket", "backbone")
        data = PairData(backbone, version.shards("train"), only=version.ids("train"))
        # All pairs of a batch have equally many subjects; a small dataset's come more than once.
        group = max(data.groups(), key=len)
        return backbone, data.batch([group[i % len(group)] for i in range(PAIRS)]), config


def step_figures(
    root: Path, preset: str, overrides: Sequence[str], repeats: int
) -> list[BenchFigure]:
    """Time in this process, memory in one of its own for each objective."""
    from focusdpo.model.bench import step_cost

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
        BenchFigure("DPO steps: peak memory", dpo.peak_bytes / 2**30, "GiB"),
        BenchFigure("DPO steps: above the state before", dpo.growth_bytes / 2**30, "GiB"),
        BenchFigure("FocusDPO steps: peak memory", focus.peak_bytes / 2**30, "GiB"),
        BenchFigure("FocusDPO steps: above the state before", focus.growth_bytes / 2**30, "GiB"),
        BenchFigure("FocusDPO steps / DPO steps: memory above", ratio, "", MEMORY_RATIO),
    ]


def memory_of(bench: StepBench, objective: str) -> StepMemory | None:
    """The memory of steps of one objective in this process."""
    from focusdpo.model.bench import step_memory

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
