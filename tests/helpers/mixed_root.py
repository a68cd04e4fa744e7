"""A dataset root with disrupted and ranked pairs of two subjects, whose pictures have 64 pixels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from small_root import small_version

from focusdpo.data_schemas.pairs import Pair
from focusdpo.pipeline.complexity import complexity_map
from focusdpo.pipeline.shard import ShardConfig, write_shards
from focusdpo.store.versions import DatasetVersion, lineage_of, publish


def mixed_version(root: Path, scenes: int = 6) -> DatasetVersion:
    """One set of subjects; every third pair is the winner against another scene's."""
    version = small_version(root, scenes=scenes)
    store = version.store
    lineage = [(one.stage, one.key) for one in lineage_of(version)]
    pairs = [pair for stage, key in lineage if stage == "pair"
             for pair in store.read("pair", key, Pair)]  # fmt: skip
    words = ("cat", "car")  # which the embedded models know
    told = {"partition": "p", "class_names": words, "captions": words}
    pairs = [dataclasses.replace(pair, prompt="a cat and a car", **told) for pair in pairs]
    for at in range(0, len(pairs), 3):
        other = pairs[(at + 1) % len(pairs)]
        pairs[at] = dataclasses.replace(
            pairs[at], source="rank", mode="rank", prior=None,
            lose_id=other.win_id, lose_image=other.win_image,
        )  # fmt: skip
    rows = write_shards(store, pairs, complexity_map, ShardConfig(val_share=0.0))
    return publish(
        store, rows, subjects=version.subjects(), artefacts=lineage,
        config={"suite": "pocket"}, rejects={"missing_subject": 2},
    )  # fmt: skip
