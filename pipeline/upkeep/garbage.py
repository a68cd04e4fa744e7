"""Garbage: what no kept version and no registered subject refers to.

Nothing that an index refers to is ever taken. Nothing is taken while a build is at work (it holds a
lease), nothing of a version that is being read (a training holds one that names it), and nothing
young: what a stopped build has left, its next run will want.
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from focusdpo.data_schemas.environment import is_dead
from focusdpo.data_schemas.errors import Forbidden, Full, UserError
from focusdpo.data_schemas.subjects import Subject
from focusdpo.pipeline.subjects import cutouts, ingest, registry
from focusdpo.pipeline.upkeep.references import References, references
from focusdpo.store import leases
from focusdpo.store.addresses import LEASES
from focusdpo.store.artefacts import Store
from focusdpo.store.keys import KEY, SHARD, STAGE
from focusdpo.store.leases import SLACK, Holder
from focusdpo.store.local import FORBIDDEN, LocalFiles
from focusdpo.store.manifests import MANIFEST, NAME, TWIN, versions_of
from focusdpo.store.samples import FOLDER as SHARDS
from focusdpo.store.versions import DatasetVersion, open_version

DAY = 86400.0
BUILDS = "builds"
READERS = "readers"
PUBLISHING = "publish"
SWEPT = "swept.json"
"""Below the root: another content after each removal, so that plans made before are made anew."""
STATES = 20
"""States of the registry that are kept."""

ARTEFACT = re.compile(rf"{STAGE.pattern}/[0-9a-f]{{2}}/{KEY.pattern}\.(tar|json)")

log = logging.getLogger(__name__)

Reached = Callable[[str], None]
"""Told the name of each point that is passed, so that tests can stop there."""


def passing(_: str) -> None:
    """Nothing waits for us at any point."""


@dataclass
class Garbage:
    """What may go, by kind; paths below the root with their bytes."""

    versions: dict[str, int] = field(default_factory=dict)
    """Version id -> bytes of its folder."""
    shards: dict[str, int] = field(default_factory=dict)
    artefacts: dict[str, dict[str, int]] = field(default_factory=dict)
    """Stage -> path -> bytes; an artefact has two paths."""
    others: dict[str, int] = field(default_factory=dict)
    in_use: dict[str, str] = field(default_factory=dict)
    """Versions that would go and stay because they are being read, with who reads them."""
    young: int = 0
    """Files that nothing refers to, but too young to go."""
    removed: bool = False
    """They are gone; False after a dry run."""

    @property
    def bytes(self) -> int:
        groups = [self.versions, self.shards, self.others, *self.artefacts.values()]
        return sum(sum(group.values()) for group in groups)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "versions": self.versions,
            "shards": {"files": len(self.shards), "bytes": sum(self.shards.values())},
            "artefacts": {
                stage: {
                    "artefacts": sum(path.endswith(".tar") for path in paths),
                    "bytes": sum(paths.values()),
                }
                for stage, paths in sorted(self.artefacts.items())
            },
            "others": {"files": len(self.others), "bytes": sum(self.others.values())},
            "bytes": self.bytes,
            "in_use": self.in_use,
            "young": self.young,
            "removed": self.removed,
        }


@contextmanager
def building(store: Store) -> Iterator[None]:
    """Held by a build while it runs: nothing that it may have made or found is taken meanwhile."""
    name = f"{BUILDS}/{uuid.uuid4().hex}"
    with ExitStack() as held:
        with store.publishing():  # not while something is being removed
            held.enter_context(
                leases.lease(store.files, name, "a build", lambda: False, config=store.leases)
            )
        yield


@contextmanager
def reading(root: str | Path, id: str, what: str) -> Iterator[DatasetVersion]:
    """A version, of which gc and purge leave everything where it is for as long as the block lasts.
    `what`: the work, for people. UserError as `open_version`.

    Who may only read the root cannot say that he does: he reads it unprotected.
    """
    store = Store.open(root, create=False)
    with ExitStack() as held:
        try:
            with store.publishing():  # not while something is being removed
                version = open_version(store, id)
                name = f"{READERS}/{version.id}-{uuid.uuid4().hex}"
                held.enter_context(
                    leases.lease(store.files, name, what, lambda: False, config=store.leases)
                )
        except (Forbidden, OSError) as error:
            if isinstance(error, OSError) and error.errno not in FORBIDDEN:
                raise
            log.info("%s: only to be read (%s); gc does not know of %s", root, error, what)
            version = open_version(store, id)
        yield version


def last_sweep(store: Store) -> bytes | None:
    """What tells one removal from the next; None before the first."""
    try:
        return store.files.read(SWEPT)
    except FileNotFoundError:
        return None


def note_sweep(store: Store) -> bool:
    """To be called before anything is removed; and, where there was no room for a note and so it
    answers False, again afterwards. An empty note, or none, differs from the one before, too."""
    try:
        store.files.write(SWEPT, json.dumps({"removal": uuid.uuid4().hex}).encode())
    except Full:
        if last_sweep(store) == b"":
            store.files.remove(SWEPT)
        else:
            store.files.write(SWEPT, b"")
        return False
    return True


def builds_at_work(store: Store) -> list[Holder]:
    """The builds that are running on this root, on any machine."""
    return [holder for _, holder in _at_work(store, BUILDS)]


def versions_in_use(store: Store) -> dict[str, Holder]:
    """Version -> who is reading it, on any machine."""
    return {name.rpartition("-")[0]: holder for name, holder in _at_work(store, READERS)}


def _at_work(store: Store, kind: str) -> Iterator[tuple[str, Holder]]:
    for name in store.files.names(f"{LEASES}/{kind}"):
        path = f"{LEASES}/{kind}/{name}"
        tagged = store.files.tagged(path)
        if tagged is None:
            continue
        holder = leases.read_holder(tagged[0])
        age = store.files.age(path)
        if is_dead(holder.owner) or (age is not None and age > holder.seconds + SLACK):
            continue
        yield name, holder


@contextmanager
def alone(store: Store, what: str) -> Iterator[None]:
    """No version is published in the block. UserError when a build is at work."""
    with ExitStack() as held:
        try:
            held.enter_context(store.publishing())
        except Full:
            held.enter_context(_still(store))
        if at_work := builds_at_work(store):
            raise UserError(
                f"{store.root}: a build is at work ({at_work[0]}); {what} when it is done"
            )
        yield


@contextmanager
def _still(store: Store) -> Iterator[None]:
    """On a disk that has no room for a lease: while this lasts, nobody can take or renew one."""
    if not isinstance(store.files, LocalFiles):
        raise UserError(f"{store.root}: no room for a lease")
    with store.files.still():
        for _, holder in _at_work(store, PUBLISHING):
            raise UserError(f"{store.root}: a version is being published ({holder}); wait for it")
        yield


def collect(
    store: Store,
    *,
    keep_versions: int | None = None,
    min_age: float = DAY,
    dry_run: bool = False,
    reached: Reached = passing,
) -> Garbage:
    """Remove what nothing refers to and is older than `min_age` seconds; with `dry_run` only tell.

    With `keep_versions`, versions beyond the newest so many go, too. Stopped in the middle, it has
    removed less; the same call again removes the rest. UserError while a build is at work.
    """
    if keep_versions is not None and keep_versions < 1:
        raise UserError("gc: at least one version is kept; purge subjects to delete their data")
    if dry_run:
        return find_garbage(store, keep_versions=keep_versions, min_age=min_age)
    with alone(store, "run gc"):
        garbage = find_garbage(store, keep_versions=keep_versions, min_age=min_age)
        _sweep(store, garbage, reached)
    garbage.removed = True
    log.info("%s: gc removed %d bytes", store.root, garbage.bytes)
    return garbage


def find_garbage(store: Store, *, keep_versions: int | None, min_age: float) -> Garbage:
    """What nothing refers to."""
    manifests = versions_of(store)
    newest = {manifest["id"] for manifest in manifests[-(keep_versions or len(manifests)) :]}
    in_use = versions_in_use(store)
    kept = [manifest for manifest in manifests if manifest["id"] in newest | in_use.keys()]
    garbage = Garbage(
        versions=_other_versions(store, [manifest["id"] for manifest in kept]),
        in_use={
            manifest["id"]: f"{in_use[manifest['id']].what}, {in_use[manifest['id']]}"
            for manifest in kept
            if manifest["id"] not in newest
        },
    )
    for name, reader in garbage.in_use.items():
        log.warning("%s: version %s stays: it is read by %s", store.root, name, reader)
    referred = references(store, kept)
    for name, size in store.files.listing(SHARDS).items():
        if name not in referred.shards and SHARD.fullmatch(name):
            _note(store, garbage, garbage.shards, f"{SHARDS}/{name}", size, min_age)
    _artefacts(store, referred, garbage, min_age)
    for number in registry.state_numbers(store)[:-STATES]:
        path = registry.state_path(number)
        _note(store, garbage, garbage.others, path, store.files.size(path), min_age)
    return garbage


def _other_versions(store: Store, kept: list[str]) -> dict[str, int]:
    """Version folders that are not kept, unfinished ones among them: whoever asks holds the right
    to publish, so nobody is finishing them."""
    sizes: dict[str, int] = {}
    for path, size in store.files.listing("versions").items():
        name = path.partition("/")[0]
        if name not in kept and NAME.fullmatch(name):
            sizes[name] = sizes.get(name, 0) + size
    return sizes


def _artefacts(store: Store, referred: References, garbage: Garbage, min_age: float) -> None:
    files = store.files.listing("stages")
    for path, size in files.items():
        if not ARTEFACT.fullmatch(path):
            continue  # a stranger's file
        stage, _, name = path.split("/")
        key, _, suffix = name.rpartition(".")
        if stage == cutouts.STAGE or key in referred.artefacts.get(stage, ()):
            continue  # a photograph's mask is found by its pixels: nothing says whose it is
        if suffix == "json" and f"{path.removesuffix('json')}tar" in files:
            continue  # it goes with its artefact
        if stage == ingest.STAGE and suffix == "tar" and _who(store, key) in referred.pictures:
            continue
        of_stage = garbage.artefacts.setdefault(stage, {})
        whole = f"stages/{path}"
        if _note(store, garbage, of_stage, whole, size, min_age) and suffix == "tar":
            timing = f"{path.removesuffix('tar')}json"
            if timing in files:
                of_stage[f"stages/{timing}"] = files[timing]
    garbage.artefacts = {stage: paths for stage, paths in garbage.artefacts.items() if paths}


def _who(store: Store, key: str) -> tuple[str, str] | None:
    try:
        (subject,) = store.read(ingest.STAGE, key, Subject)
    except (UserError, ValueError):
        return None  # damaged: of no use to anybody
    return subject.id, subject.digest


def _note(
    store: Store, garbage: Garbage, group: dict[str, int], path: str, size: int, min_age: float
) -> bool:
    """Add a path unless it is too young; whether it was added."""
    age = store.files.age(path) if min_age > 0 else None
    if min_age > 0 and (age is None or age < min_age):
        garbage.young += 1
        return False
    group[path] = size
    return True


def _sweep(store: Store, garbage: Garbage, reached: Reached) -> None:
    """Versions first, so that none is ever there without what it rests on."""
    noted = not garbage.bytes or note_sweep(store)
    for name in garbage.versions:
        remove_version(store, name)
        reached("version")
    for path in garbage.shards:
        store.files.remove(path)
        reached("shard")
    # An artefact before its seconds: an artefact without them would cost nothing, it says.
    for paths in garbage.artefacts.values():
        for path in sorted(paths, key=lambda file: file.endswith(".json")):
            store.files.remove(path)
            reached("artefact")
    for path in garbage.others:
        store.files.remove(path)
    if not noted:
        note_sweep(store)


def remove_version(store: Store, name: str) -> None:
    """Take a version's folder away: its twin, from which it would come back, then its manifest,
    without which it is no version."""
    folder = f"versions/{name}"
    paths = store.files.listing(folder)
    for path in sorted(paths, key=lambda file: (file != TWIN, file != MANIFEST)):
        store.files.remove(f"{folder}/{path}")
    store.files.prune(folder)
