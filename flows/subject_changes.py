"""`focusdpo subjects`: a root's registry, changed from folders of pictures and told as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.subjects import Subject
from focusdpo.flows.config import GenerateRun
from focusdpo.flows.subject_sources import read_folder
from focusdpo.pipeline import registry
from focusdpo.pipeline.manifests import latest_id, read_manifest
from focusdpo.pipeline.registry import Changed
from focusdpo.pipeline.store import Store
from focusdpo.pipeline.subject_folders import SUFFIXES
from focusdpo.pipeline.version_tables import partitions_of
from focusdpo.pipeline.versions import open_version


@dataclass(frozen=True)
class Done:
    """What `subjects add` or `update` did."""

    changed: Changed
    notes: list[str]
    """What owners should know of their pictures."""


def add(run: GenerateRun, root: str, folders: Sequence[Path]) -> Done:
    """Read folders and register their subjects. UserError, and nothing is registered, when one
    cannot be used or is registered."""
    return _register(run, root, folders, registry.add, create=True)


def update(run: GenerateRun, root: str, folders: Sequence[Path]) -> Done:
    """Read folders anew and replace their subjects. UserError, and nothing is replaced, when one
    cannot be used or is not registered."""
    return _register(run, root, folders, registry.update, create=False)


def remove(root: str, names: Sequence[str]) -> Changed:
    """Take subjects out of the next version."""
    return registry.remove(Store.open(root, create=False), names)


def _register(
    run: GenerateRun, root: str, folders: Sequence[Path], change: Callable[..., Changed], *,
    create: bool,
) -> Done:  # fmt: skip
    by_parent = _subject_folders(folders)
    store = Store.open(root, create=create)
    subjects: list[Subject] = []
    fatal: list[str] = []
    notes: list[str] = []
    for parent, names in by_parent.items():
        found = read_folder(run, store, parent, only=names)
        subjects += found.subjects
        for one in found.problems:
            (fatal if one.fatal else notes).append(f"{one.subject}: {one.message}")
    if fatal:
        raise UserError(
            f"{len(fatal)} of {len(fatal) + len(subjects)} subjects cannot be used, so none was "
            "registered: " + " | ".join(fatal)
        )
    return Done(change(store, subjects, run.ingest), notes)


def _subject_folders(folders: Sequence[Path]) -> dict[Path, set[str]]:
    """Parent folder -> names of the subjects' folders in it. A folder that holds pictures is a
    subject; one that holds folders, many."""
    chosen: list[Path] = []
    for folder in (one.expanduser().absolute() for one in folders):
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; give folders of pictures")
        inside = sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__")))
        within = [path for path in inside if path.is_dir()]
        if any(path.suffix.lower() in SUFFIXES for path in inside) or not within:
            chosen.append(folder)
        else:
            chosen += within
    twice = [name for name, count in Counter(one.name for one in set(chosen)).items() if count > 1]
    if twice:
        raise UserError(f"subjects {sorted(twice)} are given twice; rename or leave one out")
    by_parent: dict[Path, set[str]] = {}
    for one in chosen:
        by_parent.setdefault(one.parent, set()).add(one.name)
    return by_parent


def listing(root: str) -> dict[str, Any]:
    """The registered subjects (or, in a root without a registry, those of the newest version) with
    what the newest version has of each."""
    store = Store.open(root, create=False)
    state = registry.read_registry(store)
    latest = latest_id(store)
    manifest = None if latest is None else read_manifest(store, latest)
    if state is not None:
        known = [vars_of(one) for one in state.entries.values()]
    else:
        known = [] if manifest is None else [dict(one) for one in manifest["subjects"]]
    partitions, pairs = _counts(store, latest)
    built = {} if manifest is None else {one["id"]: one["digest"] for one in manifest["subjects"]}
    return {
        "root": root,
        "registry": None if state is None else state.number,
        "version": latest,
        "subjects": [
            {
                "id": one["id"],
                "class_name": one["class_name"],
                "pictures": one["references"],
                "licence": one["licence"],
                "partitions": partitions[one["id"]],
                "pairs": pairs[one["id"]],
                "state": _state(one, built),
            }
            for one in known
        ],
        "leaving": sorted(built.keys() - {one["id"] for one in known}),
    }


def vars_of(entry: registry.Entry) -> dict[str, Any]:
    """An entry's fields that a manifest's subject has, too."""
    names = ("id", "class_name", "licence", "digest", "references")
    return {name: getattr(entry, name) for name in names}


def _state(one: Mapping[str, Any], built: Mapping[str, str]) -> str:
    if one["id"] not in built:
        return "new"
    return "built" if built[one["id"]] == one["digest"] else "changed"


def _counts(store: Store, latest: str | None) -> tuple[Counter[str], Counter[str]]:
    """Subject -> partitions and pairs in a version."""
    partitions: Counter[str] = Counter()
    pairs: Counter[str] = Counter()
    if latest is None:
        return partitions, pairs
    rows = partitions_of(store, latest)
    for row in rows:
        partitions.update(row.subject_ids)
        pairs.update(dict.fromkeys(row.subject_ids, row.pairs))
    if not rows:  # a version from before partitions were recorded: those with pairs
        seen = {}
        for one in open_version(store, latest).rows:
            seen[one.partition] = one.subject_ids
            pairs.update(one.subject_ids)
        for members in seen.values():
            partitions.update(members)
    return partitions, pairs
