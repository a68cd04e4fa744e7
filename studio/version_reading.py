"""A dataset version as the pages read it: columns at once, records of a partition when asked for.

Nothing here reads all artefacts: a version of 100 000 pairs rests on hundreds of thousands.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from focusdpo.data_schemas.candidates import Disrupted, Instance, Sampled, Scored, Screened
from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.images import decode_png
from focusdpo.data_schemas.pairs import Pair, Reject
from focusdpo.data_schemas.runs import Artefact
from focusdpo.data_schemas.scenes import Scene
from focusdpo.data_schemas.shards import IndexRow, ShardSample
from focusdpo.data_schemas.tables import arrow_table, to_parquet
from focusdpo.pipeline.audit import SWAPPED, is_swapped, original_id, swapped
from focusdpo.pipeline.score import SCREENED
from focusdpo.pipeline.subjects.near_duplicates import (
    DuplicateConfig,
    near_apart,
    remembered,
)
from focusdpo.store.artefacts import Store
from focusdpo.store.manifests import (
    PARTITIONS,
    PartitionRow,
    lineage_columns,
    read_manifest,
    reviewed_of,
)
from focusdpo.store.samples import FOLDER, Sample, read_fields
from focusdpo.store.versions import DatasetVersion
from focusdpo.studio.columns import LazyRows, ListCodes, PairColumns, numbers

R = TypeVar("R")

KEPT_SAMPLES, KEPT_PARTITIONS = 4, 64
"""A sample of 1024-pixel pictures takes 30 MB."""


@dataclass(frozen=True)
class PartitionRecords:
    """What the stages said of one partition, as far as the store still holds it. A table is read
    when it is first asked for."""

    store: Store
    name: str
    keys: Mapping[str, str]
    """Stage -> artefact key."""

    @functools.cached_property
    def scenes(self) -> tuple[Scene, ...]:
        return self._read("compose", Scene)

    @functools.cached_property
    def sampled(self) -> tuple[Sampled, ...]:
        return self._read("generate", Sampled)

    @functools.cached_property
    def instances(self) -> tuple[Instance, ...]:
        return self._read("segment", Instance)

    @functools.cached_property
    def disrupted(self) -> tuple[Disrupted, ...]:
        return self._read("disrupt", Disrupted)

    @functools.cached_property
    def scored(self) -> Mapping[str, Scored]:
        """By candidate."""
        return {score.candidate_id: score for score in self._read("score", Scored)}

    @functools.cached_property
    def screened(self) -> Mapping[str, Screened]:
        """What a filter of unsafe pictures said, by candidate; nothing where a build had none."""
        key = self.keys.get("score")
        if key is None or not self.store.has("score", key):
            return {}
        if f"{SCREENED}.parquet" not in self.store.artefact("score", key).files:
            return {}
        return {
            screened.candidate_id: screened for screened in self._read("score", Screened, SCREENED)
        }

    @functools.cached_property
    def pairs(self) -> tuple[Pair, ...]:
        return self._read("pair", Pair)

    @functools.cached_property
    def rejects(self) -> tuple[Reject, ...]:
        return self._read("pair", Reject, "rejects")

    def _read(self, stage: str, record: type[R], table: str = "records") -> tuple[R, ...]:
        key = self.keys.get(stage)
        if key is None or not self.store.has(stage, key):
            return ()
        return tuple(self.store.read(stage, key, record, table))


class Dataset:
    """A published version. Safe for threads; immutable as the version is."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.id = store, name
        self.manifest = read_manifest(store, name)
        path = f"versions/{name}/index.parquet"
        try:
            data = store.files.read(path)
        except FileNotFoundError as error:
            raise UserError(
                f"{store.root}/{path}: missing; remove the folder and build again"
            ) from error
        self.pairs = PairColumns.of(data, f"{store.root}/{path}")
        self.records = functools.lru_cache(maxsize=KEPT_PARTITIONS)(self._records)
        self.sample = functools.lru_cache(maxsize=KEPT_SAMPLES)(self._sample)

    def version(self) -> DatasetVersion:
        """The same for functions of other packages; its rows are made when asked for."""
        return DatasetVersion(self.store, self.id, self.manifest, LazyRows(self.pairs))

    @functools.cached_property
    def subjects(self) -> Mapping[str, Mapping[str, Any]]:
        """The manifest's entries by id."""
        return {subject["id"]: subject for subject in self.manifest.get("subjects") or ()}

    @functools.cached_property
    def pairs_by_subject(self) -> Mapping[str, int]:
        return self.pairs.subjects.counts

    @functools.cached_property
    def lineage(self) -> Any:
        """stage, key and partition of every artefact, by partition; None without lineage."""
        table = lineage_columns(self.store, self.id, ["stage", "key", "partition"])
        return None if table is None else table.sort_by("partition")

    def keys_of(self, partition: str) -> dict[str, str]:
        """Stage -> key of a partition's artefacts."""
        import pyarrow.compute as pc

        if self.lineage is None:
            return {}
        rows = self.lineage.filter(pc.equal(self.lineage["partition"], partition))
        return dict(zip(rows["stage"].to_pylist(), rows["key"].to_pylist(), strict=True))

    @functools.cached_property
    def partitions(self) -> Partitions:
        """All partitions with their yields."""
        return Partitions.of(self)

    def row(self, pair_id: str) -> IndexRow | None:
        at = self.pairs.find(pair_id)
        return None if at is None else self.pairs.row(at)

    def artefacts(self, partition: str) -> list[Artefact]:
        """What is known of a partition's artefacts that are still there."""
        keys = self.keys_of(partition).items()
        return [self.store.artefact(*artefact) for artefact in keys if self.store.has(*artefact)]

    def pair(self, row: IndexRow) -> Pair | None:
        """A pair's record as it stands in this version; None where its artefact is gone."""
        for pair in self.records(row.partition).pairs:
            if pair.id == original_id(row.pair_id):
                return swapped(pair) if is_swapped(row.pair_id) else pair
        return None

    @functools.cached_property
    def duplicates(self) -> DuplicateConfig:
        """When two pictures counted as one in its build."""
        try:
            return DuplicateConfig.model_validate(self.manifest["config"].get("duplicates", {}))
        except (ValidationError, KeyError):
            return DuplicateConfig()  # made by another version, whose settings had other names

    @functools.cached_property
    def winner_hashes(self) -> dict[int, int]:
        """Place of a pair -> perceptual hash of its winner, for those that the last build left."""
        known = remembered(self.store.files)
        digests = self.pairs.table["digest"].to_pylist()
        return {at: known[digest] for at, digest in enumerate(digests) if digest in known}

    @functools.cached_property
    def winners_alike(self) -> list[tuple[int, int]]:
        """Places of pairs of two scenes whose winners are nearly one."""
        places = list(self.winner_hashes)
        scenes = self.pairs.table["scene_id"].to_pylist()
        alike = near_apart(
            list(self.winner_hashes.values()), [scenes[at] for at in places], self.duplicates.bits
        )
        return [(places[i], places[j]) for i, j in alike]

    def left_out(self) -> list[Pair]:
        """Pairs that the stages made, that reviews left in, and that the version has not: those
        kept out of validation. From partitions that have fewer pairs than they brought."""
        there = Counter(self.pairs.table["partition"].to_pylist())
        ruled = {
            reviewed.pair_id
            for reviewed in reviewed_of(self.store, self.id)
            if reviewed.verdict != "swapped"
        }
        short = [
            name
            for name, count in zip(self.partitions.names, self.partitions.pairs, strict=True)
            if there[name] < count
        ]
        return [
            pair
            for name in short
            for pair in self.records(name).pairs
            if pair.id not in ruled
            and self.pairs.find(pair.id) is None
            and self.pairs.find(f"{pair.id}{SWAPPED}") is None
        ]

    def _sample(self, pair_id: str) -> ShardSample:
        """A pair's pictures, from its shard. KeyError for none of this version."""
        row = self.row(pair_id)
        if row is None:
            raise KeyError(pair_id)
        return Sample(row, self.store).read()

    def win_and_lose(self, row: IndexRow) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """A pair's two pictures; the sample's others are not decoded."""
        fields = read_fields(self.store, row)
        where = f"{self.store.root}/{FOLDER}/{row.shard}, pair {row.pair_id}"
        win, lose = (decode_png(fields[f"{name}.png"], where) for name in ("win", "lose"))
        return win, lose

    def _records(self, partition: str) -> PartitionRecords:
        return PartitionRecords(self.store, partition, self.keys_of(partition))


class Partitions:
    """The partitions of a version as columns. P partitions."""

    def __init__(self, table: Any) -> None:
        self.names: list[str] = table["partition"].to_pylist()
        self.subject_ids: list[list[str]] = table["subject_ids"].to_pylist()
        self.pairs: NDArray[np.int64] = numbers(table["pairs"])
        self._members = ListCodes(table["subject_ids"])
        self._place = {name: at for at, name in enumerate(self.names)}
        self.rejects = _by_reason(table["rejects"])
        """Reason -> (P,) counts."""

    @classmethod
    def of(cls, dataset: Dataset) -> Partitions:
        """As the version's table tells; of an older version, from its artefacts."""
        path = f"versions/{dataset.id}/{PARTITIONS}"
        try:
            return cls(arrow_table(dataset.store.files.read(path)))
        except FileNotFoundError:
            return cls(_gathered(dataset))

    def __len__(self) -> int:
        return len(self.names)

    def find(self, name: str) -> int | None:
        return self._place.get(name)

    def with_subject(self, subject: str) -> NDArray[np.int64]:
        """Places of those with a subject; all without one."""
        if not subject:
            return np.arange(len(self))
        return np.flatnonzero(self._members.are(subject))

    def reject_counts(self, places: NDArray[np.int64] | None = None) -> dict[str, int]:
        """Rejects by reason, most first."""
        counts_of = {
            reason: int(counts.sum() if places is None else counts[places].sum())
            for reason, counts in self.rejects.items()
        }
        there = [(reason, n) for reason, n in counts_of.items() if n]
        return dict(sorted(there, key=lambda count: (-count[1], count[0])))

    def reject_page(
        self, reason: str, places: NDArray[np.int64], start: int, size: int
    ) -> list[tuple[int, int, int]]:
        """Which partitions hold rejects start..start+size of a reason (empty: any), as
        (place, first, last) of that reason's rejects within the partition."""
        chosen = [counts_P for name, counts_P in self.rejects.items() if reason in ("", name)]
        if not chosen:
            return []
        counts = np.sum([counts_P[places] for counts_P in chosen], axis=0)
        ends = np.cumsum(counts)
        begins = ends - counts
        hit = np.flatnonzero((counts > 0) & (ends > start) & (begins < start + size))
        return [
            (
                int(places[at]),
                max(0, start - int(begins[at])),
                min(int(counts[at]), start + size - int(begins[at])),
            )
            for at in hit
        ]


def _by_reason(column: Any) -> dict[str, NDArray[np.int64]]:
    maps = column.combine_chunks()
    lengths = np.diff(numbers(maps.offsets))
    rows = np.repeat(np.arange(len(maps)), lengths)
    reasons = np.array(maps.keys.to_pylist(), dtype=object)
    counts = numbers(maps.items)
    return {
        str(reason): np.bincount(
            rows[reasons == reason], counts[reasons == reason], minlength=len(maps)
        ).astype(np.int64)
        for reason in sorted(set(reasons))
    }


def _gathered(dataset: Dataset) -> Any:
    """The table of partitions, from the lineage's artefacts of stage pair."""
    rows = []
    lineage = dataset.lineage
    artefacts: Sequence[tuple[str, str]] = ()
    if lineage is not None:
        stages = lineage["stage"].to_pylist()
        both = zip(lineage["partition"].to_pylist(), lineage["key"].to_pylist(), strict=True)
        artefacts = [
            artefact for artefact, stage in zip(both, stages, strict=True) if stage == "pair"
        ]
    for partition, key in sorted(artefacts):
        if not dataset.store.has("pair", key):
            continue
        scenes = dataset.records(partition).scenes
        rejects = dataset.store.read("pair", key, Reject, "rejects")
        rows.append(
            PartitionRow(
                partition=partition,
                subject_ids=tuple(sorted({name for scene in scenes for name in scene.subject_ids})),
                key=key,
                samples="",
                pairs=len(dataset.store.read("pair", key, Pair)),
                rejects=dict(Counter(reject.reason for reject in rejects)),
            )
        )
    return arrow_table(to_parquet(rows, PartitionRow))
