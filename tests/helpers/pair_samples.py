"""Pairs of coloured squares, as the data flow would shard them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from focusdpo.data_schemas.pairs import Pair
from focusdpo.data_schemas.shards import SampleImages, ShardSample, encode
from focusdpo.data_schemas.subjects import Reference
from focusdpo.pipeline.shard import row_of
from focusdpo.store.artefacts import Store
from focusdpo.store.keys import digest
from focusdpo.store.local import LocalFiles
from focusdpo.store.samples import FOLDER, Sample, write_samples

SIZE = 64
_PLACES = ((8, 8), (36, 36), (8, 40))
_WORDS = ("cat", "dog", "car")


def make_sample(
    index: int, num_subjects: int, source: str = "disrupt", size: int = SIZE
) -> ShardSample:
    """Squares of random colours on a random background; the loser has other colours."""
    cells = size // 8
    rng = np.random.default_rng(1000 * num_subjects + index)
    win = np.repeat(np.repeat(rng.integers(0, 256, (cells, cells, 3)), 8, 0), 8, 1).astype(np.uint8)
    lose = win.copy()
    masks, references, reference_masks = [], [], []
    for r in range(num_subjects):
        colour, other = rng.integers(0, 256, (2, 3))
        mask = np.zeros((size, size), bool)
        y, x = _PLACES[r]
        mask[y : y + 20, x : x + 20] = True
        win[mask], lose[mask] = colour, other
        reference = np.full((size, size, 3), 255, np.uint8)
        inside = np.zeros((size, size), bool)
        edge = 12 * size // 64
        inside[edge:-edge, edge:-edge] = True
        reference[inside] = colour
        masks.append(mask)
        references.append(reference)
        reference_masks.append(inside)
    prior = np.logical_or.reduce(masks)
    if source == "rank":
        lose = rng.integers(0, 256, win.shape).astype(np.uint8)
    names = _WORDS[:num_subjects]
    pair = Pair(
        id=f"{num_subjects}{index:015x}",
        scene_id=f"{index:016x}",
        partition="p",
        source=source,  # type: ignore[arg-type]
        mode="all" if source == "disrupt" else "rank",
        prompt=" and ".join(f"a {name}" for name in names) + " on grass",
        subject_ids=tuple(f"s{r}" for r in range(num_subjects)),
        class_names=names,
        captions=names,
        win_id="w",
        lose_id="l",
        win_image="generate/k/w.png",
        lose_image="disrupt/k/l.png",
        masks=tuple(f"segment/k/{r}.png" for r in range(num_subjects)),
        prior="disrupt/k/p.png" if source == "disrupt" else None,
        references=tuple(Reference(image="i/k/r.png", mask="i/k/m.png") for _ in names),
        win_identity=(0.9,) * num_subjects,
        lose_identity=(0.2,) * num_subjects,
        win_leakage_margin=(0.5,) * num_subjects,
        lose_leakage_margin=(0.0,) * num_subjects,
        win_clip_t=0.3,
        lose_clip_t=0.3,
        margin=0.7,
        reason="margin 0.7",
    )
    images = SampleImages(
        win=win,
        lose=lose,
        masks=tuple(masks),
        prior=prior,
        complexity=rng.random((size, size), np.float32) * prior,
        lose_complexity=rng.random((size, size), np.float32) * prior,
        references=tuple(references),
        reference_masks=tuple(reference_masks),
    )
    return ShardSample(pair=pair, split="train", images=images)


def write_shard(root: Path, name: str, samples: list[ShardSample]) -> list[Sample]:
    """A shard of a root as a build writes it, and its samples."""
    store = Store(LocalFiles(root))
    fields = ((one.pair.id, encode(one.pair, one.images, one.split)) for one in samples)
    places = write_samples(store.files, f"{FOLDER}/{name}", fields)
    return [
        Sample(row_of(one.pair, digest(one.pair.id.encode())[:16], one.split, name, place), store)
        for one, place in zip(samples, places, strict=True)
    ]


def write_pairs(root: Path) -> list[Sample]:
    """5 pairs of two subjects (one of them ranked) and 3 of one, in a shard each. The same call
    again finds them."""
    two = [make_sample(i, 2) for i in range(4)] + [make_sample(4, 2, "rank")]
    one = [make_sample(i, 1) for i in range(3)]
    return write_shard(root, "two.tar", two) + write_shard(root, "one.tar", one)


def shards_of(samples: list[Sample]) -> list[Path]:
    """The files in which samples lie."""
    names = dict.fromkeys(sample.row.shard for sample in samples)
    return [Path(samples[0].store.root) / FOLDER / name for name in names]
