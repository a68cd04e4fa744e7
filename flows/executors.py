"""Which builder a run's executor asks for."""

from __future__ import annotations

from collections.abc import Sequence

from focusdpo.data_schemas.subjects import Subject
from focusdpo.flows.builder import Builder
from focusdpo.flows.config import BuildRun
from focusdpo.flows.wiring import Parts
from focusdpo.pipeline.store import Store


def new_builder(
    run: BuildRun,
    store: Store,
    subjects: Sequence[Subject],
    backgrounds: Sequence[str],
    parts: Parts,
) -> Builder:
    """The builder of a run; connects to nothing yet."""
    if run.executor.kind == "local":
        return Builder(run, store, subjects, backgrounds, parts)
    from focusdpo.flows.cluster.executor import RayBuilder

    return RayBuilder(run, store, subjects, backgrounds, parts)
