"""Dataset versions: which pairs in which shards, how they came about, and the pointer LATEST.

versions/<id>/index.parquet       one IndexRow per pair
versions/<id>/lineage.parquet     one Artefact per result that the version rests on
versions/<id>/partitions.parquet  one PartitionRow per set of subjects
versions/<id>/reviewed.parquet    one ReviewedPair per pair that reviews left out or exchanged
versions/<id>/config.yaml         the settings of the build that made it
versions/<id>/manifest.json       for people; written last of these, so a version with one is whole
versions/<id>/twin.tar            all of the above once more (twins.py)
versions/<id>/requests/<digest>   a build that asked for this has this version
LATEST                            id of the newest version

A version never changes, but for a purge (retention.py), which its manifest then tells.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import logging
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.pairs import ReviewedPair
from focusdpo.data_schemas.runs import SCHEMA_VERSION, Artefact
from focusdpo.data_schemas.shards import IndexRow, ShardSample, Split
from focusdpo.data_schemas.subjects import Subject
from focusdpo.data_schemas.tables import to_parquet
from focusdpo.store.artefacts import Store
from focusdpo.store.cache import RemoteShard, default_cache
from focusdpo.store.keys import digest
from focusdpo.store.manifests import (
    INDEX,
    LATEST,
    LINEAGE,
    MANIFEST,
    PARTITIONS,
    REVIEWED,
    PartitionRow,
    digests,
    ensure_twin,
    full_id,
    latest_id,
    lineage_table,
    manifest_bytes,
    named_by,
    read_manifest,
    rows_of,
    stage_summary,
    table_bytes,
)
from focusdpo.store.samples import FOLDER, Copies, Sample, damaged_shard

CONFIG = "config.yaml"
PACKAGES = ("focusdpo", "torch", "diffusers", "transformers", "numpy", "pillow", "pyarrow")

log = logging.getLogger(__name__)


class Superseded(RuntimeError):
    """Another version was published meanwhile: to be published again, as that one's child."""


@dataclass(frozen=True, slots=True, eq=False)
class DatasetVersion:
    """A published version: immutable, and readable for as long as its shards are there."""

    store: Store
    id: str
    manifest: Mapping[str, Any]
    rows: Sequence[IndexRow]
    """By pair id."""
    new: bool = False
    """This call made it the newest."""

    def rows_of(self, split: Split | None = None) -> list[IndexRow]:
        """Rows of a split, or all."""
        return [row for row in self.rows if split in (None, row.split)]

    def shards(self, split: Split | None = None) -> list[Path | str]:
        """The tars of a split, sorted; paths on a local disk, URLs elsewhere. They may hold samples
        that no row names."""
        names = sorted({row.shard for row in self.rows_of(split)})
        if (local := self.store.files.local) is not None:
            return [local / FOLDER / name for name in names]
        return [self.store.files.address(f"{FOLDER}/{name}") for name in names]

    def samples(self, split: Split | None = None) -> list[Sample]:
        """The pairs of a split in the order in which they lie in their shards; those of a remote
        store come through the cache that the environment names."""
        copies = None
        if self.store.files.local is None:
            files = self.store.files
            copies = Copies(
                default_cache(),
                {
                    shard["name"]: RemoteShard(
                        files, f"{FOLDER}/{shard['name']}", shard["bytes"], shard["blake2b"]
                    )
                    for shard in self.manifest["shards"]
                },
            )
        rows = sorted(self.rows_of(split), key=lambda row: (row.shard, row.offset))
        return [Sample(row, self.store, copies) for row in rows]

    def ids(self, split: Split | None = None) -> frozenset[str]:
        """Ids of the pairs that count."""
        return frozenset(row.pair_id for row in self.rows_of(split))

    def read(self, row: IndexRow) -> ShardSample:
        """One sample, its bytes checked."""
        return Sample(row, self.store).read()

    def subjects(self) -> list[Subject]:
        """The subjects it was made from, from the store."""
        return [
            self.store.read("subjects", subject["artefact"], Subject)[0]
            for subject in self.manifest["subjects"]
        ]

    def verify(self) -> None:
        """Check every byte of every shard; UserError names the first damaged one."""
        for shard in self.manifest["shards"]:
            verify_shard(self.store, shard)


def latest_rows(store: Store) -> list[IndexRow]:
    """Rows of the newest version; empty before the first."""
    name = latest_id(store)
    return [] if name is None else list(open_version(store, name).rows)


def open_version(root: str | Path | Store, id: str = "latest") -> DatasetVersion:
    """A version of a dataset; UserError when there is none of that name or it is damaged."""
    store = root if isinstance(root, Store) else Store.open(root, create=False)
    name = latest_id(store) if id == "latest" else full_id(store, id)
    if name is None:
        raise UserError(f"{store.root}: no dataset version yet; run `focusdpo build-dataset`")
    folder = f"versions/{name}"
    manifest = read_manifest(store, name)
    rows = rows_of(store, name, INDEX, IndexRow)
    if rows is None:
        raise UserError(
            f"{store.root}/{folder}: its {INDEX} is missing; remove the folder and build again"
        )
    return DatasetVersion(store, name, manifest, rows)


def publish(
    store: Store,
    rows: Sequence[IndexRow],
    *,
    subjects: Sequence[Subject],
    artefacts: Iterable[tuple[str, str]],
    config: Mapping[str, Any],
    rejects: Mapping[str, int],
    seeds: Mapping[str, int] | None = None,
    partitions: Sequence[PartitionRow] = (),
    reviewed: Sequence[ReviewedPair] = (),
) -> DatasetVersion:
    """Make the rows a version and LATEST point at it.

    The id is a hash of rows, subjects and artefact keys: with nothing changed the version that is
    there is returned and nothing is written. `artefacts` are (stage, key). `Superseded` when
    another builder published meanwhile.
    """
    lineage = sorted(set(artefacts))
    name = _version_id(rows, subjects, lineage)
    while _is_purged(store, name):  # something else by now: what it was comes under another name
        name = digest(f"{name} again".encode())[:16]
    latest = store.files.tagged(LATEST)
    parent = None if latest is None else named_by(store, latest[0])
    folder = f"versions/{name}"
    if not store.files.exists(f"{folder}/{MANIFEST}"):
        known = lineage_table(store, lineage, parent)
        files = {
            INDEX: to_parquet(rows, IndexRow),
            LINEAGE: table_bytes(known),
            CONFIG: yaml.safe_dump(dict(config), sort_keys=False).encode(),
        }
        if partitions:
            ordered = sorted(partitions, key=lambda row: row.partition)
            files[PARTITIONS] = to_parquet(ordered, PartitionRow)
        if reviewed:
            by_pair = sorted(reviewed, key=lambda pair: pair.pair_id)
            files[REVIEWED] = to_parquet(by_pair, ReviewedPair)
        manifest = {
            "id": name,
            "parent": parent,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
            "schema_version": SCHEMA_VERSION,
            "packages": _packages(),
            "pairs": pair_counts(rows),
            "rejects": dict(sorted(rejects.items())),
            "partitions": len(partitions),
            "reviews": dict(sorted(Counter(pair.verdict for pair in reviewed).items())),
            "stages": stage_summary(known),
            "subjects": [
                _subject_entry(subject) for subject in sorted(subjects, key=lambda s: s.id)
            ],
            "seeds": dict(seeds or {}),
            "shards": _shard_entries(store, rows, parent),
            "digests": digests(files),
            "config": dict(config),
        }
        for file, data in files.items():
            store.files.write(f"{folder}/{file}", data)
        store.files.write(f"{folder}/{MANIFEST}", manifest_bytes(manifest), replace=False)
    ensure_twin(store, name)
    if parent != name:
        tag = None if latest is None else latest[1]
        if store.files.swap(LATEST, f"{name}\n".encode(), tag) is None:
            raise Superseded(f"{store.root}: another builder published after version {parent}")
        log.info("%s: version %s, %d pairs", store.root, name, len(rows))
    version = open_version(store, name)
    return DatasetVersion(store, name, version.manifest, version.rows, new=parent != name)


def lineage_of(version: DatasetVersion) -> list[Artefact]:
    """The artefacts that a version rests on."""
    return rows_of(version.store, version.id, LINEAGE, Artefact) or []


def _version_id(
    rows: Sequence[IndexRow], subjects: Sequence[Subject], lineage: Sequence[tuple[str, str]]
) -> str:
    where = [(row.pair_id, row.digest, row.shard, row.offset, row.checksum) for row in rows]
    who = sorted((subject.id, subject.digest, subject.licence) for subject in subjects)
    return digest(json.dumps([where, who, lineage]).encode())[:16]


def _is_purged(store: Store, name: str) -> bool:
    if not store.files.exists(f"versions/{name}/{MANIFEST}"):
        return False
    notes = read_manifest(store, name).get("purged", [])
    return any(count for note in notes for count in note["lost"].values())


def verify_shard(store: Store, shard: Mapping[str, Any]) -> None:
    """UserError when a shard is not what a manifest says of it."""
    try:
        data = store.files.read(f"{FOLDER}/{shard['name']}")
    except FileNotFoundError as error:
        raise damaged_shard(store, shard["name"], "the file is missing") from error
    if len(data) != shard["bytes"]:
        what = f"{len(data)} bytes instead of {shard['bytes']}"
        raise damaged_shard(store, shard["name"], what)
    if digest(data) != shard["blake2b"]:
        raise damaged_shard(store, shard["name"], "its bytes are not those that were written")


def _packages() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def pair_counts(rows: Sequence[IndexRow]) -> dict[str, Any]:
    """How many pairs, in all and by what one may want to know them by."""
    return {
        "total": len(rows),
        "by_split": dict(sorted(Counter(row.split for row in rows).items())),
        "by_source": dict(sorted(Counter(row.source for row in rows).items())),
        "by_mode": dict(sorted(Counter(row.mode for row in rows).items())),
        "by_subjects": dict(sorted(Counter(str(row.num_subjects) for row in rows).items())),
    }


def _subject_entry(subject: Subject) -> dict[str, Any]:
    return {
        "id": subject.id,
        "class_name": subject.class_name,
        "references": len(subject.references),
        "licence": subject.licence,
        "digest": subject.digest,
        "artefact": subject.references[0].image.split("/")[1],
    }


def _shard_entries(
    store: Store, rows: Sequence[IndexRow], parent: str | None
) -> list[dict[str, Any]]:
    """What lies in each shard; only those that the parent does not have are read."""
    known = {} if parent is None else _known_shards(store, parent)
    entries = []
    for name, count in sorted(Counter(row.shard for row in rows).items()):
        if name in known:
            entries.append({**known[name], "pairs": count, "new": False})
            continue
        data = store.files.read(f"{FOLDER}/{name}")
        whole = {"name": name, "bytes": len(data), "blake2b": digest(data)}
        entries.append({**whole, "pairs": count, "new": True})
    return entries


def _known_shards(store: Store, version: str) -> dict[str, Mapping[str, Any]]:
    return {shard["name"]: shard for shard in open_version(store, version).manifest["shards"]}
