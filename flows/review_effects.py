"""What reviews will change in the next version."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from focusdpo.data_schemas.reviews import Verdict
from focusdpo.flows.builder import Builder
from focusdpo.flows.yields import samples_digest
from focusdpo.pipeline.manifests import latest_id
from focusdpo.pipeline.version_tables import partitions_of, reviewed_of


def review_lines(builder: Builder) -> Iterator[str]:
    """A line for people per kind of change, by comparison with the newest version."""
    had, now = changed_verdicts(builder)
    out = Counter(
        verdict
        for pair, verdict in now.items()
        if verdict in ("rejected", "contested") and had.get(pair) not in ("rejected", "contested")
    )
    if out:
        told = ", ".join(f"{count} {verdict}" for verdict, count in sorted(out.items()))
        yield f"review: {_pairs(out.total())} left out of the index ({told})"
    turned = sum(had.get(pair) != "swapped" for pair, said in now.items() if said == "swapped")
    if turned:
        yield f"review: {_pairs(turned)} with winner and loser exchanged, written to new shards"
    if back := len(had.keys() - now.keys()):
        yield f"review: {_pairs(back)} as built again, decisions were withdrawn or overruled"


def changed_verdicts(builder: Builder) -> tuple[Mapping[str, Verdict], Mapping[str, Verdict]]:
    """Pair -> verdict in the newest version and in the next, of the partitions that differ."""
    latest = latest_id(builder.store)
    if latest is None:
        return {}, {}
    ruled = builder.ruling.partitions
    settled = {
        row.partition
        for row in partitions_of(builder.store, latest)
        if row.samples == samples_digest(builder.run, ruled.get(row.partition, ()))
    }
    had = {
        one.pair_id: one.verdict
        for one in reviewed_of(builder.store, latest)
        if one.partition not in settled and one.partition in builder.partitions
    }
    now = {
        pair: verdict
        for (pair, judged), verdict in builder.ruling.changes.items()
        if builder.ruling.where[pair, judged] not in settled
        and builder.ruling.where[pair, judged] in builder.partitions
    }
    return had, now


def _pairs(count: int) -> str:
    return "1 pair" if count == 1 else f"{count} pairs"
