"""`focusdpo export dataset`: a dataset version as a folder that others load.

README.md                            the dataset card
data/<split>-*.parquet               the pairs for `datasets.load_dataset`
webdataset/<split>/pairs-*.tar       the shards for webdataset
pictures/*.png                       examples that the card shows
lineage.json, config.yaml            how it came about
SHA256SUMS                           of all files
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import yaml

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.shards import IndexRow, Split
from focusdpo.flows.sharing.folder import whole_folder, write_sums
from focusdpo.pipeline import tars
from focusdpo.pipeline.shard import read_bytes
from focusdpo.pipeline.store import Store
from focusdpo.pipeline.versions import DatasetVersion, open_version

SPLITS: dict[Split, str] = {"train": "train", "val": "validation"}
"""Ours -> the names that `datasets` and the Hub know."""
CARD = "README.md"
_LOCAL = ("root", "subjects")
"""Settings that name folders of whoever built it: nobody else's business."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exported:
    """What was written."""

    out: Path
    version: str
    pairs: dict[str, int]
    """By split."""
    files: int
    bytes: int
    unlicensed: list[str]
    """Subjects that state no licence."""


def export_dataset(
    root: str | Path, out: Path, version: str = "latest", *, allow_unlicensed: bool = False
) -> Exported:
    """Write a version into the new folder `out`, which appears whole. Same version, same bytes.

    UserError for an `out` that is not free, a damaged sample, an empty version, and a subject
    without a licence unless `allow_unlicensed`.
    """
    from focusdpo.flows.sharing.dataset_card import card, example_pictures
    from focusdpo.flows.sharing.dataset_parquet import write_parquet

    found = open_version(root, version)
    unlicensed = check_licences(found, allow_unlicensed)
    if not found.rows:
        raise UserError(f"{found.store.root}: version {found.id} has no pairs, nothing to export")
    counts = {}
    with whole_folder(out) as folder:
        for split, name in SPLITS.items():
            rows = found.rows_of(split)
            if rows:
                counts[name] = len(rows)
                write_parquet(found.store, rows, folder / "data", name)
                _copy_shards(found.store, rows, folder / "webdataset" / name)
        pictures = example_pictures(found, folder / "pictures")
        (folder / "lineage.json").write_text(_json(lineage(found)), encoding="utf-8")
        settings = without_paths(found.manifest["config"])
        (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), "utf-8")
        (folder / CARD).write_text(card(found, counts, pictures), encoding="utf-8")
        write_sums(folder)
    written = [path for path in Path(out).rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in written)
    log.info("%s: version %s, %d files, %d bytes", out, found.id, len(written), size)
    return Exported(Path(out), found.id, counts, len(written), size, unlicensed)


def check_licences(version: DatasetVersion, allowed: bool) -> list[str]:
    """Subjects that state no licence; UserError when there are any, unless `allowed`."""
    names = [one["id"] for one in version.manifest["subjects"] if not one["licence"].strip()]
    if names and not allowed:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise UserError(
            f"{version.store.root}: no licence is stated for {shown}; write `licence:` into their "
            "subject.yaml, run `focusdpo subjects update` and build again (nothing is computed), "
            "or export with --allow-unlicensed, and the card says so"
        )
    return names


def lineage(version: DatasetVersion) -> dict[str, Any]:
    """How a version came about, without paths of the machine that made it."""
    manifest = version.manifest
    kept = (
        "id", "parent", "created", "schema_version", "packages", "pairs", "rejects", "partitions",
        "reviews", "stages", "seeds", "shards",
    )  # fmt: skip
    told = {name: manifest[name] for name in kept if name in manifest}
    names = ("id", "class_name", "references", "licence", "digest")
    told["subjects"] = [{name: one[name] for name in names} for one in manifest["subjects"]]
    return told


def without_paths(value: Any, *, top: bool = True) -> Any:
    """Settings without the folders of whoever built it: of an absolute path the last name stays."""
    if isinstance(value, Mapping):
        return {
            name: without_paths(one, top=False)
            for name, one in value.items()
            if not (top and name in _LOCAL)
        }
    if isinstance(value, list):
        return [without_paths(one, top=False) for one in value]
    if isinstance(value, str) and (PurePath(value).is_absolute() or value.startswith("~")):
        return f".../{PurePath(value).name}"
    return value


def _copy_shards(store: Store, rows: Sequence[IndexRow], folder: Path) -> None:
    """Shards byte for byte; one that also holds retired samples without these, because who reads
    it elsewhere has no index."""
    folder.mkdir(parents=True)
    for name in sorted({row.shard for row in rows}):
        mine = sorted((row for row in rows if row.shard == name), key=lambda row: row.offset)
        with (folder / name).open("xb") as sink:
            written = 0
            for row in mine:
                written += sink.write(read_bytes(store, row))
            tars.finish(sink, written)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
