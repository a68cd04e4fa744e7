"""What a build tells of pictures that are nearly one, and what it keeps out of validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from focusdpo.data_schemas.images import decode_png
from focusdpo.data_schemas.pairs import Pair
from focusdpo.data_schemas.shards import IndexRow
from focusdpo.data_schemas.subjects import Subject
from focusdpo.flows.config import BuildRun, ImportRun
from focusdpo.flows.wiring import Parts
from focusdpo.pipeline.complexity import map_settings
from focusdpo.pipeline.segment import embed_references
from focusdpo.pipeline.shard import digest_maker, split_of
from focusdpo.pipeline.subjects.near_duplicates import (
    Winner,
    WinnersAlike,
    compare_winners,
    identity_notes,
    reference_notes,
)
from focusdpo.store.artefacts import Store
from focusdpo.store.manifests import latest_id, read_manifest
from focusdpo.store.samples import read_fields

LEAKING = "near_duplicate"
"""A reject: a validation pair whose winner training nearly shows as well."""


def compare_pairs(
    store: Store, run: BuildRun | ImportRun, pairs: Sequence[Pair], rows: Sequence[IndexRow] = ()
) -> WinnersAlike:
    """What is told of the winners of `pairs` and of samples that are there already (`rows`), and
    which of them leak: those of validation whose winner training nearly shows as well, unless
    `duplicates.keep_in_validation`. Partitions keep their counts: they are looked at again in the
    next build, when the pair of training may be gone."""
    make = digest_maker(map_settings(run.complexity))
    winners = [
        Winner(
            pair.id,
            pair.scene_id,
            make(pair),
            split_of(pair.partition, run.shard) == "val",
            partial(store.image, pair.win_image),
        )
        for pair in pairs
    ]
    winners += [
        Winner(row.pair_id, row.scene_id, row.digest, row.split == "val", partial(_win, store, row))
        for row in rows
    ]
    alike = compare_winners(store.files, winners, run.duplicates)
    return replace(alike, leaking=frozenset()) if run.duplicates.keep_in_validation else alike


def _win(store: Store, row: IndexRow) -> NDArray[np.uint8]:
    return decode_png(read_fields(store, row)["win.png"], f"{row.shard}: {row.pair_id}, win.png")


def subject_notes(
    store: Store, run: BuildRun, subjects: Mapping[str, Subject], parts: Parts
) -> list[str]:
    """Of references that are nearly one, and subjects that may be one; looked at when there are new
    ones. Where a cluster computes, this process loads no encoder and the second is left out."""
    latest = latest_id(store)
    before = [] if latest is None else read_manifest(store, latest)["subjects"]
    known = {(entry["id"], entry["digest"]) for entry in before}
    new = [subject for subject in subjects.values() if (subject.id, subject.digest) not in known]
    if not new:
        return []
    notes = reference_notes(store, list(subjects.values()), run.duplicates)
    if run.executor.kind == "ray" or run.duplicates.identity == 1:
        return notes
    words = {subject.class_name for subject in new}
    looked = {name: subject for name, subject in subjects.items() if subject.class_name in words}
    vectors = embed_references(looked, store.image, parts.identity)
    names = {name: subject.class_name for name, subject in looked.items()}
    return notes + identity_notes(vectors, names, run.duplicates)
