"""The records behind a dataset version, by id, as far as the store still holds them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from focusdpo.data_schemas.candidates import Disrupted, Sampled, Scored
from focusdpo.data_schemas.pairs import Reject
from focusdpo.data_schemas.scenes import Scene

if TYPE_CHECKING:
    from focusdpo.pipeline.store import Store
    from focusdpo.pipeline.versions import DatasetVersion

R = TypeVar("R")


@dataclass(frozen=True)
class Records:
    """What the stages said of a version's partitions; artefacts that were removed are left out,
    so a version whose shards alone were copied still gives a report."""

    dataset: DatasetVersion

    @property
    def store(self) -> Store:
        return self.dataset.store

    @functools.cached_property
    def scenes(self) -> dict[str, Scene]:
        return {one.id: one for one in self._read("compose", Scene)}

    @functools.cached_property
    def sampled(self) -> dict[str, Sampled]:
        return {one.id: one for one in self._read("generate", Sampled)}

    @functools.cached_property
    def disrupted(self) -> dict[str, Disrupted]:
        return {one.id: one for one in self._read("disrupt", Disrupted)}

    @functools.cached_property
    def scored(self) -> list[Scored]:
        return self._read("score", Scored)

    @functools.cached_property
    def rejects(self) -> list[Reject]:
        return self._read("pair", Reject, table="rejects")

    def repainted(self, candidate_id: str) -> tuple[str, ...]:
        """Subjects that a disrupted candidate lost; none for a sampled one."""
        one = self.disrupted.get(candidate_id)
        return one.subject_ids if one else ()

    def _read(self, stage: str, record: type[R], table: str = "records") -> list[R]:
        return [
            one
            for key in self._keys.get(stage, ())
            if self.store.has(stage, key)
            for one in self.store.read(stage, key, record, table=table)
        ]

    @functools.cached_property
    def _keys(self) -> dict[str, list[str]]:
        from focusdpo.pipeline.versions import lineage_of

        keys: dict[str, list[str]] = {}
        for artefact in lineage_of(self.dataset):
            keys.setdefault(artefact.stage, []).append(artefact.key)
        return keys
