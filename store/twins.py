"""The twin of a version: a second copy of its own files, from which a damaged one is mended.

versions/<id>/twin.tar holds every file whose digest the version's manifest tells, the manifest, and
last the digest of all that. It is written when the manifest is there and taken away before it, so a
twin without a manifest tells that the manifest was lost; versions of before there were twins have
none and tell no digests.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.store import tars
from focusdpo.store.artefacts import Store
from focusdpo.store.keys import digest, parsed
from focusdpo.store.manifests import MANIFEST, TWIN, damaged_file, read_manifest

SEAL = "blake2b"
"""The member with the digest; no file of a version is called so."""
FILE = re.compile(r"[a-z]+\.(parquet|yaml|json)")
"""Names that a twin may hold: never a path to somewhere else."""


def digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """What a manifest tells of the files beside it."""
    return {name: digest(data) for name, data in sorted(files.items())}


def twin_bytes(files: Mapping[str, bytes]) -> bytes:
    """A tar of the files by name, sealed with their digest; depends on the files alone."""
    packed, _ = tars.pack(files)
    sink = io.BytesIO()
    written = sink.write(packed) + tars.append(sink, SEAL, digest(packed).encode())
    tars.finish(sink, written)
    return sink.getvalue()


def read_twin(data: bytes) -> dict[str, bytes] | None:
    """The files in a twin; None when one byte of it is not what was written."""
    files = _legible(data)
    return files if twin_bytes(files) == data else None


def ensure_twin(store: Store, version: str) -> None:
    """Give a version its twin, unless it has one or its manifest tells no digests. UserError when a
    file is not what was written."""
    path = f"versions/{version}/{TWIN}"
    if store.files.exists(path):
        return
    read_manifest(store, version)
    manifest = store.files.read(f"versions/{version}/{MANIFEST}")
    told = _digests_in(manifest, version)
    files = {MANIFEST: manifest}
    for name, wanted in (told or {}).items():
        data = _read(store, version, name)
        if data is None or digest(data) != wanted:
            raise damaged_file(store, version, name)
        files[name] = data
    if told:
        store.files.write(path, twin_bytes(files))


def drop_twin(store: Store, version: str) -> None:
    """Before a version is changed or taken away."""
    store.files.remove(f"versions/{version}/{TWIN}")


def refuse_damaged(store: Store, version: str) -> None:
    """UserError when a file of a version is not what was written."""
    for name in remedy(store, version):
        raise damaged_file(store, version, name)


def remedy(store: Store, version: str) -> dict[str, bytes]:
    """File name -> its right bytes, of each file of a version that is not what was written; empty
    when it is whole, or never was.

    A whole twin is right. Without one, files are right that agree with the manifest, and so are
    copies in what is left of a damaged twin. UserError when neither helps.
    """
    twin = _read(store, version, TWIN)
    kept = None if twin is None else read_twin(twin)
    if kept is not None:
        return {name: data for name, data in kept.items() if _read(store, version, name) != data}
    manifest = _read(store, version, MANIFEST)
    if manifest is None and twin is None:
        return {}
    told = _digests_in(manifest, version)
    if told is None or manifest is None:
        raise _lost(store, version, [MANIFEST])
    copies = _legible(twin or b"")
    right: dict[str, bytes] = {}
    damaged: dict[str, bytes] = {}
    for name, wanted in told.items():
        own, copy = _read(store, version, name), copies.get(name)
        if own is not None and digest(own) == wanted:
            right[name] = own
        elif copy is not None and digest(copy) == wanted:
            right[name] = damaged[name] = copy
    if missing := sorted(told.keys() - right.keys()):
        raise _lost(store, version, missing)
    if told:
        damaged[TWIN] = twin_bytes({**right, MANIFEST: manifest})
    return damaged


def _read(store: Store, version: str, name: str) -> bytes | None:
    try:
        return store.files.read(f"versions/{version}/{name}")
    except FileNotFoundError:
        return None


def _legible(data: bytes) -> dict[str, bytes]:
    """The files in a twin up to where it cannot be read."""
    found: dict[str, bytes] = {}
    try:
        for name, content in tars.members(data, TWIN):
            if FILE.fullmatch(name):
                found[name] = content
    except UserError:
        return found
    return found


def _digests_in(manifest: bytes | None, version: str) -> Mapping[str, str] | None:
    """What a manifest tells; empty for one that tells no digests, None for one that is damaged."""
    try:
        values: Any = parsed(manifest or b"")
        told = dict(values.get("digests", {}))
        dated = values["id"] == version and isinstance(values["created"], str)
        return told if dated and all(map(FILE.fullmatch, told)) else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _lost(store: Store, version: str, names: list[str]) -> UserError:
    folder = f"{store.root}/versions/{version}"
    return UserError(
        f"{folder}: {', '.join(names)} cannot be mended, because its copy in {TWIN} is missing or "
        f"damaged, too; remove the folder {folder} and build again"
    )
