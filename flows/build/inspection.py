"""`focusdpo inspect`: what a dataset holds, and where a pair came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from focusdpo.data_schemas.errors import UserError, counted
from focusdpo.data_schemas.pairs import Pair
from focusdpo.flows.build.changes import size
from focusdpo.flows.build.worth import in_numbers, remedy, worth_of
from focusdpo.pipeline.audit import is_swapped, original_id, swapped
from focusdpo.pipeline.shard import FOLDER as SHARDS
from focusdpo.pipeline.upkeep.garbage import find_garbage
from focusdpo.store.artefacts import Store
from focusdpo.store.manifests import lineage_keys
from focusdpo.store.versions import DatasetVersion, lineage_of, open_version

SUBJECTS_SHOWN = 40


def overview(root: str, version: str = "latest", *, verify: bool = False) -> dict[str, Any]:
    """Versions, stages, yields, rejects and shards of a dataset."""
    store = Store.open(root, create=False)
    opened = open_version(store, version)
    if verify:
        opened.verify()
    manifest = opened.manifest
    sizes = store.files.listing("stages")
    return {
        "root": root,
        "version": opened.id,
        "versions": store.files.names("versions"),
        "created": manifest.get("created"),
        "parent": manifest.get("parent"),
        "pairs": manifest["pairs"],
        "rejects": manifest["rejects"],
        "stages": dict(_stages(store, opened, sizes)),
        "seconds": round(sum(stage["seconds"] for stage in manifest["stages"].values()), 3),
        "subjects": {subject["id"]: subject["class_name"] for subject in manifest["subjects"]},
        "pairs_by_subject": worth_of(opened).by_subject,
        "licences": dict(
            Counter(subject["licence"] or "not told" for subject in manifest["subjects"])
        ),
        "shards": {shard["name"]: shard["pairs"] for shard in manifest["shards"]},
        "bytes": sum(shard["bytes"] for shard in manifest["shards"]),
        "root_bytes": {
            "artefacts": sum(sizes.values()),
            "shards": sum(store.files.listing(SHARDS).values()),
            "versions": sum(store.files.listing("versions").values()),
            "unreferenced": find_garbage(store, keep_versions=None, min_age=0).bytes,
        },
        "purged": manifest.get("purged", []),
        "verified": verify,
    }


def _stages(
    store: Store, version: DatasetVersion, sizes: Mapping[str, int]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Per stage of a version: how much there is, what it cost to compute and what it costs to
    keep."""
    keys = lineage_keys(store, version.id)
    for stage, entry in version.manifest["stages"].items():
        paths = (f"{stage}/{key[:2]}/{key}.tar" for key in keys.get(stage, ()))
        figures = {name: entry[name] for name in ("artefacts", "records", "seconds")}
        yield stage, {**figures, "bytes": sum(sizes.get(path, 0) for path in paths)}


def pair_lineage(root: str, version: str, pair_id: str) -> dict[str, Any]:
    """A pair's record, the sample that holds it, and every artefact behind it."""
    store = Store.open(root, create=False)
    opened = open_version(store, version)
    row = next((row for row in opened.rows if row.pair_id == pair_id), None)
    if row is None:
        near = [row.pair_id for row in opened.rows[:3]]
        raise UserError(
            f"{root}: version {opened.id} has no pair '{pair_id}'; it has {', '.join(near)}, ..."
        )
    artefacts = [artefact for artefact in lineage_of(opened) if artefact.partition == row.partition]
    return {
        "root": root,
        "version": opened.id,
        "pair": asdict(_pair_record(opened, row.partition, pair_id)),
        "sample": {"shard": row.shard, "offset": row.offset, "size": row.size, "split": row.split},
        "artefacts": [
            {
                "stage": artefact.stage,
                "key": artefact.key,
                "records": artefact.count,
                "seconds": round(artefact.seconds, 3),
                "versions": artefact.versions,
            }
            for artefact in artefacts
        ],
    }


def _pair_record(version: DatasetVersion, partition: str, pair_id: str) -> Pair:
    for artefact in lineage_of(version):
        if artefact.stage == "pair" and artefact.partition == partition:
            for pair in version.store.read("pair", artefact.key, Pair):
                if pair.id == original_id(pair_id):
                    return swapped(pair) if is_swapped(pair_id) else pair
    raise UserError(
        f"{version.store.root}: the artefact that made pair {pair_id} is gone; its shard still "
        "holds the sample"
    )


def as_table(shown: Mapping[str, Any]) -> Iterator[str]:
    """An overview as tables: subjects, rejects, stages, what lies on the disk."""
    parent = f", after {shown['parent']}" if shown["parent"] else ""
    number = len(shown["versions"])
    yield (
        f"{shown['root']}, version {shown['version']} of {str(shown['created'])[:16]}{parent}; "
        f"{number} version{'s' * (number > 1)}" + (", every byte checked" * shown["verified"])
    )
    pairs = shown["pairs"]
    yield counted(pairs["total"], "pair") + "".join(
        f"; {', '.join(f'{name} {count}' for name, count in pairs[group].items())}"
        for group in ("by_split", "by_source")
        if group in pairs
    )
    by_num = {int(num): count for num, count in pairs.get("by_subjects", {}).items()}
    if by_num:
        yield f"pairs with {in_numbers(by_num)}"
    yield ""
    rows = [
        (name, word, shown["pairs_by_subject"][name]) for name, word in shown["subjects"].items()
    ]
    rows.sort(key=lambda row: -row[2])
    yield from _table(("subject", "class", "pairs"), rows[:SUBJECTS_SHOWN])
    if len(rows) > SUBJECTS_SHOWN:
        yield f"and {len(rows) - SUBJECTS_SHOWN} more (focusdpo subjects list)"
    yield f"licences: {', '.join(f'{name} {count}' for name, count in shown['licences'].items())}"
    if shown["rejects"]:
        yield ""
        ranked = sorted(shown["rejects"].items(), key=lambda row: -row[1])
        yield from _table(
            ("rejected because", "count", "what helps"),
            [(name, count, remedy(name)) for name, count in ranked],
        )
    yield ""
    yield from _table(
        ("stage", "results", "records", "seconds", "size"),
        [
            (
                name,
                stage["artefacts"],
                stage["records"],
                f"{stage['seconds']:.1f}",
                size(stage["bytes"]),
            )
            for name, stage in shown["stages"].items()
        ],
    )
    yield f"{shown['seconds']:.1f} s of model computation in all"
    yield ""
    yield (
        f"{counted(len(shown['shards']), 'shard')}, {size(shown['bytes'])}; the root holds "
        + ", ".join(f"{name} {size(count)}" for name, count in shown["root_bytes"].items())
    )
    for note in shown["purged"]:
        yield f"purged: {'  '.join(f'{name}={value}' for name, value in note.items())}"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """Columns as wide as they need; numbers to the right, of the last column no blanks."""
    cells = [[str(cell) for cell in row] for row in [head, *rows]]
    widths = [max(len(row[at]) for row in cells) for at in range(len(head))]
    right = [bool(rows) and not isinstance(rows[0][at], str) for at in range(len(head))]
    for row in cells:
        aligned = [
            cell.rjust(width) if on_right else cell.ljust(width)
            for cell, width, on_right in zip(row, widths, right, strict=True)
        ]
        yield "  ".join(aligned).rstrip()


def as_lines(facts: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Nested facts as indented lines."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield f"{indent}{name}:"
            yield from as_lines(value, indent + "  ")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            yield f"{indent}{name}:"
            for entry in value:
                yield f"{indent}  - " + "  ".join(f"{k}={v}" for k, v in entry.items())
        else:
            yield f"{indent}{name}: {value}"
