"""A build by plain calls, planned and carried out in two steps."""

from __future__ import annotations

from focusdpo.data_schemas.runs import Watch, quiet
from focusdpo.flows.build.outcome import BuildResult
from focusdpo.flows.build.run import Build
from focusdpo.flows.config import BuildRun
from focusdpo.flows.runner import PlainSteps


def prepare(run: BuildRun) -> Build:
    """A planned build."""
    return Build(run)


def execute(build: Build, watch: Watch = quiet) -> BuildResult:
    """Its result, by plain calls."""
    return build.perform(PlainSteps(), watch)
