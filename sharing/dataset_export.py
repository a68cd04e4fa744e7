"""`focusdpo export dataset`: a dataset version as Parquet, shards and a card that others load.

README.md                            the dataset card
data/<split>-*.parquet               the pairs for `datasets.load_dataset`
webdataset/<split>/*.tar             the shards for webdataset, those of most subjects first
pictures/*.png                       examples that the card shows
lineage.json, config.yaml            how it came about
croissant.json, statistics.json      what machines read of it
SHA256SUMS                           of all files
"""

from __future__ import annotations

import io
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray
from PIL import Image as PillowImage

from focusdpo.data_schemas.errors import UserError, counted
from focusdpo.data_schemas.images import contact_sheet, encode_png, mark_png
from focusdpo.data_schemas.pairs import is_mixed
from focusdpo.data_schemas.shards import IndexRow, ShardSample, Split
from focusdpo.data_schemas.subjects import Origin
from focusdpo.pipeline.subjects.ingest import NOT_TOLD, origin_of
from focusdpo.pipeline.upkeep.garbage import reading
from focusdpo.reports.dataset_section import REASONS
from focusdpo.reports.lineage_section import family_of, stage_models
from focusdpo.reports.metric_texts import code, one_line
from focusdpo.sharing.croissant import (
    CROISSANT,
    STATISTICS,
    as_text,
    croissant,
    shard_statistics,
)
from focusdpo.sharing.hub import whole_folder, write_sums
from focusdpo.store import tars
from focusdpo.store.artefacts import Store
from focusdpo.store.samples import read_bytes, read_fields
from focusdpo.store.versions import DatasetVersion

MAX_BYTES = 256 * 2**20
"""Of samples in one file."""
GROUP = 32
"""Pairs of one row group: what a streaming reader fetches at least."""
PICTURES = {
    "win": "win",
    "lose": "lose",
    "prior": "prior",
    "win_complexity": "complexity",
    "lose_complexity": "losecomplexity",
}
"""Column -> field of the sample."""
PAINTED = ("win.png", "lose.png")
PER_SUBJECT = {"masks": "mask", "references": "ref", "reference_masks": "refmask"}


def features() -> Any:
    """The columns, as `datasets` types them."""
    from datasets import Features, Image, List, Value

    text, number = Value("string"), Value("float32")
    texts, numbers = List(text), List(number)
    return Features(
        {
            "pair_id": text,
            "prompt": text,
            "win": Image(),
            "lose": Image(),
            "references": List(Image()),
            "class_names": texts,
            "subject_ids": texts,
            "captions": texts,
            "masks": List(Image()),
            "reference_masks": List(Image()),
            "prior": Image(),
            "win_complexity": Image(),
            "lose_complexity": Image(),
            "source": text,
            "mode": text,
            "margin": number,
            "win_identity": numbers,
            "lose_identity": numbers,
            "win_leakage_margin": numbers,
            "lose_leakage_margin": numbers,
            "win_clip_t": number,
            "lose_clip_t": number,
            "reason": text,
            "scene_id": text,
            "partition": text,
        }
    )


def write_parquet(
    store: Store, rows: Sequence[IndexRow], folder: Path, split: str, *, marks: bool = True
) -> list[Path]:
    """Write `<split>-00000-of-00001.parquet` and so on. Same rows, same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = features().arrow_schema
    chunks = list(_chunks(rows))
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for at, chunk in enumerate(chunks):
        path = folder / f"{split}-{at:05d}-of-{len(chunks):05d}.parquet"
        # Pictures are compressed already; a page index lets readers skip to a row.
        with pq.ParquetWriter(
            path, schema, compression="zstd", write_page_index=True, store_schema=True
        ) as sink:
            for start in range(0, len(chunk), GROUP):
                records = [
                    record(row, read_fields(store, row), marks=marks)
                    for row in chunk[start : start + GROUP]
                ]
                sink.write_table(pa.Table.from_pylist(records, schema=schema), row_group_size=GROUP)
        written.append(path)
    return written


def record(row: IndexRow, fields: Mapping[str, bytes], *, marks: bool = True) -> dict[str, Any]:
    """One row: the sample's PNGs, the painted ones with `marks`, and what one may choose by."""
    fields = {**fields, **{name: mark_png(fields[name], marks) for name in PAINTED}}
    pair = json.load(io.BytesIO(fields["json"]))["pair"]
    made: dict[str, Any] = {name: pair[name] for name in features() if name in pair}
    made["pair_id"] = row.pair_id
    for column, name in PICTURES.items():
        made[column] = _picture(row, name, fields)
    for column, name in PER_SUBJECT.items():
        made[column] = [_picture(row, f"{name}{i}", fields) for i in range(row.num_subjects)]
    # Of a pair from ranking the record names no prior; its picture is the union of the masks.
    return made


def _picture(row: IndexRow, name: str, fields: Mapping[str, bytes]) -> dict[str, Any]:
    return {"bytes": fields[f"{name}.png"], "path": f"{row.pair_id}.{name}.png"}


def _chunks(rows: Sequence[IndexRow]) -> Iterator[list[IndexRow]]:
    chunk: list[IndexRow] = []
    total = 0
    for row in sorted(rows, key=lambda index_row: index_row.pair_id):
        if chunk and total + row.size > MAX_BYTES:
            yield chunk
            chunk, total = [], 0
        chunk.append(row)
        total += row.size
    if chunk:
        yield chunk


UNSTATED = "not stated"
EXAMPLES = 4
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))


def card(
    version: DatasetVersion, splits: Mapping[str, int], pictures: Sequence[tuple[str, IndexRow]]
) -> str:
    """README.md with the Hub's front matter. What users wrote is shown as text."""
    manifest = version.manifest
    pairs, rejects = len(version.rows), manifest["rejects"]
    tried = pairs + sum(rejects.values())
    text = resources.files("focusdpo.sharing").joinpath("templates/dataset_card.md.j2").read_text()
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["code"] = code
    environment.filters["one_line"] = one_line
    return environment.from_string(text).render(
        manifest=manifest,
        splits=splits,
        tars={
            name: len({row.shard for row in version.rows_of(split)})
            for split, name in SPLITS.items()
        },
        size=next((word for limit, word in SIZES if pairs < limit), "1M<n<10M"),
        pairs=pairs,
        rejects=[(name, REASONS.get(name, name), count) for name, count in rejects.items()],
        tried=tried,
        share=f"{pairs / tried:.0%}" if tried else "-",
        pictures=pictures,
        models=stage_models(manifest, family_of(manifest["config"])),
        licences=sorted(_licences(version).items()),
        origins=origins(version),
        classes=Counter(word for row in version.rows for word in row.class_names).most_common(10),
        biases=_biases(version),
    )


def origins(version: DatasetVersion) -> dict[str, Origin]:
    """Subject -> where its pictures come from, for those of which that is told."""
    by_subject = {
        subject["id"]: origin_of(version.store, subject["artefact"])
        for subject in version.manifest["subjects"]
    }
    return {name: origin for name, origin in by_subject.items() if origin != NOT_TOLD}


def _licences(version: DatasetVersion) -> Counter[str]:
    """Licence -> subjects."""
    return Counter(
        subject["licence"].strip() or UNSTATED for subject in version.manifest["subjects"]
    )


def example_pictures(
    version: DatasetVersion, folder: Path, *, marks: bool = True
) -> list[tuple[str, IndexRow]]:
    """A strip per example: references, winner, loser. Evenly over the pairs' ids, which are hashes:
    none is chosen for its looks."""
    rows = sorted(version.rows, key=lambda row: (-row.num_subjects, row.pair_id))
    count = min(EXAMPLES, len(rows))
    folder.mkdir(parents=True)
    made = []
    for at in range(count):
        row = rows[at * len(rows) // count]
        name = f"pictures/{at}.png"
        strip = encode_png(_strip(version.read(row)))
        (folder / f"{at}.png").write_bytes(mark_png(strip, marks))
        made.append((name, row))
    return made


def _strip(sample: ShardSample) -> NDArray[np.uint8]:
    height, width = sample.images.win.shape[:2]
    references = [
        np.asarray(PillowImage.fromarray(reference).resize((width, height)), dtype=np.uint8)
        for reference in sample.images.references
    ]
    shown = [*references, sample.images.win, sample.images.lose]
    scale = max(1, 192 // height)
    return np.asarray(contact_sheet(shown, columns=len(shown), scale=scale), dtype=np.uint8)


def _biases(version: DatasetVersion) -> list[str]:
    """What the numbers of this very version say about its limits."""
    rows, biases = version.rows, []
    words = Counter(word for row in rows for word in row.class_names)
    (top, most), total = words.most_common(1)[0], sum(words.values())
    biases.append(
        f"{len(words)} classes; the most frequent, {one_line(top)}, is {most / total:.0%} of all "
        "subjects shown."
    )
    alone = sum(row.num_subjects == 1 for row in rows)
    biases.append(f"{alone / len(rows):.0%} of the pairs show one subject alone.")
    disrupted = sum(row.source == "disrupt" for row in rows)
    biases.append(
        f"{disrupted / len(rows):.0%} of the losers were made by repainting a winner, so outside "
        "the region `prior` both pictures are the same; the others are the worse of two samples."
    )
    mixed = sum(is_mixed(row.source, row.mode) for row in rows)
    if mixed:
        biases.append(
            f"{counted(mixed, 'pair')} of source failure {'is' if mixed == 1 else 'are'} mixed: "
            "either picture shows right a subject that the other fails at (`mode` says which), so "
            "neither is the better one; leave them out of a preference over whole pictures."
        )
    reviews = sum((version.manifest.get("reviews") or {}).values())
    biases.append(
        f"People rejected or exchanged {reviews} pairs; all else was decided by models."
        if reviews
        else "No person's review changed a pair: all was decided by models."
    )
    return biases


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
    root: str | Path,
    out: Path,
    version: str = "latest",
    *,
    allow_unlicensed: bool = False,
    marks: bool = True,
) -> Exported:
    """Write a version into the new folder `out`, which appears whole. Same version, same bytes.
    `marks`: winners and losers say that a model painted them, but in the shards, which are the
    store's.

    UserError for an `out` that is not free, a damaged sample, an empty version, and a subject
    without a licence unless `allow_unlicensed`.
    """
    with reading(root, version, "an export") as opened:
        return _export(opened, out, allow_unlicensed, marks)


def _export(version: DatasetVersion, out: Path, allow_unlicensed: bool, marks: bool) -> Exported:
    unlicensed = check_licences(version, allow_unlicensed)
    if not version.rows:
        raise UserError(
            f"{version.store.root}: version {version.id} has no pairs, nothing to export"
        )
    counts = {}
    with whole_folder(out) as folder:
        for split, name in SPLITS.items():
            rows = version.rows_of(split)
            if rows:
                counts[name] = len(rows)
                write_parquet(version.store, rows, folder / "data", name, marks=marks)
                _copy_shards(version.store, rows, folder / "webdataset" / name)
        pictures = example_pictures(version, folder / "pictures", marks=marks)
        text = json.dumps(lineage(version), indent=2, sort_keys=True, ensure_ascii=False)
        (folder / "lineage.json").write_text(text + "\n", encoding="utf-8")
        settings = without_paths(version.manifest["config"])
        (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), "utf-8")
        (folder / CARD).write_text(card(version, counts, pictures), encoding="utf-8")
        about = croissant(
            version, folder, sorted(_licences(version)), _biases(version), origins(version)
        )
        (folder / CROISSANT).write_text(as_text(about), encoding="utf-8")
        (folder / STATISTICS).write_text(as_text(shard_statistics(version.rows, folder)), "utf-8")
        write_sums(folder)
    written = [path for path in Path(out).rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in written)
    log.info("%s: version %s, %d files, %d bytes", out, version.id, len(written), size)
    return Exported(Path(out), version.id, counts, len(written), size, unlicensed)


def check_licences(version: DatasetVersion, allowed: bool) -> list[str]:
    """Subjects that state no licence; UserError when there are any, unless `allowed`."""
    names = [
        subject["id"] for subject in version.manifest["subjects"] if not subject["licence"].strip()
    ]
    if names and not allowed:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise UserError(
            f"{version.store.root}: no licence is stated for {shown}; write `licence:` into their "
            "subject.yaml (then `focusdpo subjects update`, where they are registered) and build "
            "again (nothing is computed), "
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
    history = {name: manifest[name] for name in kept if name in manifest}
    names = ("id", "class_name", "references", "licence", "digest")
    history["subjects"] = [
        {name: subject[name] for name in names} for subject in manifest["subjects"]
    ]
    return history


def without_paths(value: Any, *, top: bool = True) -> Any:
    """Settings without the folders of whoever built it: of an absolute path the last name stays."""
    if isinstance(value, Mapping):
        return {
            name: without_paths(setting, top=False)
            for name, setting in value.items()
            if not (top and name in _LOCAL)
        }
    if isinstance(value, list):
        return [without_paths(item, top=False) for item in value]
    if isinstance(value, str) and (PurePath(value).is_absolute() or value.startswith("~")):
        return f".../{PurePath(value).name}"
    return value


def _copy_shards(store: Store, rows: Sequence[IndexRow], folder: Path) -> None:
    """Shards byte for byte; one that also holds retired samples without these, because who reads
    it elsewhere has no index.

    Numbers go before their names, most subjects first: `datasets` takes the columns of all tars
    from the first one's samples, and would drop what only later ones have."""
    folder.mkdir(parents=True)
    names = sorted({(-row.num_subjects, row.shard) for row in rows})
    for at, (_, name) in enumerate(names):
        mine = sorted((row for row in rows if row.shard == name), key=lambda row: row.offset)
        with (folder / f"{at:05d}-{name}").open("xb") as sink:
            written = 0
            for row in mine:
                written += sink.write(read_bytes(store, row))
            tars.finish(sink, written)
