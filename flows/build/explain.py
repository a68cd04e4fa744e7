"""What a build will do, why, and how much; and whether there is anything to do at all."""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from focusdpo.data_schemas.errors import counted
from focusdpo.data_schemas.pairs import Verdict
from focusdpo.data_schemas.shards import SAMPLE_VERSION
from focusdpo.flows.build.builder import Builder
from focusdpo.flows.build.changes import code_changes, run_of
from focusdpo.flows.build.plan import Unit, model_of
from focusdpo.flows.build.stages import STAGES
from focusdpo.flows.build.yields import samples_digest
from focusdpo.flows.config import BuildRun
from focusdpo.pipeline import shard
from focusdpo.pipeline.complexity import map_settings
from focusdpo.pipeline.dataset_diff import differences
from focusdpo.store.keys import config_digest
from focusdpo.store.manifests import (
    is_version_of,
    latest_id,
    lineage_columns,
    lineage_keys,
    partitions_of,
    read_manifest,
    reviewed_of,
)


def review_lines(builder: Builder) -> Iterator[str]:
    """A line for people per kind of change, by comparison with the newest version."""
    had, now = changed_verdicts(builder)
    out = Counter(
        verdict
        for pair, verdict in now.items()
        if verdict in ("rejected", "contested") and had.get(pair) not in ("rejected", "contested")
    )
    if out:
        verdicts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(out.items()))
        yield f"review: {counted(out.total(), 'pair')} left out of the index ({verdicts})"
    turned = sum(
        had.get(pair) != "swapped" for pair, verdict in now.items() if verdict == "swapped"
    )
    if turned:
        pairs = counted(turned, "pair")
        yield f"review: {pairs} with winner and loser exchanged, written to new shards"
    if back := len(had.keys() - now.keys()):
        pairs = counted(back, "pair")
        yield f"review: {pairs} as built again, decisions were withdrawn or overruled"


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
        reviewed.pair_id: reviewed.verdict
        for reviewed in reviewed_of(builder.store, latest)
        if reviewed.partition not in settled and reviewed.partition in builder.partitions
    }
    now = {
        pair: verdict
        for (pair, judged), verdict in builder.ruling.changes.items()
        if builder.ruling.where[pair, judged] not in settled
        and builder.ruling.where[pair, judged] in builder.partitions
    }
    return had, now


NOT_ASKED = {
    *("root", "subjects", "strict", "preset", "models"),
    *("executor", "num_processes", "partitions_per_task"),
}
"""Fields of a run that no result depends on: models count by their fingerprints."""


def request_digest(builder: Builder) -> str:
    """Digest of all that a version depends on: subjects, settings, models, code."""
    parts = {name: model_of(stage, builder.parts) for name, stage in STAGES.items()}
    reviews = sorted(map(list, builder.ruling.partitions.values()))
    return config_digest(
        {
            **({"reviews": reviews} if reviews else {}),
            "run": {
                **builder.run.model_dump(mode="json", exclude=NOT_ASKED),
                "complexity": map_settings(builder.run.complexity),
            },
            "subjects": sorted(
                (subject.id, subject.digest, subject.licence, subject.references[0].image)
                for subject in builder.subjects.values()
            ),
            "backgrounds": builder.backgrounds,
            "models": parts,
            "code": {name: stage.version for name, stage in STAGES.items()},
            "shards": [shard.VERSION, SAMPLE_VERSION],
        }
    )


def settled_version(builder: Builder) -> Mapping[str, Any] | None:
    """The manifest of the newest version when it is what the run asks for, and everything that it
    rests on is there; then nothing need be composed or planned."""
    store = builder.store
    latest = latest_id(store)
    if latest is None or not is_version_of(store, latest, request_digest(builder)):
        return None
    manifest = read_manifest(store, latest)
    there = set(store.files.names(shard.FOLDER))
    if any(entry["name"] not in there for entry in manifest["shards"]):
        return None
    if any(keys - set(store.keys(stage)) for stage, keys in lineage_keys(store, latest).items()):
        return None
    return manifest


@dataclass(frozen=True, slots=True)
class Cause:
    """Why some units are computed."""

    text: str
    partitions: dict[str, int]
    """Stage -> partitions."""
    seconds: float | None
    """Of model computation; None where nothing of the kind was made before."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a build will do."""

    counts: dict[str, tuple[int, int]]
    """Stage -> (units, missing)."""
    causes: list[Cause]
    seconds: float | None
    leaving: list[str]
    """What leaves the index, a line each."""

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "plan": {stage: absent for stage, (_, absent) in self.counts.items()},
            "why": [
                {"cause": cause.text, "partitions": cause.partitions, "seconds": cause.seconds}
                for cause in self.causes
            ],
            "seconds": self.seconds,
            "leaving": self.leaving,
        }


def explain(builder: Builder) -> Explanation:
    """Why each missing unit is missing, by comparison with the newest version."""
    latest = latest_id(builder.store)
    counts = builder.plan.counts()
    missing = {stage: absent for stage, (_, absent) in counts.items() if absent}
    if latest is None:  # counted, not asked for one by one
        causes = [Cause("no version yet: everything that is not there", missing, None)]
        return Explanation(counts, causes if missing else [], None, [])
    before = _Before(builder, read_manifest(builder.store, latest))
    groups: dict[str, Counter[str]] = {}
    subjects: dict[str, set[str]] = {}
    for unit in builder.plan.missing():
        kind, names = before.why(unit)
        groups.setdefault(kind, Counter())[unit.stage] += 1
        subjects.setdefault(kind, set()).update(names)
    causes = [
        Cause(kind + listed(subjects[kind]), dict(units), before.cost(units))
        for kind, units in groups.items()
    ]
    return Explanation(
        counts=counts,
        causes=causes,
        seconds=before.cost(missing),
        leaving=[*before.leaving(), *review_lines(builder)],
    )


def listed(names: Iterable[str], most: int = 5) -> str:
    """ " a, b, c and 4 more", or nothing."""
    ordered = sorted(names)
    if not ordered:
        return ""
    more = len(ordered) - most
    return " " + ", ".join(ordered[:most]) + (f" and {more} more" if more > 0 else "")


class _Before:
    """The newest version, asked what has changed since."""

    def __init__(self, builder: Builder, manifest: Mapping[str, Any]) -> None:
        self._builder = builder
        self._manifest = manifest

    def why(self, unit: Unit) -> tuple[str, set[str]]:
        """The kind of cause and the subjects that it names."""
        members = set(self._builder.partitions[unit.partition][0].subject_ids)
        old = self._subjects
        if new := {name for name in members if name not in old}:
            return "new subject:", new
        now = self._builder.subjects
        if changed := {name for name in members if old[name] != now[name].digest}:
            return "changed subject:", changed
        if self._keys[unit.stage].get(unit.partition) == unit.key:
            return "gone since the last version (removed, or damaged and dropped)", set()
        if causes := self._changes(unit.stage):
            return "changed " + "; ".join(causes), set()
        if unit.partition not in self._keys["compose"]:
            return "left out of the last version (a failure or a stop)", set()
        return "not as recorded (made by another version of focusdpo)", set()

    def cost(self, missing: Mapping[str, int]) -> float | None:
        """Model seconds that so many partitions of each stage take, as their like have taken."""
        total = 0.0
        for stage, count in missing.items():
            past = self._manifest["stages"].get(stage)
            if not past or not past["artefacts"]:
                return None
            total += count * past["seconds"] / past["artefacts"] * self._growth
        return round(total, 3)

    def leaving(self) -> Iterator[str]:
        """Subjects that the last version has and the next will not have."""
        gone = {subject for subject in self._subjects if subject not in self._builder.subjects}
        if not gone:
            return
        rows = partitions_of(self._builder.store, self._manifest["id"])
        theirs = [row for row in rows if gone.intersection(row.subject_ids)]
        yield (
            f"removed subject:{listed(gone)}: {counted(len(theirs), 'partition')} with "
            f"{counted(sum(row.pairs for row in theirs), 'pair')} leave the index; shards stay as "
            "they are"
        )

    @functools.cached_property
    def _subjects(self) -> dict[str, str]:
        return {subject["id"]: subject["digest"] for subject in self._manifest["subjects"]}

    @functools.cached_property
    def _keys(self) -> Mapping[str, Mapping[str, str]]:
        """Stage -> partition -> key, of what was made for the last version."""
        keys: dict[str, dict[str, str]] = defaultdict(dict)
        columns = ["stage", "partition", "key"]
        table = lineage_columns(self._builder.store, self._manifest["id"], columns)
        if table is not None:
            for row in zip(*(table[name].to_pylist() for name in columns), strict=True):
                keys[row[0]][row[1]] = row[2]
        return keys

    def _changes(self, stage: str) -> list[str]:
        """What has changed of a stage and of those that it builds on."""
        changes, above = self._own_changes, _ancestors(stage)
        return list(
            dict.fromkeys(text for name in STAGES if name in above for text in changes[name])
        )

    @functools.cached_property
    def _own_changes(self) -> dict[str, list[str]]:
        return {name: [*self._settings(name), *self._code(name)] for name in STAGES}

    def _settings(self, stage: str) -> Iterator[str]:
        if self._then is None:
            return
        now, then = self._builder.run, self._then
        pairs: list[tuple[str, Any, Any]]
        if stage == "compose":
            pairs = [("compose", then.compose.model_dump(), now.compose.model_dump())]
        else:
            old, new = STAGES[stage].settings(then), STAGES[stage].settings(now)
            names = dict.fromkeys([*old, *new])
            pairs = [(_section(name), old.get(name), new.get(name)) for name in names]
        for name, old, new in pairs:
            yield from (f"setting {text}" for text in differences(name, old, new))

    def _code(self, stage: str) -> Iterator[str]:
        model = model_of(STAGES[stage], self._builder.parts)
        now = {"code": str(STAGES[stage].version), "model": model}
        then = self._manifest["stages"].get(stage, {}).get("versions", {})
        return code_changes(stage, {**now, **then}, now)

    @functools.cached_property
    def _then(self) -> BuildRun | None:
        return run_of(self._manifest["config"])

    @functools.cached_property
    def _growth(self) -> float:
        """Candidates per partition, now by then."""
        runs = self._builder.run, self._then or self._builder.run
        now, then = (run.compose.variants * run.generate.candidates for run in runs)
        return now / then


def _section(name: str) -> str:
    """Some stages read one field of another's section."""
    return {"reference": "generate.reference", "extras": "segment.extras"}.get(name, name)


@functools.cache
def _ancestors(stage: str) -> frozenset[str]:
    needs: Sequence[str] = STAGES[stage].needs
    return frozenset({stage}.union(*(_ancestors(name) for name in needs)))
