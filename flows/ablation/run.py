"""ablate without an engine: dataset, base, search, choice, cells, comparison, report.

Each cell is done by a worker process and leaves a folder of its own; what is finished is skipped,
so the same command goes on after a stop. Which settings an objective gets, and which FocusDPO
variant is compared with the others, is decided on validation individuals before anything is seen
on the held-out ones.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.progress import Watch, quiet
from focusdpo.flows.ablation.cells import run_cell, start_worker
from focusdpo.flows.ablation.plan import Cell, Plan
from focusdpo.flows.ablation.search import choose, choose_reading
from focusdpo.flows.config import AblateRun
from focusdpo.flows.settings import save_config
from focusdpo.store.versions import open_version


class Pending(Protocol):
    """Something that will have a cell's result."""

    def result(self) -> dict[str, Any]:
        """Waits for it; raises what the cell raised."""
        ...


Submit = Callable[[Cell], Pending]
"""Starts a cell: a plain pool here, Prefect tasks in `flows/prefect/ablate.py`."""


@dataclass(frozen=True, kw_only=True)
class AblateOutcome:
    """What an ablation left."""

    out: str
    report: str
    cells: int
    made: int
    """Cells that were computed now."""
    wall_seconds: float
    verdict: list[str]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "command": "ablate",
            "out": self.out,
            "report": self.report,
            "cells": self.cells,
            "made": self.made,
            "wall_seconds": self.wall_seconds,
            "verdict": self.verdict,
        }


class Workers:
    """Processes that keep their models from cell to cell, one thread each; 0: one per core.

    They are started anew, not forked: OpenMP and torch do not survive a fork."""

    def __init__(self, count: int) -> None:
        self._count = count or available_cores()
        self._lock = threading.Lock()
        self._pool = self._start()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, cell: Cell) -> Pending:
        """Put a cell in the queue."""
        return self._pool.submit(run_cell, cell)

    def run(self, cell: Cell) -> dict[str, Any]:
        """A cell's result. A worker that was killed takes all of its pool with it: new ones are
        started, and RuntimeError says so, for whoever tries again."""
        pool = self._pool
        try:
            return pool.submit(run_cell, cell).result()
        except BrokenProcessPool as error:
            with self._lock:
                if self._pool is pool:
                    self._pool = self._start()
            raise RuntimeError(f"{cell.name}: a worker process was killed") from error

    def _start(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            max_workers=self._count,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=start_worker,
        )


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def dataset_is_there(run: AblateRun) -> bool:
    """Whether there is nothing to build. A dataset that was named is taken as it is; one of the
    ablation's own is built, or looked through for what is missing. UserError for checkpoints."""
    if run.suite != "pocket":
        raise UserError(
            f"suite '{run.suite}': ablate compares on rendered individuals; take preset pocket"
        )
    return run.root is not None


def ablate_plain(run: AblateRun, watch: Watch = quiet) -> AblateOutcome:
    """The whole ablation by plain calls. UserError when a worker dies: the same command goes on."""
    if not dataset_is_there(run):
        from focusdpo.flows.build.run import execute, prepare

        execute(prepare(run.build_run()), watch=watch)
    with Workers(run.ablation.workers) as workers:
        try:
            return ablate(run, workers.submit, watch)
        except BrokenProcessPool as error:
            raise UserError(
                f"{run.out}: a worker process was killed (out of memory?); what is finished is "
                "kept, the same command goes on; --set ablation.workers=1 needs least memory"
            ) from error


def ablate(run: AblateRun, submit: Submit, watch: Watch = quiet) -> AblateOutcome:
    """Everything after the dataset is there. UserError when a cell's training raises one, and when
    another run is at work in the same folder."""
    out = Path(run.out)
    out.mkdir(parents=True, exist_ok=True)
    try:
        # The lock goes with the process, however it ends.
        with FileLock(out / ".lock", timeout=0):
            return _ablate(run, out, submit, watch)
    except Timeout as error:
        raise UserError(
            f"{out}: another ablate is at work in this folder; wait for it, or choose another --out"
        ) from error


def _ablate(run: AblateRun, out: Path, submit: Submit, watch: Watch) -> AblateOutcome:
    from focusdpo.flows.ablation.result import compare
    from focusdpo.reports.ablation_page import write_ablation_report
    from focusdpo.reports.ablation_verdict import Lookup, find

    started = time.perf_counter()
    save_config(run, out / "config.yaml")
    version = open_version(run.dataset_root, run.version)
    plan = Plan(run, version.id)
    trials = plan.search()
    missing = [cell for cell in trials if cell.finished() is None]
    tried = run_all(trials, submit, watch, "search")
    choice = choose(tried)
    readings = plan.choices(choice.settings["focus_dpo"]) if "focus_dpo" in choice.settings else []
    missing += [cell for cell in readings if cell.finished() is None]
    read = run_all(readings, submit, watch, "other readings")
    if "focus_read" in run.ablation.objectives:
        choice = choose_reading(choice, read)
    cells = [plan.base(), *plan.final(choice.settings)]
    missing += [cell for cell in cells if cell.finished() is None]
    done = run_all(cells, submit, watch, "train and measure")
    seconds = round(time.perf_counter() - started, 1)
    watch("compare", 0, 1, {})
    result = compare(run, version, choice, done, read, wall_seconds=seconds)
    page = write_ablation_report(out, result)
    watch("compare", 1, 1, {})
    finding = find(Lookup(result))
    return AblateOutcome(
        out=run.out,
        report=str(page),
        cells=len(trials) + len(cells) + len(readings),
        made=len({cell.folder for cell in missing}),
        wall_seconds=seconds,
        verdict=[finding.headline, *finding.details],
    )


def run_all(
    cells: Sequence[Cell], submit: Submit, watch: Watch, phase: str
) -> list[tuple[Cell, dict[str, Any]]]:
    """Every cell with what it left, in their order; equal cells are done once. The first failure is
    raised when the cells that run have ended; none is lost."""
    futures: dict[Path, Pending] = {}
    found: list[dict[str, Any]] = []
    for cell in cells:
        if cell.folder not in futures and cell.finished() is None:
            futures[cell.folder] = submit(cell)
    for number, cell in enumerate(cells, 1):
        future = futures.get(cell.folder)
        about = cell.finished() if future is None else future.result()
        assert about is not None
        found.append(about)
        watch(phase, number, len(cells), {})
    return list(zip(cells, found, strict=True))
