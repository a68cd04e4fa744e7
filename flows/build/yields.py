"""What a build's partitions have brought: taken over from the newest version where nothing changed,
read from the store otherwise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from focusdpo.data_schemas.pairs import Pair, Reject, ReviewedPair
from focusdpo.data_schemas.scenes import Scene
from focusdpo.data_schemas.shards import SAMPLE_VERSION, IndexRow
from focusdpo.flows.config import BuildRun
from focusdpo.pipeline import shard
from focusdpo.pipeline.audit import Ruling
from focusdpo.pipeline.complexity import map_settings
from focusdpo.pipeline.shard import split_of
from focusdpo.store.artefacts import Store
from focusdpo.store.keys import config_digest
from focusdpo.store.manifests import PartitionRow, partitions_of, reviewed_of
from focusdpo.store.versions import latest_id, latest_rows


@dataclass(frozen=True)
class Yields:
    """Everything that finished partitions have brought."""

    rows: list[IndexRow]
    """Of partitions that are as the newest version has them."""
    pairs: list[Pair]
    """Of all others."""
    previous: list[IndexRow]
    """Rows of the newest version that may hold some of these pairs."""
    partitions: list[PartitionRow]
    reviewed: list[ReviewedPair]
    """What reviews have changed."""


def gather(
    store: Store,
    run: BuildRun,
    partitions: Mapping[str, Sequence[Scene]],
    finished: Mapping[str, str],
    ruling: Ruling,
) -> Yields:
    """Pairs and rejects of the finished partitions (partition -> key of its pair artefact), as
    reviews leave them."""
    latest = latest_id(store)
    had = {} if latest is None else {row.partition: row for row in partitions_of(store, latest)}
    rows_of: dict[str, list[IndexRow]] = {}
    for row in latest_rows(store):
        rows_of.setdefault(row.partition, []).append(row)
    reviewed: dict[str, list[ReviewedPair]] = {}
    for pair in reviewed_of(store, latest) if latest else []:
        reviewed.setdefault(pair.partition, []).append(pair)
    shards = set(store.files.names(shard.FOLDER))
    yields = Yields([], [], [], [], [])
    for name, key in finished.items():
        samples = samples_digest(run, ruling.partitions.get(name, ()))
        before = had.get(name)
        rows = rows_of.get(name, [])
        if before and before.key == key and _still_hold(rows, before, samples, shards, run):
            yields.rows.extend(rows)
            yields.partitions.append(before)
            yields.reviewed.extend(reviewed.get(name, []))
            continue
        pairs, changed = ruling.apply(store.read("pair", key, Pair))
        rejects: Counter[str] = Counter(
            reject.reason for reject in store.read("pair", key, Reject, table="rejects")
        )
        rejects.update(f"review: {pair.verdict}" for pair in changed if pair.verdict != "swapped")
        yields.pairs.extend(pairs)
        yields.previous.extend(rows)
        yields.reviewed.extend(changed)
        yields.partitions.append(
            PartitionRow(
                partition=name,
                subject_ids=tuple(sorted(partitions[name][0].subject_ids)),
                key=key,
                samples=samples,
                pairs=len(pairs),
                rejects=dict(rejects),
            )
        )
    return yields


def samples_digest(run: BuildRun, reviews: Sequence[str] = ()) -> str:
    """Digest of what a partition's samples depend on besides its pairs: settings, and what reviews
    come to."""
    values: dict[str, Any] = {
        "shard": shard.VERSION,
        "sample": SAMPLE_VERSION,
        "complexity": map_settings(run.complexity),
    }
    if reviews:  # left out where there are none, as before there were any
        values["reviews"] = list(reviews)
    return config_digest(values)


def _still_hold(
    rows: Sequence[IndexRow], before: PartitionRow, samples: str, shards: set[str], run: BuildRun
) -> bool:
    return (
        before.samples == samples
        and len(rows) == before.pairs
        and all(row.shard in shards for row in rows)
        and all(row.split == split_of(row.partition, run.shard) for row in rows)
    )
