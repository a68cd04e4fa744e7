"""Stage shard: pairs -> webdataset tars and the rows that find each sample in them.

A shard never changes. Pairs that the last version has in a shard stay there; the others go into
new shards; a pair that is no longer valid just loses its row. So readers go by the index: a tar
may hold samples that no row names.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from focusdpo.data_schemas.pairs import Pair
from focusdpo.data_schemas.scenes import stable_hash
from focusdpo.data_schemas.shards import (
    SAMPLE_VERSION,
    IndexRow,
    SampleImages,
    Split,
    encode,
    pair_digest,
)
from focusdpo.pipeline.parts import Image, Mask
from focusdpo.store.artefacts import Store
from focusdpo.store.keys import config_digest, content_key, digest
from focusdpo.store.samples import FOLDER, Place, write_samples

VERSION = 2
PAIR_ID = re.compile(r"[A-Za-z0-9_-]+")
"""webdataset cuts a member's name at its first dot, so an id must have none."""

Complexity = Callable[[Image, Mask], NDArray[np.float32]]
"""An image and the prior -> M_d (H, W) in [0, 1]."""

log = logging.getLogger(__name__)


class ShardConfig(BaseModel):
    """How pairs are gathered in files."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_pairs: int = Field(64, ge=1, description="samples per shard")
    val_share: float = Field(
        0.1, ge=0, lt=1, description="share of the subject sets kept out of training"
    )


def split_of(partition: str, config: ShardConfig) -> Split:
    """Which split a subject set belongs to, by its hash: all its pairs stay together."""
    return "val" if stable_hash("split", partition) < config.val_share * 2**64 else "train"


def write_shards(
    store: Store,
    pairs: Sequence[Pair],
    complexity: Complexity,
    config: ShardConfig,
    *,
    previous: Sequence[IndexRow] = (),
    complexity_config: BaseModel | Mapping[str, Any] | None = None,
) -> list[IndexRow]:
    """Write what `previous` lacks into new shards; the rows of all `pairs` by pair id.

    `complexity_config` is what `complexity` depends on: another one makes new samples. A stopped
    call leaves whole shards, which the next call writes again with the same bytes.
    """
    _check_ids(pairs)
    make = digest_maker(complexity_config)
    wanted = {make(pair): pair for pair in pairs}
    kept = [
        row
        for row in previous
        if row.digest in wanted
        and row.split == split_of(row.partition, config)
        and store.files.exists(f"{FOLDER}/{row.shard}")
    ]
    in_place = {row.digest for row in kept}
    new = {key: pair for key, pair in wanted.items() if key not in in_place}
    rows = kept + [
        row
        for name, chunk in _planned(new, config)
        for row in _write_shard(store, name, chunk, complexity, config)
    ]
    log.info("shard: %d pairs, %d in place, %d new", len(rows), len(kept), len(new))
    return sorted(rows, key=lambda row: row.pair_id)


def load_images(store: Store, pair: Pair, complexity: Complexity) -> SampleImages:
    """The pictures of a pair from the store, with the complexity of winner and loser."""
    win, lose = store.image(pair.win_image), store.image(pair.lose_image)
    masks = tuple(store.mask(key) for key in pair.masks)
    prior = np.any(masks, axis=0) if pair.prior is None else store.mask(pair.prior)
    return SampleImages(
        win=win,
        lose=lose,
        masks=masks,
        prior=prior,
        complexity=complexity(win, prior),
        lose_complexity=complexity(lose, prior),
        references=tuple(store.image(reference.image) for reference in pair.references),
        reference_masks=tuple(store.mask(reference.mask) for reference in pair.references),
    )


def digest_maker(
    complexity_config: BaseModel | Mapping[str, Any] | None,
) -> Callable[[Pair], str]:
    """What a row's `digest` is made by: of a pair's record and all that its sample depends on."""
    settings = f"{VERSION}/{config_digest(complexity_config)}"
    if SAMPLE_VERSION != 2:  # which went unnamed, as in the digests of datasets that it made
        settings = f"{SAMPLE_VERSION}/{settings}"
    return lambda pair: digest(f"{settings}/{pair_digest(pair)}".encode())[:16]


def _check_ids(pairs: Sequence[Pair]) -> None:
    ids: set[str] = set()
    for pair in pairs:
        if not PAIR_ID.fullmatch(pair.id) or pair.id in ids:
            raise ValueError(f"pair id '{pair.id}' is there twice or has a character of its own")
        ids.add(pair.id)


def _planned(
    new: Mapping[str, Pair], config: ShardConfig
) -> Iterable[tuple[str, list[tuple[str, Pair]]]]:
    """File names with their (digest, pair): one split and one number of subjects per file, in
    the order of pair ids, which are hashes and so mix the scenes."""
    groups: dict[tuple[str, int], list[tuple[str, Pair]]] = {}
    for key, pair in sorted(new.items(), key=lambda item: item[1].id):
        group = (split_of(pair.partition, config), len(pair.subject_ids))
        groups.setdefault(group, []).append((key, pair))
    for (split, num), members in sorted(groups.items()):
        for start in range(0, len(members), config.max_pairs):
            chunk = members[start : start + config.max_pairs]
            key = content_key(
                "shard", VERSION, {"split": split}, inputs=[pair_key for pair_key, _ in chunk]
            )
            yield f"pairs-{split}-r{num}-{key[:16]}.tar", chunk


def _write_shard(
    store: Store,
    name: str,
    chunk: Sequence[tuple[str, Pair]],
    complexity: Complexity,
    config: ShardConfig,
) -> list[IndexRow]:
    splits = [split_of(pair.partition, config) for _, pair in chunk]
    samples = (
        (pair.id, encode(pair, load_images(store, pair, complexity), split))
        for (_, pair), split in zip(chunk, splits, strict=True)
    )
    places = write_samples(store.files, f"{FOLDER}/{name}", samples)
    log.debug("shard %s: %d pairs", name, len(places))
    return [
        row_of(pair, key, split, name, place)
        for (key, pair), split, place in zip(chunk, splits, places, strict=True)
    ]


def row_of(pair: Pair, key: str, split: Split, shard: str, place: Place) -> IndexRow:
    """The row that finds a pair's sample. `key`: digest of its record and settings."""
    return IndexRow(
        pair_id=pair.id,
        digest=key,
        scene_id=pair.scene_id,
        partition=pair.partition,
        split=split,
        source=pair.source,
        mode=pair.mode,
        num_subjects=len(pair.subject_ids),
        subject_ids=pair.subject_ids,
        class_names=pair.class_names,
        prompt=pair.prompt,
        margin=pair.margin,
        win_identity=pair.win_identity,
        lose_identity=pair.lose_identity,
        win_clip_t=pair.win_clip_t,
        lose_clip_t=pair.lose_clip_t,
        shard=shard,
        offset=place.offset,
        size=place.size,
        checksum=place.checksum,
    )
