"""Which dataset versions a root has, and what each says of itself (versions.py has the rest)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.store import Store


def latest_id(store: Store) -> str | None:
    """Id of the newest version; None before the first."""
    try:
        return store.files.read("LATEST").decode().strip() or None
    except FileNotFoundError:
        return None


def versions_of(store: Store) -> list[Mapping[str, Any]]:
    """Manifests of all whole versions, oldest first, the newest (LATEST) last."""
    latest = latest_id(store)
    found = []
    for name in store.files.names("versions"):
        if store.files.exists(f"versions/{name}/manifest.json"):
            found.append(read_manifest(store, name))
    return sorted(found, key=lambda one: (one["id"] == latest, one["created"], one["id"]))


def read_manifest(store: Store, name: str) -> Mapping[str, Any]:
    """What a version says of itself; UserError when there is no such version."""
    where = f"{store.root}/versions/{name}"
    try:
        manifest: Mapping[str, Any] = json.loads(store.files.read(f"versions/{name}/manifest.json"))
    except FileNotFoundError as error:
        there = store.files.names("versions")
        raise UserError(f"{where}: no such version; there are {there or 'none'}") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}/manifest.json: damaged ({error}); remove {where} and build again"
        ) from error
    return manifest


def is_version_of(store: Store, name: str, request: str) -> bool:
    """Whether a build that asked for `request` (a digest) ended in this version, whole."""
    return store.files.exists(f"versions/{name}/requests/{request}")


def note_request(store: Store, name: str, request: str) -> None:
    """Remember that a build that asked for `request` ended in this version, whole."""
    path = f"versions/{name}/requests/{request}"
    if not store.files.exists(path):
        store.files.write(path, b"{}\n", sync=False)
