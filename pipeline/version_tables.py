"""The tables beside a version's index: its partitions with their yields, and its lineage.

They are handled as columns, because a large version rests on hundreds of thousands of artefacts,
of which a new version shares nearly all with its parent.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.reviews import ReviewedPair
from focusdpo.data_schemas.runs import Artefact
from focusdpo.data_schemas.tables import arrow_table, from_parquet, to_parquet
from focusdpo.pipeline.store import Store

LINEAGE = "lineage.parquet"
PARTITIONS = "partitions.parquet"
REVIEWED = "reviewed.parquet"
Named = tuple[str, str]
"""Stage and artefact key."""


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


def partitions_of(store: Store, version: str) -> list[PartitionRow]:
    """The partitions of a version; none where it was written before these were recorded."""
    path = f"versions/{version}/{PARTITIONS}"
    try:
        data = store.files.read(path)
    except FileNotFoundError:
        return []
    return from_parquet(data, PartitionRow, f"{store.root}/{path}")


def reviewed_of(store: Store, version: str) -> list[ReviewedPair]:
    """The pairs that reviews have left out of a version or exchanged in it."""
    path = f"versions/{version}/{REVIEWED}"
    try:
        data = store.files.read(path)
    except FileNotFoundError:
        return []
    return from_parquet(data, ReviewedPair, f"{store.root}/{path}")


def lineage_columns(store: Store, version: str, columns: Sequence[str] | None) -> Any:
    """A version's lineage, or some of its columns, as an Arrow table; None when it has none."""
    import pyarrow as pa

    path = f"versions/{version}/{LINEAGE}"
    try:
        data = store.files.read(path)
    except FileNotFoundError:
        return None
    try:
        return arrow_table(data, columns)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{store.root}/{path}: not a readable Parquet table ({error}); build again with "
            "another setting, or remove the version"
        ) from error


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
