"""What the versions and the registry of a root refer to: the one walk that gc and purge share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from focusdpo.data_schemas.runs import Artefact
from focusdpo.pipeline.subjects import ingest, registry
from focusdpo.store.artefacts import Store
from focusdpo.store.manifests import lineage_columns, partitions_of
from focusdpo.store.versions import open_version

Named = tuple[str, str]
"""Stage and key of an artefact."""


@dataclass
class References:
    """By kind."""

    shards: set[str] = field(default_factory=set)
    artefacts: dict[str, set[str]] = field(default_factory=dict)
    """Stage -> keys."""
    pictures: set[tuple[str, str]] = field(default_factory=set)
    """(Subject, digest). Pairs name the artefact that they were made from, and another licence
    makes another artefact of the same pictures: all of these are referred to."""
    told: dict[Named, Artefact] = field(default_factory=dict)
    """Partition and files of each artefact, where lineages are walked `in_full`."""
    sets: dict[str, set[str]] = field(default_factory=dict)
    """Partition -> its subjects; `in_full`."""

    @property
    def subjects(self) -> set[str]:
        """All that are known by name."""
        return {name for name, _ in self.pictures}


def references(
    store: Store, manifests: Iterable[Mapping[str, Any]], *, in_full: bool = False
) -> References:
    """What these versions and the registry refer to. UserError for a damaged one."""
    referred = References()
    sources = referred.artefacts.setdefault(ingest.STAGE, set())
    for manifest in manifests:
        referred.shards |= {shard["name"] for shard in manifest["shards"]}
        for subject in manifest["subjects"]:
            referred.pictures.add((subject["id"], subject["digest"]))
            sources.add(subject["artefact"])
        _lineage(store, manifest["id"], referred, in_full)
        if in_full:
            for row in partitions_of(store, manifest["id"]):
                referred.sets[row.partition] = set(row.subject_ids)
            for pair in open_version(store, manifest["id"]).rows:
                referred.sets[pair.partition] = set(pair.subject_ids)
    state = registry.read_registry(store)
    for entry in () if state is None else state.entries.values():
        referred.pictures.add((entry.id, entry.digest))
        sources.add(entry.artefact)
    return referred


def _lineage(store: Store, version: str, referred: References, in_full: bool) -> None:
    """Hundreds of thousands of rows: no more columns than are asked for."""
    table = lineage_columns(store, version, ["stage", "key", *(MORE if in_full else ())])
    if table is None:
        return
    stages, keys = table["stage"].to_pylist(), table["key"].to_pylist()
    for stage, key in zip(stages, keys, strict=True):
        referred.artefacts.setdefault(stage, set()).add(key)
    if not in_full:
        return
    more = zip(*(table[name].to_pylist() for name in MORE), strict=True)
    for stage, key, (partition, files) in zip(stages, keys, more, strict=True):
        referred.told.setdefault((stage, key), bare_artefact(stage, key, partition, dict(files)))


MORE = ("partition", "files")


def bare_artefact(stage: str, key: str, partition: str, files: dict[str, str]) -> Artefact:
    """An artefact of which no more is known than whose it is."""
    return Artefact(
        stage=stage, key=key, partition=partition, inputs=(), count=0, seconds=0.0, files=files
    )
