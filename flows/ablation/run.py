"""The job ablate: dataset, base, search, choice, cells, comparison, report.

Each cell is done by a worker process and leaves a folder of its own; what is finished is skipped,
so the same command goes on after a stop. Which settings an objective gets, and which FocusDPO
variant is compared with the others, is decided on validation individuals before anything is seen
on the held-out ones.
"""

from __future__ import annotations

import functools
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.runs import Watch, quiet
from focusdpo.flows.ablation.cells import Cell, Cells, run_cell, start_worker
from focusdpo.flows.ablation.search import choose, choose_reading
from focusdpo.flows.build.run import Build
from focusdpo.flows.config import AblateRun
from focusdpo.flows.jobs import Exhibit, Job, Page, Pending, Steps, Text
from focusdpo.flows.processes.slots import available_cores
from focusdpo.flows.settings import save_config
from focusdpo.pipeline.upkeep.garbage import reading
from focusdpo.store.versions import DatasetVersion, open_version


class WorkerKilled(RuntimeError):
    """A worker process was killed, and with it what its whole pool was at."""


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
        return {"command": "ablate", **asdict(self)}


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

    def run(self, cell: Cell) -> dict[str, Any]:
        """A cell's result, when it is done. A worker that was killed takes all of its pool with it:
        new ones are started, and WorkerKilled says so, for whoever tries again."""
        pool = self._pool
        try:
            return pool.submit(run_cell, cell).result()
        except BrokenProcessPool as error:
            with self._lock:
                if self._pool is pool:
                    self._pool = self._start()
            raise WorkerKilled(f"{cell.name}: a worker process was killed") from error

    def _start(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            max_workers=self._count,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=start_worker,
        )


class Ablate(Job[AblateRun, AblateOutcome]):
    """Every objective on every kind of pairs with several seeds; the report goes to `run.out`."""

    name = "ablate"
    config = AblateRun
    needs_gpu = False
    """Its cells are the pocket suite's and compute on cores."""

    def __init__(self, run: AblateRun, workers: Callable[[int], Workers] = Workers) -> None:
        super().__init__(run)
        self.workers = workers
        """Makes what computes the cells, of so many processes."""

    @property
    def folder(self) -> str:
        return self.run.out

    def require_inputs(self) -> None:
        if self.run.root is not None:
            open_version(self.run.root, self.run.version)

    def finished(self) -> bool:
        return False  # the cells say, once the dataset is there

    def title(self, result: AblateOutcome | None = None) -> str:
        ablation = self.run.ablation
        what = f"{', '.join(ablation.objectives)} with {ablation.seeds} seeds"
        cells = "" if result is None else f", {result.cells} cells"
        return f"{what}{cells}: {self.run.out}"

    def perform(self, steps: Steps, watch: Watch = quiet) -> AblateOutcome:
        """UserError when a cell's training raises one, when a worker dies again and again, when
        another run is at work in the same folder, and for checkpoints."""
        run = self.run
        if run.suite != "pocket":
            raise UserError(
                f"suite '{run.suite}': ablate compares on rendered individuals; take preset pocket"
            )
        # A dataset that was named is taken as it is; one of the ablation's own is built, or looked
        # through for what is missing.
        if run.root is None:
            steps.job(Build(run.build_run()), watch)
        out = Path(run.out)
        out.mkdir(parents=True, exist_ok=True)
        try:
            # The lock goes with the process, however it ends.
            with FileLock(out / ".lock", timeout=0), self.workers(run.ablation.workers) as workers:
                return _Comparison(run, workers, steps, watch).complete()
        except Timeout as error:
            raise UserError(
                f"{out}: another ablate is at work in this folder; wait for it, or choose another "
                "--out"
            ) from error
        except WorkerKilled as error:
            raise UserError(
                f"{run.out}: {error} (out of memory?); what is finished is kept, the same command "
                "goes on; --set ablation.workers=1 needs least memory"
            ) from error

    def changed(self, result: AblateOutcome) -> bool:
        return result.made > 0

    def exhibits(self, result: AblateOutcome) -> Iterator[Exhibit]:
        report = Path(result.report)
        yield Text("ablation", "who beats whom", report.with_suffix(".md").read_text("utf-8"))
        yield Page("ablation-report", report)


class _Comparison:
    """Everything after the dataset is there."""

    def __init__(self, run: AblateRun, workers: Workers, steps: Steps, watch: Watch) -> None:
        self.run, self.workers, self.steps, self.watch = run, workers, steps, watch
        self.missing: set[Path] = set()
        """Folders of cells that are computed now."""

    def complete(self) -> AblateOutcome:
        """Search, choose, train and measure, compare, report."""
        with reading(self.run.dataset_root, self.run.version, "an ablation") as version:
            return self._complete(version)

    def _complete(self, version: DatasetVersion) -> AblateOutcome:
        from focusdpo.flows.ablation.result import compare
        from focusdpo.reports.ablation_page import write_ablation_report
        from focusdpo.reports.ablation_verdict import Lookup, find

        started = time.perf_counter()
        run, out = self.run, Path(self.run.out)
        self._require_pairs(version)
        save_config(run, out / "config.yaml")
        cells = Cells(run, version.id)
        tried = self.run_all(cells.search(), "search")
        choice = choose(tried)
        readings: list[Cell] = []
        if "focus_dpo" in choice.settings:
            readings = cells.choices(choice.settings["focus_dpo"])
        read = self.run_all(readings, "other readings")
        if "focus_read" in run.ablation.objectives:
            choice = choose_reading(choice, read)
        final = [cells.base(), *cells.best_of(), *cells.final(choice.settings)]
        done = self.run_all(final, "train and measure")
        seconds = round(time.perf_counter() - started, 1)
        self.watch("compare", 0, 1, {})
        result = compare(run, version, choice, done, read, wall_seconds=seconds)
        page = write_ablation_report(out, result)
        self.watch("compare", 1, 1, {})
        finding = find(Lookup(result))
        return AblateOutcome(
            out=run.out,
            report=str(page),
            cells=len(tried) + len(final) + len(readings),
            made=len(self.missing),
            wall_seconds=seconds,
            verdict=[finding.headline, *finding.details],
        )

    def _require_pairs(self, version: DatasetVersion) -> None:
        """UserError where a condition asks for more pairs than there are, before the search."""
        from focusdpo.flows.train.run import some

        samples = version.samples("train")
        for condition in self.run.ablation.conditions:
            if condition.pairs:
                some(samples, condition.source, condition.pairs)

    def run_all(self, cells: Sequence[Cell], phase: str) -> list[tuple[Cell, dict[str, Any]]]:
        """Every cell with what it left, in their order; equal cells are done once. The first
        failure is raised when the cells that run have ended; none is lost."""
        started: dict[Path, Pending[dict[str, Any]]] = {}
        records: list[dict[str, Any]] = []
        for cell in cells:
            if cell.folder not in started and cell.finished() is None:
                work = functools.partial(self.workers.run, cell)
                started[cell.folder] = self.steps.start("ablation-cell", cell.name, work)
        self.missing |= started.keys()
        if started:
            self.watch(phase, 0, len(cells), {})
        for number, cell in enumerate(cells, 1):
            pending = started.get(cell.folder)
            record = cell.finished() if pending is None else pending.result()
            assert record is not None
            records.append(record)
            self.watch(phase, number, len(cells), {})
        return list(zip(cells, records, strict=True))
