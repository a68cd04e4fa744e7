"""What changed from one dataset version to another, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from focusdpo.data_schemas.shards import IndexRow
from focusdpo.pipeline.audit import original_id
from focusdpo.store.artefacts import Store
from focusdpo.store.manifests import PartitionRow, partitions_of, reviewed_of
from focusdpo.store.versions import DatasetVersion, open_version

Compare = Callable[[Mapping[str, Any], Mapping[str, Any]], Sequence[str]]
"""Two manifests -> what settings, models and code differ, a text each."""


def no_causes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Sequence[str]:
    """Does not look for any."""
    return ()


@dataclass(frozen=True, kw_only=True)
class DatasetDiff:
    """From version `a` to version `b`."""

    a: str
    b: str
    subjects: dict[str, list[str]]
    """added, removed, changed (pictures or class), licence: names."""
    pairs: dict[str, int]
    """added, removed, changed (same candidates, another record), same."""
    added: dict[str, int]
    """Reason -> pairs that are new or changed."""
    removed: dict[str, int]
    """Reason -> pairs that are gone."""
    causes: list[str]
    """Settings, models and code that differ."""
    by_source: dict[str, tuple[int, int]]
    by_split: dict[str, tuple[int, int]]
    yields: tuple[float, float]
    """Accepted share of all would-be pairs."""
    rejects: dict[str, tuple[int, int]]
    """Reason -> how many in each."""
    shards_new: list[str]
    shards_gone: list[str]
    bytes: tuple[int, int]
    seconds: tuple[float, float]
    """Model computation behind each."""
    purged: list[str]
    """What was deleted from either since."""

    @property
    def is_empty(self) -> bool:
        """Nothing that training sees differs."""
        return not (self.pairs["added"] or self.pairs["removed"] or self.pairs["changed"])


def differences(name: str, old: Any, new: Any) -> Iterator[str]:
    """ "pair.min_drop 0.1 -> 0.2" for each leaf that differs."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for field in sorted({*old, *new}):
            yield from differences(f"{name}.{field}", old.get(field), new.get(field))
    elif old != new:
        yield f"{name} {old} -> {new}"


def diff(store: Store, a: str, b: str, compare: Compare = no_causes) -> DatasetDiff:
    """What changed from `a` to `b` ("latest" is one, too). UserError for an unknown version."""
    old, new = open_version(store, a), open_version(store, b)
    causes = list(compare(old.manifest, new.manifest))
    reasons = _Reasons(store, old, new, causes)
    before = {row.pair_id: row for row in old.rows}
    after = {row.pair_id: row for row in new.rows}
    fresh = [row for name, row in after.items() if name not in before]
    gone = [row for name, row in before.items() if name not in after]
    changed = [
        row for name, row in after.items() if name in before and before[name].digest != row.digest
    ]
    shards = [{shard["name"]: shard["bytes"] for shard in v.manifest["shards"]} for v in (old, new)]
    return DatasetDiff(
        a=old.id,
        b=new.id,
        subjects=reasons.subjects,
        pairs={
            "added": len(fresh),
            "removed": len(gone),
            "changed": len(changed),
            "same": len(after) - len(fresh) - len(changed),
        },
        added=reasons.count([*fresh, *changed], "added"),
        removed=reasons.count(gone, "removed"),
        causes=causes,
        by_source=_both(old, new, lambda row: row.source),
        by_split=_both(old, new, lambda row: row.split),
        yields=(_yield(old.manifest), _yield(new.manifest)),
        rejects=_beside(old.manifest["rejects"], new.manifest["rejects"]),
        shards_new=sorted(shards[1].keys() - shards[0].keys()),
        shards_gone=sorted(shards[0].keys() - shards[1].keys()),
        bytes=(sum(shards[0].values()), sum(shards[1].values())),
        seconds=(_seconds(old.manifest), _seconds(new.manifest)),
        purged=[
            f"{version.id}: {', '.join(note['subjects'])} on {note['when']}, "
            f"{note['lost']['pairs']} pairs"
            for version in (old, new)
            for note in version.manifest.get("purged", [])
        ],
    )


class _Reasons:
    """Why a pair is in one version and not in the other."""

    def __init__(
        self, store: Store, old: DatasetVersion, new: DatasetVersion, causes: Sequence[str]
    ) -> None:
        was = {subject["id"]: subject for subject in old.manifest["subjects"]}
        now = {subject["id"]: subject for subject in new.manifest["subjects"]}
        both = sorted(was.keys() & now.keys())
        changed = [name for name in both if was[name]["digest"] != now[name]["digest"]]
        self.subjects = {
            "added": sorted(now.keys() - was.keys()),
            "removed": sorted(was.keys() - now.keys()),
            "changed": changed,
            "licence": [name for name in both if was[name]["licence"] != now[name]["licence"]],
        }
        self._causes = list(causes)
        self._verdicts = [
            {row.pair_id: row.verdict for row in reviewed_of(store, version.id)}
            for version in (old, new)
        ]
        self._partitions = [
            _by_partition(partitions_of(store, version.id)) for version in (old, new)
        ]

    def count(self, rows: Iterable[IndexRow], what: str) -> dict[str, int]:
        """Reason -> pairs, the commonest first."""
        return dict(Counter(self._why(row, what) for row in rows).most_common())

    def _why(self, row: IndexRow, what: str) -> str:
        for kind in (what, "changed"):
            if names := [name for name in row.subject_ids if name in self.subjects[kind]]:
                return f"subject {kind}: {', '.join(sorted(names))}"
        before, after = (verdicts.get(original_id(row.pair_id)) for verdicts in self._verdicts)
        if before != after:
            return f"review: {after or 'withdrawn'}"
        old, new = self._partitions
        here, there = (new, old) if what == "added" else (old, new)
        if here and there and row.partition not in there and not self._causes:
            return "partition left out of the other version (a failure or a stop)"
        if self._causes:
            return "; ".join(self._causes)
        return "not told (made by another version of focusdpo)"


def _by_partition(rows: Sequence[PartitionRow]) -> dict[str, PartitionRow]:
    return {row.partition: row for row in rows}


def _both(
    old: DatasetVersion, new: DatasetVersion, of: Callable[[IndexRow], str]
) -> dict[str, tuple[int, int]]:
    return _beside(Counter(map(of, old.rows)), Counter(map(of, new.rows)))


def _beside(old: Mapping[str, int], new: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    return {name: (old.get(name, 0), new.get(name, 0)) for name in sorted({*old, *new})}


def _yield(manifest: Mapping[str, Any]) -> float:
    accepted = manifest["pairs"]["total"]
    asked = accepted + sum(manifest["rejects"].values())
    return round(accepted / asked, 4) if asked else 0.0


def _seconds(manifest: Mapping[str, Any]) -> float:
    return round(sum(stage["seconds"] for stage in manifest["stages"].values()), 3)
