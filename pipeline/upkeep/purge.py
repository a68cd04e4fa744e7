"""Deleting subjects for good: no byte of their pictures, and nothing that shows them, stays.

The order makes every moment one that can be gone on from: the plan is written; indexes lose the
pairs, shards the samples, manifests tell it, artefacts go; a search of the whole root ends it. A
purge that was stopped is finished by the next one, and no build starts before. Versions keep their
names, and other samples their places, so readers of other pairs notice nothing.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.pairs import ReviewedPair
from focusdpo.data_schemas.shards import IndexRow
from focusdpo.data_schemas.tables import to_parquet
from focusdpo.pipeline.audit import Audit
from focusdpo.pipeline.subjects import registry
from focusdpo.pipeline.subjects.near_duplicates import HASHES
from focusdpo.pipeline.upkeep.garbage import (
    Reached,
    alone,
    note_sweep,
    passing,
    versions_in_use,
)
from focusdpo.pipeline.upkeep.purge_plan import FOLDER, PurgePlan, make_plan, unfinished
from focusdpo.pipeline.upkeep.purge_plan import without as without_samples
from focusdpo.store import tars
from focusdpo.store.addresses import LEASES
from focusdpo.store.artefacts import Store
from focusdpo.store.keys import digest
from focusdpo.store.local import LOCK, TEMP
from focusdpo.store.manifests import (
    LINEAGE,
    MANIFEST,
    PARTITIONS,
    REVIEWED,
    PartitionRow,
    digests,
    drop_twin,
    ensure_twin,
    lineage_columns,
    manifest_bytes,
    partitions_of,
    refuse_damaged,
    reviewed_of,
    stage_summary,
    table_bytes,
    without,
)
from focusdpo.store.samples import ENCODED
from focusdpo.store.samples import FOLDER as SHARDS
from focusdpo.store.versions import open_version, pair_counts

FIRST_PICTURES = "first.png"
WORLD = "subjects"
"""Where a build keeps the pictures of the pocket world's individuals."""
NOT_SEARCHED = (f"{TEMP}/", f"{LEASES}/", LOCK)

log = logging.getLogger(__name__)


def purge(
    store: Store, names: Sequence[str], *, now: str | None = None, reached: Reached = passing
) -> PurgePlan:
    """Delete subjects from registry, versions, shards and artefacts; a purge that was stopped is
    finished first. `now`: the time that manifests tell.

    UserError when a build is at work, a version of theirs is being read, a name is unknown, or
    something of them is left.
    """
    wanted = sorted(set(names))
    with alone(store, "purge"):
        note_sweep(store)
        for plan in unfinished(store):
            log.warning("%s: finishing the purge of %s", store.root, ", ".join(plan.subjects))
            _refuse_in_use(store, plan)
            done = _carry_out(store, plan, reached)
            if plan.subjects == wanted:
                return done
        when = now or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        plan = make_plan(store, wanted, when)
        _refuse_in_use(store, plan)
        for name in plan.versions:
            refuse_damaged(store, name)  # what is changed now is taken for right afterwards
        plan.write(store)
        reached("planned")
        return _carry_out(store, plan, reached)


def _refuse_in_use(store: Store, plan: PurgePlan) -> None:
    """Samples would go from under who reads them."""
    for name, holder in versions_in_use(store).items():
        if name in plan.versions:
            raise UserError(
                f"{store.root}: {holder.what} reads version {name}, which has pairs of "
                f"{', '.join(plan.subjects)} ({holder}); stop it, or purge when it is done"
            )


def refuse_unfinished(store: Store) -> None:
    """UserError when a purge was stopped: a build could bring back what it has deleted."""
    for plan in unfinished(store):
        raise UserError(
            f"{store.root}: the purge of {', '.join(plan.subjects)} was stopped; finish it first: "
            f"focusdpo dataset purge --root {store.root} {' '.join(plan.subjects)}"
        )


def _carry_out(store: Store, plan: PurgePlan, reached: Reached) -> PurgePlan:
    _registry(store, plan)
    reached("registry")
    for name, lost in plan.versions.items():
        drop_twin(store, name)  # it holds their rows
        if any(lost.values()):
            _index(store, plan, name)
        reached("index")
    for name, wanted in plan.shards.items():
        _shard(store, plan, name, wanted)
        reached("shard")
    for name, lost in plan.versions.items():
        _manifest(store, plan, name, lost)
        ensure_twin(store, name)
        reached("manifest")
    for stage, key in plan.artefacts:
        path = store.path(stage, key)
        store.drop(stage, key)
        store.files.remove(f"{path.removesuffix('tar')}json")
        reached("artefact")
    Audit(store).remove_of(plan.subjects)
    reached("reviews")
    for path in _shown(store, plan):
        store.files.remove(path)
    reached("shown")
    if left := list(traces(store, plan)):
        raise UserError(
            f"{store.root}: pictures of {', '.join(plan.subjects)} are left in {left[:3]}; remove "
            "these files and purge again"
        )
    # What was done stays on record; which pictures they were does not.
    done = dataclasses.replace(plan, pictures=[], artefacts=[], partitions=[], done=True)
    done.write(store)
    log.info("%s: purged %s", store.root, ", ".join(plan.subjects))
    return dataclasses.replace(plan, done=True)


def _registry(store: Store, plan: PurgePlan) -> None:
    """Out of the registry, and out of its history."""
    state = registry.read_registry(store)
    if state is None:
        return
    if registered := [name for name in plan.subjects if name in state.entries]:
        registry.remove(store, registered, told=f"purged (see {plan.path})")
    numbers = registry.state_numbers(store)
    for number in numbers[:-1]:
        store.files.remove(registry.state_path(number))


def _is_theirs(plan: PurgePlan, row: IndexRow | PartitionRow | ReviewedPair) -> bool:
    return bool(set(plan.subjects) & set(row.subject_ids))


def _index(store: Store, plan: PurgePlan, name: str) -> None:
    """Their pairs out of a version's tables; and what a build asked for is no longer there."""
    folder = f"versions/{name}"
    rows = [row for row in open_version(store, name).rows if not _is_theirs(plan, row)]
    store.files.write(f"{folder}/index.parquet", to_parquet(rows, IndexRow))
    partitions = [row for row in partitions_of(store, name) if not _is_theirs(plan, row)]
    if store.files.exists(f"{folder}/{PARTITIONS}"):
        store.files.write(f"{folder}/{PARTITIONS}", to_parquet(partitions, PartitionRow))
    if store.files.exists(f"{folder}/{REVIEWED}"):
        reviewed = [row for row in reviewed_of(store, name) if not _is_theirs(plan, row)]
        store.files.write(f"{folder}/{REVIEWED}", to_parquet(reviewed, ReviewedPair))
    for request in store.files.names(f"{folder}/requests"):
        store.files.remove(f"{folder}/requests/{request}")


def _shard(store: Store, plan: PurgePlan, name: str, wanted: str | None) -> None:
    path = f"{SHARDS}/{name}"
    if wanted is None:
        store.files.remove(path)
        return
    data = store.files.read(path)
    if digest(data) == wanted:
        return  # by a purge that was stopped
    left = without_samples(data, plan.subjects, f"{store.root}/{path}")
    if left is None or digest(left) != wanted:
        raise UserError(
            f"{store.root}/{path}: has changed since the purge began; remove "
            f"{store.root}/{plan.path} and purge again"
        )
    store.files.write(path, left)


def _manifest(store: Store, plan: PurgePlan, name: str, lost: Mapping[str, int]) -> None:
    """What a version says of itself, after the purge. Written last, with a note of the purge."""
    folder = f"versions/{name}"
    opened = open_version(store, name)
    manifest = dict(opened.manifest)
    notes = manifest.get("purged", [])
    if plan.id in [note["id"] for note in notes]:
        return
    table = lineage_columns(store, name, None)
    if table is not None:
        table = without(table, plan.artefacts)
        store.files.write(f"{folder}/{LINEAGE}", table_bytes(table))
        manifest["stages"] = stage_summary(table)
    partitions = partitions_of(store, name)
    if store.files.exists(f"{folder}/{PARTITIONS}"):
        manifest["partitions"] = len(partitions)
        manifest["rejects"] = _rejects(partitions)
    reviewed = Counter(review.verdict for review in reviewed_of(store, name))
    manifest["reviews"] = dict(sorted(reviewed.items()))
    manifest["subjects"] = [
        subject for subject in manifest["subjects"] if subject["id"] not in plan.subjects
    ]
    manifest["pairs"] = pair_counts(opened.rows)
    manifest["shards"] = list(_shard_entries(manifest["shards"], opened.rows, plan))
    note = {"id": plan.id, "when": plan.when, "subjects": plan.subjects, "lost": dict(lost)}
    manifest["purged"] = [*notes, note]
    if files := manifest.get("digests"):
        manifest["digests"] = digests(
            {file: store.files.read(f"{folder}/{file}") for file in files}
        )
    store.files.write(f"{folder}/{MANIFEST}", manifest_bytes(manifest))


def _rejects(partitions: Sequence[PartitionRow]) -> dict[str, int]:
    reasons = sorted({reason for row in partitions for reason in row.rejects})
    return {reason: sum(row.rejects.get(reason, 0) for row in partitions) for reason in reasons}


def _shard_entries(
    entries: Sequence[Mapping[str, Any]], rows: Sequence[IndexRow], plan: PurgePlan
) -> Iterator[dict[str, Any]]:
    for entry in entries:
        pairs = sum(row.shard == entry["name"] for row in rows)
        wanted = plan.shards.get(entry["name"], entry["blake2b"])
        if pairs and wanted is not None:
            yield {**entry, "pairs": pairs, "blake2b": wanted}


def _shown(store: Store, plan: PurgePlan) -> Iterator[str]:
    """Pictures for people, the pocket world's own folders, and encoded pictures: these do not tell
    whose they are, and are made again when they are wanted."""
    yield FIRST_PICTURES
    for path in store.files.listing(ENCODED):
        yield f"{ENCODED}/{path}"
    yield HASHES  # made anew by the next build
    for path in store.files.listing(WORLD):
        if path.partition("/")[0] in plan.subjects:
            yield f"{WORLD}/{path}"


def traces(store: Store, plan: PurgePlan) -> Iterator[str]:
    """Files of the root that hold one of the pictures, as a file or as a member of a tar."""
    pictures = set(plan.pictures)
    gone = {store.path(stage, key) for stage, key in plan.artefacts}
    for path in store.files.listing(""):
        if path.startswith((*NOT_SEARCHED, f"{FOLDER}/")):
            continue
        if path in gone:
            yield path
        elif path.endswith(".tar") and path.startswith("stages/"):
            continue  # whose pictures these are was settled when the purge was planned
        elif pictures & _digests(store, path):
            yield path


def _digests(store: Store, path: str) -> set[str]:
    data = store.files.read(path)
    file_digests = {digest(data)}
    if path.endswith(".tar"):
        file_digests |= {
            digest(content) for _, content in tars.members(data, f"{store.root}/{path}")
        }
    return file_digests
