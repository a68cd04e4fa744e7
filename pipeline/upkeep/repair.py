"""What is damaged in a dataset root, and how it is mended.

What is there twice is restored; what can be made anew is dropped for the next build.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from focusdpo.data_schemas.errors import UserError, run_doctor
from focusdpo.pipeline.audit import Audit
from focusdpo.pipeline.subjects import registry
from focusdpo.pipeline.upkeep.purge_plan import unfinished
from focusdpo.store.addresses import HEADER, files_of, header, header_damage
from focusdpo.store.artefacts import Corrupt, Store
from focusdpo.store.keys import parsed, unsealed
from focusdpo.store.manifests import (
    BUILD,
    LATEST,
    MANIFEST,
    TWIN,
    latest_id,
    latest_is_lost,
    lineage_columns,
    partitions_of,
    read_manifest,
    remedy,
    reviewed_of,
    version_names,
)
from focusdpo.store.samples import FOLDER
from focusdpo.store.versions import open_version, verify_shard

VERSIONS = "versions"

log = logging.getLogger(__name__)


@dataclass
class Wounds:
    """Damage to what is not built but written: versions and the root's own files."""

    remedies: dict[str, bytes | None] = field(default_factory=dict)
    """Path -> the bytes that it should have; None: the file is to go."""
    lost: list[Corrupt] = field(default_factory=list)
    """Versions that cannot be mended, with what to do."""


@dataclass(frozen=True)
class Mended:
    """What a repair did."""

    restored: list[str]
    """Files that have their right bytes again."""
    dropped: list[Corrupt]
    """Artefacts and shards that the next build makes anew."""
    lost: list[Corrupt]
    """What only a person can decide on."""


def damages(root: str | Path) -> list[Corrupt]:
    """All damage of a root; reads everything. UserError when it is none."""
    _refuse_headless(root)
    store = Store.open(root, create=False)
    wounds = _wounds(store)
    advice = run_doctor(root)
    damaged = [
        Corrupt(stage=VERSIONS, key=path, what=f"{root}/{path}: damaged. {advice}")
        for path in wounds.remedies
    ]
    damaged += wounds.lost + _by_hand(store)
    # Which shards a damaged version has is known when it is mended.
    return damaged or store.corrupt() + corrupt_shards(store)


def mend(root: str | Path) -> Mended:
    """Restore what has a copy, drop what can be built. Waits while a version is published."""
    restored = []
    files = files_of(root)
    if header_damage(files):
        files.write(HEADER, header())
        restored.append(HEADER)
    store = Store.open(root, create=False)
    with store.publishing():
        wounds = _wounds(store)
        for path, data in wounds.remedies.items():
            log.warning("%s: mended %s", root, path)
            if data is None:
                store.files.remove(path)
            else:
                store.files.write(path, data)
        restored += wounds.remedies
        shards = [] if wounds.lost else corrupt_shards(store)
        for shard in shards:
            log.warning("dropped %s", shard.what)
            store.files.remove(f"{FOLDER}/{shard.key}")
        return Mended(restored, store.repair() + shards, wounds.lost + _by_hand(store))


def corrupt_shards(store: Store) -> list[Corrupt]:
    """Damaged or missing shards of the newest version; reads all of them. Those that a stopped
    purge is changing are passed over: what they must be, it knows."""
    if latest_id(store) is None:
        return []
    damaged = []
    changing = {name for plan in unfinished(store) for name in plan.shards}
    for shard in open_version(store).manifest["shards"]:
        if shard["name"] in changing:
            continue
        try:
            verify_shard(store, shard)
        except UserError as error:
            damaged.append(Corrupt(stage=FOLDER, key=shard["name"], what=str(error)))
    return damaged


def _refuse_headless(root: str | Path) -> None:
    if what := header_damage(files_of(root)):
        raise UserError(f"{root}/{HEADER}: {what}. {run_doctor(root)}")


def _by_hand(store: Store) -> list[Corrupt]:
    """Damage to registry and reviews. A person decides: they are made by hand, and of them only the
    registry's history is there twice."""
    damaged = Audit(store).damaged()
    try:
        registry.read_registry(store)
    except UserError as error:
        damaged.append(Corrupt(stage=registry.FOLDER, key="", what=str(error)))
    return damaged


def _wounds(store: Store) -> Wounds:
    wounds = Wounds()
    created: dict[str, str] = {}
    purged = {name for plan in unfinished(store) for name in plan.versions}
    for name in version_names(store):
        folder = f"{VERSIONS}/{name}"
        if name in purged and not store.files.exists(f"{folder}/{TWIN}"):
            cures: Mapping[str, bytes] = {}  # being changed; the purge, once finished, gives a twin
        else:
            try:
                cures = remedy(store, name)
                _refuse_unreadable(store, name, cures)
            except UserError as error:
                wounds.lost.append(Corrupt(stage=VERSIONS, key=name, what=str(error)))
                continue
        wounds.remedies |= {f"{folder}/{file}": data for file, data in cures.items()}
        if _is_broken(store, f"{folder}/{BUILD}"):
            wounds.remedies[f"{folder}/{BUILD}"] = None
        if MANIFEST in cures or store.files.exists(f"{folder}/{MANIFEST}"):
            data = cures.get(MANIFEST) or store.files.read(f"{folder}/{MANIFEST}")
            created[name] = parsed(data)["created"]
    _latest(store, created, wounds)
    return wounds


def _is_broken(store: Store, path: str) -> bool:
    """Whether a sealed file is there and damaged."""
    try:
        unsealed(store.files.read(path))
    except FileNotFoundError:
        return False
    except ValueError:
        return True
    return False


def _refuse_unreadable(store: Store, name: str, cures: Mapping[str, bytes]) -> None:
    """UserError when a version of before there were twins cannot be read."""
    folder = f"{store.root}/{VERSIONS}/{name}"
    if cures or not store.files.exists(f"{VERSIONS}/{name}/{MANIFEST}"):
        return
    if read_manifest(store, name).get("digests"):
        open_version(store, name)  # whole as it is, it may be a stranger's
        lineage_columns(store, name, ["stage", "key"])
        return
    try:
        open_version(store, name)
        lineage_columns(store, name, None)
        partitions_of(store, name)
        reviewed_of(store, name)
    except UserError as error:
        raise UserError(
            f"{error}. It is of before versions had a twin; remove the folder {folder} and build "
            "again"
        ) from error


def _latest(store: Store, created: Mapping[str, str], wounds: Wounds) -> None:
    """LATEST must name a whole version, or one that a person has to decide on first."""
    tagged = store.files.tagged(LATEST)
    content = b"" if tagged is None else tagged[0]
    lost = [damage.key for damage in wounds.lost]
    if content in {f"{name}\n".encode() for name in (*created, *lost)}:
        return
    if created:
        if tagged is not None or len(created) > 1 or latest_is_lost(store):
            wounds.remedies[LATEST] = f"{_meant(content, created)}\n".encode()
    elif tagged is not None and not wounds.lost:
        wounds.remedies[LATEST] = None


def _meant(content: bytes, created: Mapping[str, str]) -> str:
    """The version of which LATEST, cut or with a byte changed, is most likely the name; else the
    newest."""
    near = [
        name
        for name in created
        if (content.strip() and name.encode().startswith(content.strip()))
        or (
            len(content) == len(name) + 1
            and sum(a != b for a, b in zip(content, f"{name}\n".encode(), strict=True)) == 1
        )
    ]
    return max(near if len(near) == 1 else created, key=lambda name: (created[name], name))
