"""Which dataset versions a root has, and what each says of itself (versions.py has the rest)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from focusdpo.data_schemas.errors import UserError, run_doctor
from focusdpo.store.artefacts import Store
from focusdpo.store.keys import DIGEST, KEY, SHARD, parsed

LATEST = "LATEST"
MANIFEST = "manifest.json"
TWIN = "twin.tar"
"""See twins.py."""
NAME = re.compile(r"[A-Za-z0-9_-]+")
"""What may follow `versions/`: whatever LATEST holds, no path leads out of there."""


def latest_id(store: Store) -> str | None:
    """Id of the newest version; None before the first. UserError when LATEST was damaged."""
    try:
        data = store.files.read(LATEST, 0, 256)
    except FileNotFoundError:
        if latest_is_lost(store):
            raise _damaged(store, LATEST, "missing, and there are versions") from None
        return None
    return named_by(store, data)


def named_by(store: Store, latest: bytes) -> str:
    """The id that the content of LATEST says."""
    name = latest.decode("ascii", "replace").strip()
    if not NAME.fullmatch(name):
        raise _damaged(store, LATEST, "it names no version")
    return name


def latest_is_lost(store: Store) -> bool:
    """Whether a root without LATEST has had one: a first build that was stopped leaves one version
    of which no build has told that it is done."""
    whole = [
        name for name in version_names(store) if store.files.exists(f"versions/{name}/{MANIFEST}")
    ]
    return len(whole) > 1 or any(store.files.names(f"versions/{name}/requests") for name in whole)


def version_names(store: Store) -> list[str]:
    """Folders that may be versions, sorted; a stranger's file beside them is none."""
    return [name for name in store.files.names("versions") if NAME.fullmatch(name)]


def versions_of(store: Store) -> list[Mapping[str, Any]]:
    """Manifests of all whole versions, oldest first, the newest (LATEST) last. UserError when one
    has lost its manifest: it is not to be taken for none."""
    latest = latest_id(store)
    found = []
    for name in version_names(store):
        if store.files.exists(f"versions/{name}/{MANIFEST}"):
            found.append(read_manifest(store, name))
        elif store.files.exists(f"versions/{name}/{TWIN}"):
            raise _damaged(store, f"versions/{name}/{MANIFEST}", "missing")
    return sorted(found, key=lambda one: (one["id"] == latest, one["created"], one["id"]))


def read_manifest(store: Store, name: str) -> Mapping[str, Any]:
    """What a version says of itself; UserError when there is no such version, or it names a file
    that can be none of ours."""
    if not NAME.fullmatch(name):
        raise UserError(f"{store.root}: {name[:80]!r} is no id of a version")
    path = f"versions/{name}/{MANIFEST}"
    try:
        manifest: Any = parsed(store.files.read(path))
    except FileNotFoundError as error:
        if store.files.exists(f"versions/{name}/{TWIN}"):
            raise _damaged(store, path, "missing") from error
        there = version_names(store)
        told = f"{store.root}/versions/{name}: no such version; there are {there or 'none'}"
        if _is_latest(store, name):
            told += f", but LATEST names it. {run_doctor(store.root)}"
        raise UserError(told) from error
    except ValueError as error:
        raise _damaged(store, path, str(error)) from error
    if what := _misstated(manifest, name):
        raise _damaged(store, path, what)
    return manifest


def _misstated(manifest: Any, name: str) -> str | None:
    """What is wrong with a manifest that is JSON: one of a stranger's leads nowhere outside."""
    if not isinstance(manifest, dict):
        return "not an object"
    try:
        if manifest["id"] != name or not isinstance(manifest["created"], str):
            return f"it is not the manifest of version {name}"
        for shard in manifest["shards"]:
            if not SHARD.fullmatch(shard["name"]):
                return f"no shard can be called {shard['name'][:80]!r}"
            if not DIGEST.fullmatch(shard["blake2b"]) or not isinstance(shard["bytes"], int):
                return f"shard {shard['name']} has no size and digest"
        for subject in manifest["subjects"]:
            if not KEY.fullmatch(subject["artefact"]) or not isinstance(subject["id"], str):
                return f"no artefact can be called {subject['artefact'][:80]!r}"
    except (KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """As it is written."""
    return (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode()


def damaged_file(store: Store, version: str, name: str) -> UserError:
    """A file that a version's manifest tells of is missing or has other bytes."""
    there = store.files.exists(f"versions/{version}/{name}")
    return _damaged(
        store, f"versions/{version}/{name}", "not what was written" if there else "missing"
    )


def _is_latest(store: Store, name: str) -> bool:
    tagged = store.files.tagged(LATEST)
    return tagged is not None and tagged[0].strip() == name.encode()


def _damaged(store: Store, path: str, what: str) -> UserError:
    return UserError(f"{store.root}/{path}: damaged ({what}). {run_doctor(store.root)}")


def is_version_of(store: Store, name: str, request: str) -> bool:
    """Whether a build that asked for `request` (a digest) ended in this version, whole."""
    return store.files.exists(f"versions/{name}/requests/{request}")


def note_request(store: Store, name: str, request: str) -> None:
    """Remember that a build that asked for `request` ended in this version, whole."""
    path = f"versions/{name}/requests/{request}"
    if not store.files.exists(path):
        store.files.write(path, b"{}\n", sync=False)
