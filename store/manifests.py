"""Which dataset versions a root has, what each says of itself, and the tables beside its index.

versions/<id>/twin.tar holds every file whose digest the version's manifest tells, the manifest, and
last the digest of all that; from it a damaged file is mended. It is written when the manifest is
there and taken away before it, so a twin without a manifest tells that the manifest was lost;
versions of before there were twins have none and tell no digests.

The tables (partitions with their yields, lineage) are handled as columns, because a large version
rests on hundreds of thousands of artefacts, of which a new version shares nearly all with its
parent.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from focusdpo.data_schemas.errors import UserError, run_doctor
from focusdpo.data_schemas.pairs import ReviewedPair
from focusdpo.data_schemas.runs import Artefact
from focusdpo.data_schemas.shards import IndexRow
from focusdpo.data_schemas.tables import arrow_table, from_parquet, to_parquet
from focusdpo.store import tars
from focusdpo.store.artefacts import Store
from focusdpo.store.keys import DIGEST, KEY, SHARD, STAGE, digest, parsed

LATEST = "LATEST"
MANIFEST = "manifest.json"
TWIN = "twin.tar"
BUILD = "build.json"
"""What the build that made a version brought; made anew when it is absent."""
SHORTEST = 4
"""Letters of an id that may stand for all of it."""
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


def full_id(store: Store, name: str) -> str:
    """The id of the one version whose id begins so; what is given where none does. UserError where
    several do."""
    there = version_names(store)
    meant = (
        [version_name for version_name in there if version_name.startswith(name)]
        if len(name) >= SHORTEST
        else []
    )
    if name in there or not meant:
        return name
    if len(meant) > 1:
        raise UserError(f"{store.root}: version '{name}' may be any of {', '.join(meant)}")
    return meant[0]


def versions_of(store: Store) -> list[Mapping[str, Any]]:
    """Manifests of all whole versions, oldest first, the newest (LATEST) last. UserError when one
    has lost its manifest: it is not to be taken for none."""
    latest = latest_id(store)
    manifests = []
    for name in version_names(store):
        if store.files.exists(f"versions/{name}/{MANIFEST}"):
            manifests.append(read_manifest(store, name))
        elif store.files.exists(f"versions/{name}/{TWIN}"):
            raise _damaged(store, f"versions/{name}/{MANIFEST}", "missing")
    return sorted(manifests, key=lambda m: (m["id"] == latest, m["created"], m["id"]))


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
        message = f"{store.root}/versions/{name}: no such version; there are {there or 'none'}"
        if _is_latest(store, name):
            message += f", but LATEST names it. {run_doctor(store.root)}"
        raise UserError(message) from error
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
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    return text.encode(errors="backslashreplace")  # JSON's escape, for paths that are not UTF-8


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
    file_digests = _digests_in(manifest, version)
    files = {MANIFEST: manifest}
    for name, wanted in (file_digests or {}).items():
        data = _read(store, version, name)
        if data is None or digest(data) != wanted:
            raise damaged_file(store, version, name)
        files[name] = data
    if file_digests:
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
    file_digests = _digests_in(manifest, version)
    if file_digests is None or manifest is None:
        raise _lost(store, version, [MANIFEST])
    copies = _legible(twin or b"")
    right: dict[str, bytes] = {}
    damaged: dict[str, bytes] = {}
    for name, wanted in file_digests.items():
        stored, copy = _read(store, version, name), copies.get(name)
        if stored is not None and digest(stored) == wanted:
            right[name] = stored
        elif copy is not None and digest(copy) == wanted:
            right[name] = damaged[name] = copy
    if missing := sorted(file_digests.keys() - right.keys()):
        raise _lost(store, version, missing)
    if file_digests:
        damaged[TWIN] = twin_bytes({**right, MANIFEST: manifest})
    return damaged


def _read(store: Store, version: str, name: str) -> bytes | None:
    try:
        return store.files.read(f"versions/{version}/{name}")
    except FileNotFoundError:
        return None


def _legible(data: bytes) -> dict[str, bytes]:
    """The files in a twin up to where it cannot be read."""
    files: dict[str, bytes] = {}
    try:
        for name, content in tars.members(data, TWIN):
            if FILE.fullmatch(name):
                files[name] = content
    except UserError:
        return files
    return files


def _digests_in(manifest: bytes | None, version: str) -> Mapping[str, str] | None:
    """What a manifest tells; empty for one that tells no digests, None for one that is damaged."""
    try:
        values: Any = parsed(manifest or b"")
        file_digests = dict(values.get("digests", {}))
        dated = values["id"] == version and isinstance(values["created"], str)
        return file_digests if dated and all(map(FILE.fullmatch, file_digests)) else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _lost(store: Store, version: str, names: list[str]) -> UserError:
    folder = f"{store.root}/versions/{version}"
    return UserError(
        f"{folder}: {', '.join(names)} cannot be mended, because its copy in {TWIN} is missing or "
        f"damaged, too; remove the folder {folder} and build again"
    )


INDEX = "index.parquet"
LINEAGE = "lineage.parquet"
PARTITIONS = "partitions.parquet"
REVIEWED = "reviewed.parquet"
Named = tuple[str, str]
"""Stage and artefact key."""
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionRow:
    """A finished partition of a version: a set of subjects and what became of it."""

    partition: str
    subject_ids: tuple[str, ...]
    """Sorted."""
    key: str
    """Of its artefact of stage pair."""
    samples: str
    """Digest of what its samples depend on besides the pairs."""
    pairs: int
    rejects: dict[str, int]
    """Reason -> count."""


def rows_of(store: Store, version: str, name: str, row_type: type[R]) -> list[R] | None:
    """The records of one of a version's tables; None where the version never had it. UserError when
    it is damaged or missing."""
    data = _table_data(store, version, name)
    if data is None:
        return None
    where = f"{store.root}/versions/{version}/{name}"
    try:
        rows = from_parquet(data, row_type, where)
    except UserError as error:
        if _is_damaged(store, version, name, data):
            raise damaged_file(store, version, name) from error
        raise
    for shard in {row.shard for row in rows if isinstance(row, IndexRow)}:
        if not SHARD.fullmatch(shard):
            raise UserError(f"{where}: no shard can be called {shard[:80]!r}")
    for row in rows:
        if isinstance(row, Artefact) and not (
            STAGE.fullmatch(row.stage) and KEY.fullmatch(row.key)
        ):
            raise UserError(f"{where}: no artefact can be called {f'{row.stage}/{row.key}'!r:.80}")
    return rows


def partitions_of(store: Store, version: str) -> list[PartitionRow]:
    """The partitions of a version; none where it was written before these were recorded."""
    return rows_of(store, version, PARTITIONS, PartitionRow) or []


def reviewed_of(store: Store, version: str) -> list[ReviewedPair]:
    """The pairs that reviews have left out of a version or exchanged in it."""
    return rows_of(store, version, REVIEWED, ReviewedPair) or []


def lineage_columns(store: Store, version: str, columns: Sequence[str] | None) -> Any:
    """A version's lineage, or some of its columns, as an Arrow table; None when it has none.
    UserError when it is not readable, or names what no artefact can be called."""
    import pyarrow as pa

    data = _table_data(store, version, LINEAGE)
    if data is None:
        return None
    try:
        table = arrow_table(data, columns)
        _refuse_names(table, f"{store.root}/versions/{version}/{LINEAGE}")
        return table
    except (pa.ArrowException, OSError) as error:
        if _is_damaged(store, version, LINEAGE, data):
            raise damaged_file(store, version, LINEAGE) from error
        raise UserError(
            f"{store.root}/versions/{version}/{LINEAGE}: not a readable Parquet table ({error}); "
            "build again with another setting, or remove the version"
        ) from error


def _refuse_names(table: Any, where: str) -> None:
    """Stages and keys become paths. Hundreds of thousands of rows: by columns."""
    import pyarrow.compute as pc

    for column, name in (("stage", STAGE), ("key", KEY)):
        if column not in table.column_names:
            continue
        fits = pc.match_substring_regex(table[column], f"^(?:{name.pattern})$").fill_null(False)
        if not pc.all(fits).as_py():
            wrong = table[column].filter(pc.invert(fits))[0].as_py()
            raise UserError(f"{where}: no artefact can be called {wrong!r:.80}, its {column}")


def _table_data(store: Store, version: str, name: str) -> bytes | None:
    try:
        return store.files.read(f"versions/{version}/{name}")
    except FileNotFoundError:
        if name in _told_digests(store, version):
            raise damaged_file(store, version, name) from None
        return None


def _is_damaged(store: Store, version: str, name: str, data: bytes) -> bool:
    """Whether a table that cannot be read is another one than was written; if not, this focusdpo
    does not know its columns."""
    return _told_digests(store, version).get(name, digest(data)) != digest(data)


def _told_digests(store: Store, version: str) -> Mapping[str, str]:
    if not store.files.exists(f"versions/{version}/{MANIFEST}"):
        return {}
    file_digests: Mapping[str, str] = read_manifest(store, version).get("digests", {})
    return file_digests


def lineage_keys(store: Store, version: str) -> dict[str, set[str]]:
    """Stage -> keys of the artefacts that a version rests on."""
    table = lineage_columns(store, version, ["stage", "key"])
    keys: dict[str, set[str]] = {}
    if table is None:
        return keys
    for stage, key in zip(table["stage"].to_pylist(), table["key"].to_pylist(), strict=True):
        keys.setdefault(stage, set()).add(key)
    return keys


def lineage_table(store: Store, artefacts: Collection[Named], parent: str | None) -> Any:
    """What is known of the artefacts, by stage and key, as an Arrow table; only those that the
    parent does not rest on are read. UserError when one is absent or damaged."""
    import pyarrow as pa

    known = None if parent is None else _known(store, parent, set(artefacts))
    had: set[Named] = set()
    if known is not None:
        had = set(zip(known["stage"].to_pylist(), known["key"].to_pylist(), strict=True))
    new = _as_table([store.artefact(*named) for named in sorted(set(artefacts) - had)])
    whole = new if known is None else pa.concat_tables([known, new])
    return whole.sort_by([("stage", "ascending"), ("key", "ascending")])


def without(table: Any, dropped: Collection[Named]) -> Any:
    """The lineage but for some artefacts."""
    return _chosen(table, set(dropped), inside=False)


def table_bytes(table: Any) -> bytes:
    """Parquet bytes, as `data_schemas.tables` writes and reads them."""
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    plain = table.combine_chunks().replace_schema_metadata(None)
    pq.write_table(plain, sink, compression="zstd", use_dictionary=False, write_page_checksum=True)
    return sink.getvalue()


def stage_summary(table: Any) -> dict[str, dict[str, Any]]:
    """Stage -> how many artefacts and records, their seconds, and the code and models behind
    them."""
    sums = table.select(["stage", "count", "seconds"]).group_by("stage", use_threads=False)
    totals = sums.aggregate([("count", "count"), ("count", "sum"), ("seconds", "sum")])
    first: dict[str, Mapping[str, str]] = {}
    for stage in totals["stage"].to_pylist():
        at = table["stage"].index(stage).as_py()
        first[stage] = dict(sorted(table["versions"][at].as_py()))
    return {
        row["stage"]: {
            "artefacts": row["count_count"],
            "records": row["count_sum"],
            "seconds": round(row["seconds_sum"], 3),
            "versions": first[row["stage"]],
        }
        for row in sorted(totals.to_pylist(), key=lambda row: row["stage"])
    }


def _known(store: Store, parent: str, wanted: set[Named]) -> Any:
    table = lineage_columns(store, parent, None)
    if table is None or not table.schema.equals(_as_table([]).schema):
        return None  # of another focusdpo: its artefacts are read again
    return _chosen(table, wanted, inside=True)


def _chosen(table: Any, names: set[Named], *, inside: bool) -> Any:
    import pyarrow as pa

    pairs = zip(table["stage"].to_pylist(), table["key"].to_pylist(), strict=True)
    return table.filter(pa.array([(pair in names) == inside for pair in pairs], pa.bool_()))


def _as_table(artefacts: Sequence[Artefact]) -> Any:
    return arrow_table(to_parquet(artefacts, Artefact))
