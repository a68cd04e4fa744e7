"""Processes of this machine that paint an evaluation's scenes, one a card (`num_processes`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.evaluation.run import Batch, Painting
from focusdpo.flows.config import EvaluateRun
from focusdpo.flows.fit.supply import require_fit
from focusdpo.flows.models_config import Family
from focusdpo.flows.processes.slots import slots_of
from focusdpo.flows.processes.worker_pool import WorkerPool
from focusdpo.flows.wiring import suite
from focusdpo.pipeline.parts import Generator


@dataclass(frozen=True, eq=False)
class Task:
    """A batch, and the adapter (a folder) that it is painted with."""

    batch: Batch
    adapter: str | None

    def each(self) -> list[Task]:
        """Itself: parts of a batch may be other pictures."""
        return [self]


class Painters:
    """Processes that keep the generator from one batch to the next."""

    def __init__(self, run: EvaluateRun) -> None:
        """Starts nothing yet. UserError as `slots_of`, and where this machine has no room."""
        slots = slots_of(run.num_processes, run.family)
        require_fit("evaluate", run.family, processes=len(slots))
        self._pool: WorkerPool[Task] = WorkerPool(slots, painter, (run.family,))

    def __enter__(self) -> Painters:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    def painting(self, adapter: str | None) -> Painting:
        """Painting with an adapter, or with the base alone."""

        def painting(batches: Sequence[Batch]) -> Iterator[Batch]:
            for result in self._pool.results([Task(batch, adapter) for batch in batches]):
                batch = result.item.work.batch
                if result.lost:
                    raise UserError(
                        f"{batch.files[0]}: {result.lost}; what is painted is kept, and the same "
                        "command goes on from there"
                    )
                yield batch

        return painting


def painter(family: Family) -> Callable[[Task], None]:
    """What paints in a process."""
    loaded: dict[str | None, Generator] = {}

    def compute(task: Task) -> None:
        if task.adapter not in loaded:
            loaded.clear()
            made: Any = suite(family).build("generator", adapter=task.adapter)
            loaded[task.adapter] = made
        task.batch.paint(loaded[task.adapter])

    return compute
