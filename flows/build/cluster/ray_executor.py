"""The stages of a build in workers of a Ray cluster.

Actors and not Ray tasks: Ray ends the process of a task that had a GPU, and its model with it
(`max_calls=1`). An actor loads the models of its stage once and keeps them.
"""

from __future__ import annotations

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.build.builder import Builder
from focusdpo.flows.build.cluster.connection import Engine
from focusdpo.flows.build.cluster.pool import Pool
from focusdpo.flows.build.cluster.worker import StageWorker, Task
from focusdpo.flows.build.cluster.workers import WorkersExecutor, absolute
from focusdpo.flows.build.config import RayConfig


class RayExecutor(WorkersExecutor):
    """Hands the partitions of a build to a cluster."""

    def __init__(self, builder: Builder) -> None:
        """Connects to nothing yet. UserError beside `num_processes`."""
        super().__init__(builder)
        config, processes = builder.run.executor, builder.run.num_processes
        if processes != 1:
            raise UserError(
                f"num_processes={processes} with executor.kind=ray: Ray says how many workers "
                "there are (executor.resources); leave one of the two out"
            )
        assert isinstance(config, RayConfig)
        self.config = config
        self.task_partitions = config.task_partitions
        self._engine: Engine | None = None
        self._pool: Pool[Task] | None = None

    def start(self, stage: str) -> int:
        """Wait until all workers that a stage may have are up; how many. For measurements."""
        return self.workers(stage).start()

    def close(self) -> None:
        """End the workers and leave the cluster."""
        pool, self._pool = self._pool, None
        engine, self._engine = self._engine, None
        if engine is not None:
            if pool is not None:
                pool.close()
            engine.close()

    def workers(self, stage: str) -> Pool[Task]:
        """The workers of a stage: those of the last one, when it asked for the same resources."""
        request = self.config.resources.of(stage)
        if self._engine is None:
            self._engine = Engine(self.config)
        if self._pool is not None and self._pool.request != request:
            self._pool.close()
            self._pool = None
        if self._pool is None:
            root = absolute(self.builder.run.root)
            given = (self.builder.run, root, self.config.imports)
            self._pool = Pool(self._engine, request, StageWorker, *given)
        return self._pool
