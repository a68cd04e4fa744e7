"""The stages of a build in processes of this machine, one a card (`num_processes`)."""

from __future__ import annotations

from collections.abc import Callable

from focusdpo.flows.build.builder import Builder
from focusdpo.flows.build.cluster.worker import Reply, StageWorker, Task
from focusdpo.flows.build.cluster.workers import WorkersExecutor, absolute
from focusdpo.flows.config import BuildRun
from focusdpo.flows.fit.supply import require_fit
from focusdpo.flows.processes.slots import slots_of
from focusdpo.flows.processes.worker_pool import WorkerPool


class ProcessExecutor(WorkersExecutor):
    """Hands the partitions of a build to processes, which keep their models from one to the next.

    Each takes the lease of what it is at, so that other builders of the root share the work, too.
    """

    def __init__(self, builder: Builder) -> None:
        """Starts nothing yet. UserError as `slots_of`."""
        super().__init__(builder)
        run = builder.run
        self._slots = slots_of(run.num_processes, run.family)
        self._root = absolute(run.root)
        self._pool: WorkerPool[Task] | None = None

    def workers(self, stage: str) -> WorkerPool[Task]:
        """The same for all stages; UserError where this machine has no room for so many."""
        if self._pool is None:
            run = self.builder.run
            self.builder.parts.keep_only(())  # what read photographs here lies on the first card
            require_fit("build-dataset", run.family, processes=len(self._slots))
            self._pool = WorkerPool(list(self._slots), stage_worker, (run, self._root))
        return self._pool

    def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()


def stage_worker(run: BuildRun, root: str) -> Callable[[Task], Reply]:
    """What computes in a process."""
    return StageWorker(run, root).compute
