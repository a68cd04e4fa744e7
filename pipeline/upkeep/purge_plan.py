"""What a purge has to touch, and the shards without it: found by reading, before a change.

A shard keeps its name, its size and the place of every other sample, so that all versions and all
readers that know it go on reading; where a sample was, there is one member of zeros. Its name
`__purged__` is what webdataset and `datasets` pass over.

The plan is kept in the root until the purge is done, so that one that is stopped goes on as it
began, whatever it has already deleted.
"""

from __future__ import annotations

import difflib
import io
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.runs import Artefact
from focusdpo.data_schemas.scenes import Scene
from focusdpo.data_schemas.shards import IndexRow
from focusdpo.pipeline.subjects import cutouts, ingest
from focusdpo.pipeline.upkeep.references import References, bare_artefact, references
from focusdpo.store import tars
from focusdpo.store.artefacts import Store
from focusdpo.store.keys import KEY, SHARD, STAGE, digest, parsed, sealed, unsealed
from focusdpo.store.manifests import NAME, partitions_of, versions_of
from focusdpo.store.samples import FOLDER as SHARDS
from focusdpo.store.versions import open_version

BLANK = "__purged__"


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample as it lies in a shard: its members' span in bytes."""

    pair_id: str
    subject_ids: tuple[str, ...]
    start: int
    end: int


def samples(data: bytes, where: str) -> list[Sample]:
    """All samples of a shard, in order. UserError names `where` when it is damaged."""
    shard_samples: list[Sample] = []
    name, start, end = "", 0, 0
    subjects: tuple[str, ...] = ()
    for member, offset, content in _members(data, where):
        key, _, field = member.partition(".")
        if key != name:
            if name and name != BLANK:
                shard_samples.append(Sample(name, subjects, start, end))
            name, start, subjects = key, offset, ()
        end = offset + tars.BLOCK + len(content) + (-len(content) % tars.BLOCK)
        if field == "json":
            subjects = _subjects(content, where)
    if name and name != BLANK:
        shard_samples.append(Sample(name, subjects, start, end))
    return shard_samples


def without(data: bytes, gone: Collection[str], where: str) -> bytes | None:
    """The shard without the samples that show one of the subjects; None when no other is left."""
    theirs = [sample for sample in samples(data, where) if set(gone) & set(sample.subject_ids)]
    if len(theirs) == len(samples(data, where)):
        return None
    blanked = bytearray(data)
    for their in theirs:
        sink = io.BytesIO()
        tars.append(sink, BLANK, bytes(their.end - their.start - tars.BLOCK))
        blanked[their.start : their.end] = sink.getvalue()
    return bytes(blanked)


def _members(data: bytes, where: str) -> Iterator[tuple[str, int, bytes]]:
    """Names, offsets of their headers, and contents."""
    offset = 0
    for name, content in tars.members(data, where):
        yield name, offset, content
        offset += tars.BLOCK + len(content) + (-len(content) % tars.BLOCK)


def _subjects(content: bytes, where: str) -> tuple[str, ...]:
    try:
        return tuple(parsed(content)["pair"]["subject_ids"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where}: a sample's json cannot be read ({error})") from error


FOLDER = "purges"


@dataclass(frozen=True, kw_only=True)
class PurgePlan:
    """One purge, from before its first deletion."""

    subjects: list[str]
    when: str
    partitions: list[str]
    """Sets of subjects with one of them."""
    artefacts: list[tuple[str, str]]
    """(stage, key) of all that goes."""
    shards: dict[str, str | None]
    """Shard -> its new digest; None: it goes."""
    versions: dict[str, dict[str, int]]
    """Version -> pairs, partitions and subjects that it loses: none where only a shard of it holds
    some that it does not name."""
    pictures: list[str] = field(default_factory=list)
    """Digests of their pictures."""
    done: bool = False

    @property
    def id(self) -> str:
        return digest(json.dumps([self.subjects, self.when]).encode())[:16]

    @property
    def path(self) -> str:
        return f"{FOLDER}/{self.id}.json"

    def write(self, store: Store) -> None:
        store.files.write(self.path, sealed(asdict(self)))


PLAN = re.compile(r"[0-9a-f]{16}\.json")
PLAN_TYPE = TypeAdapter(PurgePlan)
MOVE = "move it away, and purge again what it was to delete"


def read_plans(store: Store) -> list[PurgePlan]:
    """All purges of a root that were begun, oldest first."""
    plans = [
        _read_plan(store, f"{FOLDER}/{name}")
        for name in store.files.names(FOLDER)
        if PLAN.fullmatch(name)
    ]
    return sorted(plans, key=lambda plan: (plan.when, plan.id))


def unfinished(store: Store) -> list[PurgePlan]:
    """Purges that were stopped."""
    return [plan for plan in read_plans(store) if not plan.done]


def _read_plan(store: Store, path: str) -> PurgePlan:
    """UserError that names the file unless it is a purge of this root and of nothing else."""
    try:
        plan = PLAN_TYPE.validate_python(unsealed(store.files.read(path)))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{store.root}/{path}: damaged ({where} {first['msg']}); {MOVE}") from error
    except ValueError as error:
        raise UserError(f"{store.root}/{path}: damaged ({error}); {MOVE}") from error
    outside = [name for name in plan.shards if not SHARD.fullmatch(name)]
    outside += [name for name in plan.versions if not NAME.fullmatch(name)]
    outside += [
        f"{stage}/{key}"
        for stage, key in plan.artefacts
        if not STAGE.fullmatch(stage) or not KEY.fullmatch(key)
    ]
    if outside:
        raise UserError(f"{store.root}/{path}: purges {outside[0][:80]!r}, no file of ours; {MOVE}")
    if plan.path != path:
        raise UserError(f"{store.root}/{path}: is not called after its content; {MOVE}")
    return plan


def make_plan(store: Store, names: Sequence[str], when: str) -> PurgePlan:
    """Find everything that shows one of the subjects. Reads all shards and the first kilobytes of
    each artefact that no version tells of. Changes nothing.

    UserError for a name that the root does not know, or when another subject has the same pictures.
    """
    referred = references(store, versions_of(store), in_full=True)
    inventory = list(_inventory(store, referred))
    _check_names(store, names, inventory, referred)
    sets = _subject_sets(store, inventory, referred.sets)
    partitions = {partition for partition, members in sets.items() if set(names) & members}
    gone = [artefact for artefact in inventory if _is_theirs(artefact, names, partitions, sets)]
    # The record holds the pictures' digests, too, but of no picture: tables differ from subject
    # to subject, masks may be shared by chance.
    pictures = {
        value
        for artefact in gone
        if artefact.stage == ingest.STAGE
        for name, value in artefact.files.items()
        if name.startswith("ref") and not name.startswith("refmask")
    }
    _refuse_shared(inventory, gone, pictures)
    shards = dict(_shards(store, names))
    return PurgePlan(
        subjects=sorted(names),
        when=when,
        partitions=sorted(partitions),
        artefacts=sorted((artefact.stage, artefact.key) for artefact in gone),
        shards=shards,
        versions=dict(_versions(store, names, shards)),
        pictures=sorted(pictures),
    )


def _inventory(store: Store, referred: References) -> Iterator[Artefact]:
    """All artefacts; those that a version rests on as it tells of them, the others by a look."""
    there = {(stage, key) for stage in store.stages() for key in store.keys(stage)}
    yield from (referred.told[name] for name in there & referred.told.keys())
    for stage, key in sorted(there - referred.told.keys()):
        try:
            yield store.artefact(stage, key)
        except UserError:
            yield bare_artefact(stage, key, "", {})  # damaged: nobody can say what it shows


def _subject_sets(
    store: Store, inventory: Sequence[Artefact], version_sets: Mapping[str, set[str]]
) -> dict[str, set[str]]:
    """Partition -> its subjects, as far as versions (`version_sets`) and scenes tell."""
    sets = dict(version_sets)
    for artefact in inventory:
        if artefact.stage == "compose" and artefact.partition not in sets:
            try:
                scenes = store.read("compose", artefact.key, Scene)
            except UserError:
                continue
            sets |= {scene.partition: set(scene.subject_ids) for scene in scenes}
    return sets


def _is_theirs(
    artefact: Artefact, names: Sequence[str], partitions: set[str], sets: Mapping[str, set[str]]
) -> bool:
    if artefact.stage == cutouts.STAGE:
        return True  # found by pixels: nothing says whose it is; the others are found again
    if artefact.stage == ingest.STAGE:
        return artefact.partition in names or not artefact.partition
    # An artefact of an unknown set may show anybody; nothing rests on it.
    return artefact.partition in partitions or artefact.partition not in sets


def _check_names(
    store: Store, names: Sequence[str], inventory: Sequence[Artefact], referred: References
) -> None:
    ingested = {artefact.partition for artefact in inventory if artefact.stage == ingest.STAGE}
    known = ingested | referred.subjects
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5)
            close = f" (near: {', '.join(near)})" if near else ""
            raise UserError(f"{store.root}: holds nothing of a subject '{name}'{close}")


def _refuse_shared(
    inventory: Sequence[Artefact], gone: Sequence[Artefact], pictures: set[str]
) -> None:
    leaving = {(artefact.stage, artefact.key) for artefact in gone}
    others = sorted(
        artefact.partition
        for artefact in inventory
        if (artefact.stage, artefact.key) not in leaving and pictures & set(artefact.files.values())
    )
    if others:
        raise UserError(
            f"subject '{others[0]}' has the very same pictures, so they would stay; purge it too, "
            "in the same command"
        )


def _shards(store: Store, names: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    for name in filter(SHARD.fullmatch, store.files.names(SHARDS)):
        where = f"{store.root}/{SHARDS}/{name}"
        data = store.files.read(f"{SHARDS}/{name}")
        if any(set(names) & set(sample.subject_ids) for sample in samples(data, where)):
            left = without(data, names, where)
            yield name, None if left is None else digest(left)


def _versions(
    store: Store, names: Sequence[str], shards: Mapping[str, str | None]
) -> Iterator[tuple[str, dict[str, int]]]:
    for manifest in versions_of(store):
        known = {subject["id"] for subject in manifest["subjects"]}
        touched = any(shard["name"] in shards for shard in manifest["shards"])
        if not touched and not known & set(names):
            continue
        rows = _rows(store, manifest["id"])
        partitions = partitions_of(store, manifest["id"])
        yield (
            manifest["id"],
            {
                "pairs": sum(bool(set(names) & set(row.subject_ids)) for row in rows),
                "partitions": sum(
                    bool(set(names) & set(partition.subject_ids)) for partition in partitions
                ),
                "subjects": len(known & set(names)),
            },
        )


def _rows(store: Store, version: str) -> Sequence[IndexRow]:
    return open_version(store, version).rows


def as_told(plan: PurgePlan) -> dict[str, Any]:
    """What people are told of a purge."""
    return {
        "subjects": plan.subjects,
        "when": plan.when,
        "artefacts": len(plan.artefacts),
        "partitions": len(plan.partitions),
        "shards_removed": sum(shard is None for shard in plan.shards.values()),
        "shards_rewritten": sum(shard is not None for shard in plan.shards.values()),
        "versions": plan.versions,
        "pictures": len(plan.pictures),
        "done": plan.done,
    }
