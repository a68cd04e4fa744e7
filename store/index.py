"""The tables beside a version's index: its partitions with their yields, and its lineage.

They are handled as columns, because a large version rests on hundreds of thousands of artefacts,
of which a new version shares nearly all with its parent.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.pairs import ReviewedPair
from focusdpo.data_schemas.runs import Artefact
from focusdpo.data_schemas.shards import IndexRow
from focusdpo.data_schemas.tables import arrow_table, from_parquet, to_parquet
from focusdpo.store.artefacts import Store
from focusdpo.store.keys import SHARD, digest
from focusdpo.store.manifests import MANIFEST, damaged_file, read_manifest

INDEX = "index.parquet"
LINEAGE = "lineage.parquet"
PARTITIONS = "partitions.parquet"
REVIEWED = "reviewed.parquet"
Named = tuple[str, str]
"""Stage and artefact key."""
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionRow:
    """A finished partition of a version: a set of subjects and what became of it."""

    partition: str
    subject_ids: tuple[str, ...]
    """Sorted."""
    key: str
    """Of its artefact of stage pair."""
    samples: str
    """Digest of what its samples depend on besides the pairs."""
    pairs: int
    rejects: dict[str, int]
    """Reason -> count."""


def rows_of(store: Store, version: str, name: str, row_type: type[R]) -> list[R] | None:
    """The records of one of a version's tables; None where the version never had it. UserError when
    it is damaged or missing."""
    data = _table_data(store, version, name)
    if data is None:
        return None
    where = f"{store.root}/versions/{version}/{name}"
    try:
        rows = from_parquet(data, row_type, where)
    except UserError as error:
        if _is_damaged(store, version, name, data):
            raise damaged_file(store, version, name) from error
        raise
    for shard in {row.shard for row in rows if isinstance(row, IndexRow)}:
        if not SHARD.fullmatch(shard):
            raise UserError(f"{where}: no shard can be called {shard[:80]!r}")
    return rows


def partitions_of(store: Store, version: str) -> list[PartitionRow]:
    """The partitions of a version; none where it was written before these were recorded."""
    return rows_of(store, version, PARTITIONS, PartitionRow) or []


def reviewed_of(store: Store, version: str) -> list[ReviewedPair]:
    """The pairs that reviews have left out of a version or exchanged in it."""
    return rows_of(store, version, REVIEWED, ReviewedPair) or []


def lineage_columns(store: Store, version: str, columns: Sequence[str] | None) -> Any:
    """A version's lineage, or some of its columns, as an Arrow table; None when it has none."""
    import pyarrow as pa

    data = _table_data(store, version, LINEAGE)
    if data is None:
        return None
    try:
        return arrow_table(data, columns)
    except (pa.ArrowException, OSError) as error:
        if _is_damaged(store, version, LINEAGE, data):
            raise damaged_file(store, version, LINEAGE) from error
        raise UserError(
            f"{store.root}/versions/{version}/{LINEAGE}: not a readable Parquet table ({error}); "
            "build again with another setting, or remove the version"
        ) from error


def _table_data(store: Store, version: str, name: str) -> bytes | None:
    try:
        return store.files.read(f"versions/{version}/{name}")
    except FileNotFoundError:
        if name in _told_digests(store, version):
            raise damaged_file(store, version, name) from None
        return None


def _is_damaged(store: Store, version: str, name: str, data: bytes) -> bool:
    """Whether a table that cannot be read is another one than was written; if not, this focusdpo
    does not know its columns."""
    return _told_digests(store, version).get(name, digest(data)) != digest(data)


def _told_digests(store: Store, version: str) -> Mapping[str, str]:
    if not store.files.exists(f"versions/{version}/{MANIFEST}"):
        return {}
    told: Mapping[str, str] = read_manifest(store, version).get("digests", {})
    return told


def lineage_keys(store: Store, version: str) -> dict[str, set[str]]:
    """Stage -> keys of the artefacts that a version rests on."""
    table = lineage_columns(store, version, ["stage", "key"])
    found: dict[str, set[str]] = {}
    if table is None:
        return found
    for stage, key in zip(table["stage"].to_pylist(), table["key"].to_pylist(), strict=True):
        found.setdefault(stage, set()).add(key)
    return found


def lineage_table(store: Store, artefacts: Collection[Named], parent: str | None) -> Any:
    """What is known of the artefacts, by stage and key, as an Arrow table; only those that the
    parent does not rest on are read. UserError when one is absent or damaged."""
    import pyarrow as pa

    known = None if parent is None else _known(store, parent, set(artefacts))
    had: set[Named] = set()
    if known is not None:
        had = set(zip(known["stage"].to_pylist(), known["key"].to_pylist(), strict=True))
    new = _as_table([store.artefact(*one) for one in sorted(set(artefacts) - had)])
    whole = new if known is None else pa.concat_tables([known, new])
    return whole.sort_by([("stage", "ascending"), ("key", "ascending")])


def without(table: Any, dropped: Collection[Named]) -> Any:
    """The lineage but for some artefacts."""
    return _chosen(table, set(dropped), inside=False)


def table_bytes(table: Any) -> bytes:
    """Parquet bytes, as `data_schemas.tables` writes and reads them."""
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    plain = table.combine_chunks().replace_schema_metadata(None)
    pq.write_table(plain, sink, compression="zstd", use_dictionary=False, write_page_checksum=True)
    return sink.getvalue()


def stage_summary(table: Any) -> dict[str, dict[str, Any]]:
    """Stage -> how many artefacts and records, their seconds, and the code and models behind
    them."""
    sums = table.select(["stage", "count", "seconds"]).group_by("stage", use_threads=False)
    told = sums.aggregate([("count", "count"), ("count", "sum"), ("seconds", "sum")])
    first: dict[str, Mapping[str, str]] = {}
    for stage in told["stage"].to_pylist():
        at = table["stage"].index(stage).as_py()
        first[stage] = dict(sorted(table["versions"][at].as_py()))
    return {
        row["stage"]: {
            "artefacts": row["count_count"],
            "records": row["count_sum"],
            "seconds": round(row["seconds_sum"], 3),
            "versions": first[row["stage"]],
        }
        for row in sorted(told.to_pylist(), key=lambda row: row["stage"])
    }


def _known(store: Store, parent: str, wanted: set[Named]) -> Any:
    table = lineage_columns(store, parent, None)
    if table is None or not table.schema.equals(_as_table([]).schema):
        return None  # of another focusdpo: its artefacts are read again
    return _chosen(table, wanted, inside=True)


def _chosen(table: Any, names: set[Named], *, inside: bool) -> Any:
    import pyarrow as pa

    pairs = zip(table["stage"].to_pylist(), table["key"].to_pylist(), strict=True)
    return table.filter(pa.array([(pair in names) == inside for pair in pairs], pa.bool_()))


def _as_table(artefacts: Sequence[Artefact]) -> Any:
    return arrow_table(to_parquet(artefacts, Artefact))
