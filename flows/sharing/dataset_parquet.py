"""A dataset version's pairs as Parquet that `datasets.load_dataset` opens, pictures as `Image`."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from focusdpo.data_schemas.shards import IndexRow
from focusdpo.pipeline.shard import read_fields
from focusdpo.pipeline.store import Store

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


def write_parquet(store: Store, rows: Sequence[IndexRow], folder: Path, split: str) -> list[Path]:
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
                    record(row, read_fields(store, row)) for row in chunk[start : start + GROUP]
                ]
                sink.write_table(pa.Table.from_pylist(records, schema=schema), row_group_size=GROUP)
        written.append(path)
    return written


def record(row: IndexRow, fields: Mapping[str, bytes]) -> dict[str, Any]:
    """One row: the sample's PNGs as they are, and what one may choose pairs by."""
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
    for row in sorted(rows, key=lambda one: one.pair_id):
        if chunk and total + row.size > MAX_BYTES:
            yield chunk
            chunk, total = [], 0
        chunk.append(row)
        total += row.size
    if chunk:
        yield chunk
