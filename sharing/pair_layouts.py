"""`focusdpo export pairs`: a dataset version in the layouts that other trainers read.

plain          win/ lose/ masks/ references/ metadata.jsonl: for `datasets` and scripts
flow-factory   strict V2 records for offline DPO (its guidance/datasets.md)
simpletuner    folders of equally named pictures and masks (its FLOW_DPO.md and DATALOADER.md)
verl-omni      Parquet rows of offline DPO (its examples/dpo_trainer/README.md)

Each carries the whole pair: `sharing.pair_tables` reads it back with the same pictures and masks.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.images import mark_png
from focusdpo.data_schemas.shards import IndexRow, Split
from focusdpo.pipeline.upkeep.garbage import reading
from focusdpo.sharing.dataset_export import check_licences
from focusdpo.sharing.hub import whole_folder, write_sums
from focusdpo.sharing.pair_records import (
    BACKEND,
    OURS,
    ROWS,
    PairLayout,
    PairRecord,
    SubjectRecord,
)
from focusdpo.store.samples import read_fields
from focusdpo.store.versions import DatasetVersion

SYSTEM = "You are a helpful image generation assistant."
"""VeRL-Omni's own system prompt of an offline pair."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportedPairs:
    """What was written."""

    out: Path
    version: str
    layout: str
    pairs: dict[str, int]
    """By split."""
    unlicensed: list[str]


@dataclass(frozen=True)
class _Row:
    """A pair whose pictures are written, and what it scored."""

    record: PairRecord
    split: Split
    side: int
    """The shorter side of its pictures, in pixels."""
    win_score: float
    lose_score: float


def export_pairs(
    root: str | Path,
    out: Path,
    layout: PairLayout,
    version: str = "latest",
    *,
    allow_unlicensed: bool = False,
    marks: bool = True,
) -> ExportedPairs:
    """Write a version's pairs into the new folder `out`, which appears whole. Same version, same
    bytes. `marks`: winners and losers say that a model painted them.

    UserError for an `out` that is not free, a damaged sample, an empty version, and a subject
    without a licence unless `allow_unlicensed`.
    """
    with reading(root, version, "an export") as opened:
        unlicensed = check_licences(opened, allow_unlicensed)
        if not opened.rows:
            raise UserError(f"{opened.store.root}: version {opened.id} has no pairs")
        with whole_folder(out) as folder:
            names = _SIMPLETUNER if layout == "simpletuner" else _PLAIN
            rows = list(_write_pictures(opened, folder, names, marks))
            _LAYOUTS[layout](folder, rows)
            write_sums(folder)
        counts = {split: sum(row.split == split for row in rows) for split in get_args(Split)}
        log.info("%s: %d pairs of version %s as %s", out, len(rows), opened.id, layout)
        return ExportedPairs(Path(out), opened.id, layout, counts, unlicensed)


_PLAIN = "{kind}/{name}.png"
_SIMPLETUNER = "{split}/{kind}/{name}.png"
"""A conditioning picture is found by its file's name below its own folder; validation pairs must
not lie in those that are trained on."""


def _write_pictures(
    version: DatasetVersion, folder: Path, names: str, marks: bool
) -> Iterator[_Row]:
    """The pairs by id, their pictures written; a reference that many pairs show lies there once."""
    licences = {subject["id"]: subject["licence"] for subject in version.manifest["subjects"]}
    for row in sorted(version.rows, key=lambda row: row.pair_id):
        fields = read_fields(version.store, row)
        values = json.loads(fields["json"])["pair"]

        def put(kind: str, name: str, data: bytes, split: str = row.split) -> str:
            path = names.format(kind=kind, name=name, split=split)
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
            return path

        painted = {
            side: put(side, row.pair_id, mark_png(fields[f"{side}.png"], marks))
            for side in ("win", "lose")
        }
        record = PairRecord(
            **painted,
            prompt=row.prompt,
            pair_id=row.pair_id,
            source=row.source,
            mode=row.mode,
            split=row.split,
            prior=put("masks", row.pair_id, fields["prior.png"]),
            subjects=tuple(
                _subject(row, at, fields, put, licences.get(row.subject_ids[at], ""))
                for at in range(row.num_subjects)
            ),
        )
        yield _Row(record, row.split, _shorter_side(fields["win.png"]), *_scores(values))


def _subject(
    row: IndexRow,
    at: int,
    fields: Mapping[str, bytes],
    put: Callable[[str, str, bytes], str],
    licence: str,
) -> SubjectRecord:
    shown, mask = fields[f"ref{at}.png"], fields[f"refmask{at}.png"]
    name = hashlib.sha256(shown + mask).hexdigest()[:16]
    return SubjectRecord(
        reference=put("references", name, shown),
        reference_mask=put("reference_masks", name, mask),
        mask=put("subject_masks", f"{row.pair_id}-{at}", fields[f"mask{at}.png"]),
        class_name=row.class_names[at],
        subject_id=row.subject_ids[at],
        licence=licence,
    )


def _shorter_side(png: bytes) -> int:
    """Of a PNG of ours, whose header is its first chunk."""
    return min(int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big"))


def _scores(pair: Mapping[str, Any]) -> tuple[float, float]:
    """Mean identity of winner and loser; 1 and 0 where a person knew better than the encoder."""
    win, lose = (sum(pair[f"{side}_identity"]) / len(pair["subject_ids"]) for side in _SIDES)
    return (win, lose) if win > lose else (1.0, 0.0)


_SIDES = ("win", "lose")


def _plain(folder: Path, rows: Sequence[_Row]) -> None:
    """`datasets`' image folder takes columns that end in _file_name(s) for pictures."""
    records = []
    for row in rows:
        record, subjects = row.record, row.record.subjects
        records.append(
            {
                "pair_id": record.pair_id,
                "split": row.split,
                "prompt": record.prompt,
                "win_file_name": record.win,
                "lose_file_name": record.lose,
                "prior_file_name": record.prior,
                "masks_file_names": [subject.mask for subject in subjects],
                "references_file_names": [subject.reference for subject in subjects],
                "reference_masks_file_names": [subject.reference_mask for subject in subjects],
                "class_names": [subject.class_name for subject in subjects],
                "subject_ids": [subject.subject_id for subject in subjects],
                "licences": [subject.licence for subject in subjects],
                "source": record.source,
                "mode": record.mode,
            }
        )
    _write_lines(folder / "metadata.jsonl", records)


def _flow_factory(folder: Path, rows: Sequence[_Row]) -> None:
    """train.jsonl for training. Its evaluation split takes prompts and pictures and no pairs:
    test.jsonl (with `image_dir` the folder itself); validation.jsonl has these pairs all the same.
    """

    def media(*paths: str) -> dict[str, Any]:
        return {"media": [{"type": "image", "path": path} for path in paths]}

    records: dict[Split, list[dict[str, Any]]] = {"train": [], "val": []}
    for row in rows:
        references = [subject.reference for subject in row.record.subjects]
        supervision = {"chosen": media(row.record.win), "rejected": media(row.record.lose)}
        records[row.split].append(
            {
                "schema_version": 2,
                "input": {"prompt": row.record.prompt, **media(*references)},
                "supervision": {"type": "preference", **supervision},
                "metadata": {OURS: row.record.as_json()},
            }
        )
    _write_lines(folder / "train.jsonl", records["train"])
    if records["val"]:
        _write_lines(folder / "validation.jsonl", records["val"])
        shown = [
            {
                "prompt": row.record.prompt,
                "images": [subject.reference for subject in row.record.subjects],
            }
            for row in rows
            if row.split == "val"
        ]
        _write_lines(folder / "test.jsonl", shown)


def _simpletuner(folder: Path, rows: Sequence[_Row]) -> None:
    """Captions beside the winners, and a backend file whose folders count from the export's."""
    for row in rows:
        caption = (folder / row.record.win).with_suffix(".txt")
        caption.write_text(row.record.prompt + "\n", encoding="utf-8")
    _write_lines(folder / ROWS, [row.record.as_json() for row in rows])
    shape = {"type": "local", "crop": False, "resolution_type": "pixel"}
    shape |= {"resolution": min(row.side for row in rows)}

    def conditioning(name: str, kind: str, below: str) -> dict[str, Any]:
        return {
            "id": name,
            "dataset_type": "conditioning",
            "conditioning_type": kind,
            "source_dataset_id": "preferred",
            "instance_data_dir": f"train/{below}",
            "cache_dir_vae": f"cache/vae/{name}",
            **shape,
        }

    preferred = {
        "id": "preferred",
        "dataset_type": "image",
        "instance_data_dir": "train/win",
        "caption_strategy": "textfile",
        "conditioning_data": ["rejected", "masks"],
        "cache_dir_vae": "cache/vae/preferred",
        **shape,
    }
    texts = {"id": "text-embeds", "type": "local", "dataset_type": "text_embeds", "default": True}
    backend = [
        preferred,
        conditioning("rejected", "reference_strict", "lose"),
        conditioning("masks", "mask", "masks"),
        {**texts, "cache_dir": "cache/text"},
    ]
    (folder / BACKEND).write_text(json.dumps(backend, indent=2) + "\n", encoding="utf-8")


def _verl_omni(folder: Path, rows: Sequence[_Row]) -> None:
    """train.parquet and test.parquet, without the tensors of its own models."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files: dict[Split, str] = {"train": "train.parquet", "val": "test.parquet"}
    for split, name in files.items():
        records = [
            _verl_row(row, at) for at, row in enumerate(row for row in rows if row.split == split)
        ]
        if records:
            pq.write_table(pa.Table.from_pylist(records), folder / name, compression="zstd")


def _verl_row(row: _Row, index: int) -> dict[str, Any]:
    prompt = row.record.prompt

    def messages(text: str) -> list[dict[str, str]]:
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]

    return {
        "uid": row.record.pair_id,
        "data_source": OURS,
        "prompt": messages(prompt),
        "negative_prompt": messages(" "),
        "img_win": row.record.win,
        "img_lose": row.record.lose,
        "win_score": row.win_score,
        "lose_score": row.lose_score,
        "reward_model": {"style": "model", "ground_truth": prompt},
        "extra_info": {
            "split": "train" if row.split == "train" else "test",
            "index": index,
            "raw_prompt": prompt,
            "raw_negative_prompt": " ",
            OURS: json.dumps(row.record.as_json(), ensure_ascii=False),
        },
    }


def _write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


_LAYOUTS: dict[PairLayout, Callable[[Path, Sequence[_Row]], None]] = {
    "plain": _plain,
    "flow-factory": _flow_factory,
    "simpletuner": _simpletuner,
    "verl-omni": _verl_omni,
}
