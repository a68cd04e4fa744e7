"""The stages of a build in processes of this machine, one a card (`num_processes`)."""

from __future__ import annotations

from collections.abc import Callable

from focusdpo.flows.build.builder import Builder
from focusdpo.flows.build.cluster.worker import Reply, StageWorker, Task
from focusdpo.flows.build.cluster.workers import WorkersExecutor, absolute
from focusdpo.flows.config import BuildRun
from focusdpo.flows.fit.supply import require_fit
from focusdpo.flows.processes.places import places_of
from focusdpo.flows.processes.team import Team


class ProcessExecutor(WorkersExecutor):
    """Hands the partitions of a build to processes, which keep their models from one to the next.

    Each takes the lease of what it is at, so that other builders of the root share the work, too.
    """

    def __init__(self, builder: Builder) -> None:
        """Starts nothing yet. UserError as `places_of`."""
        super().__init__(builder)
        run = builder.run
        self._places = places_of(run.num_processes, run.family)
        self._root = absolute(run.root)
        self._team: Team[Task] | None = None

    def workers(self, stage: str) -> Team[Task]:
        """The same for all stages; UserError where this machine has no room for so many."""
        if self._team is None:
            run = self.builder.run
            self.builder.parts.keep_only(())  # what read photographs here lies on the first card
            require_fit("build-dataset", run.family, processes=len(self._places))
            self._team = Team(list(self._places), stage_worker, (run, self._root))
        return self._team

    def close(self) -> None:
        team, self._team = self._team, None
        if team is not None:
            team.close()


def stage_worker(run: BuildRun, root: str) -> Callable[[Task], Reply]:
    """What computes in a process."""
    return StageWorker(run, root).compute
