"""Run a job by plain calls, or as a flow of Prefect. Importing this module imports no Prefect."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from focusdpo.data_schemas.runs import Watch
from focusdpo.flows.jobs import Job, Pending, ResultT, Steps
from focusdpo.flows.prefect.server import has_prefect, prepare
from focusdpo.model.training.parallel import num_launched


class PlainSteps(Steps):
    """Plain calls."""

    THREADS = 64
    """Steps beside each other at most; each only waits for a process that computes."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(self.THREADS, "step")

    def step(self, kind: str, title: str, work: Callable[[], ResultT]) -> ResultT:
        return work()

    def start(self, kind: str, title: str, work: Callable[[], ResultT]) -> Pending[ResultT]:
        return self._threads.submit(work)

    def job(self, job: Job[Any, ResultT], watch: Watch) -> ResultT:
        return job.perform(self, watch)


def carry_out(job: Job[Any, ResultT], watch: Watch, *, prefect: bool | None = None) -> ResultT:
    """Run a job. `prefect` None: as a flow where the environment names a server.

    By plain calls in any case where nothing is left to do, and where a launcher has started several
    processes: they must all do the same, and their launcher starts them anew.
    """
    job.require_inputs()
    wanted = has_prefect() if prefect is None else prefect
    if wanted and num_launched() == 1 and not job.finished():
        job.load_ahead()
        prepare(job.folder)
        from focusdpo.flows.prefect.flows import run_as_flow

        return run_as_flow(job, watch)
    return job.perform(PlainSteps(), watch)
