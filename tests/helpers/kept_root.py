"""Small roots of subjects that come and go: real store, shards, versions, registry; every picture
is noise of its own, so that its bytes can be searched for."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pair_samples import make_sample
from stored_pairs import flat_complexity

from focusdpo.data_schemas.pairs import Pair, Reject
from focusdpo.data_schemas.scenes import Scene, stable_hash, stable_id
from focusdpo.data_schemas.shards import IndexRow
from focusdpo.data_schemas.subjects import Subject
from focusdpo.pipeline.shard import ShardConfig, write_shards
from focusdpo.pipeline.subjects import registry
from focusdpo.pipeline.subjects.ingest import IngestConfig, put_subject
from focusdpo.store.artefacts import Store
from focusdpo.store.keys import content_key, image_key
from focusdpo.store.manifests import PartitionRow
from focusdpo.store.versions import DatasetVersion, latest_rows, publish

SHARDS = ShardConfig(max_pairs=4, val_share=0.0)
READ = IngestConfig()


def noise(*what: object, side: int = 16) -> np.ndarray:
    """A picture that nothing else has."""
    rng = np.random.default_rng(stable_hash("noise", *what))
    return rng.integers(0, 256, (side, side, 3)).astype(np.uint8)


def bring(store: Store, name: str, look: int = 0, licence: str = "CC0") -> Subject:
    """A subject's pictures in the store; another `look` is other pictures."""
    mask = np.ones((16, 16), np.bool_)
    pictures = [(noise(name, look, at), mask) for at in range(2)]
    return put_subject(store, id=name, class_name="cat", licence=licence, pictures=pictures)


def register(store: Store, *names: str) -> None:
    registry.add(store, [bring(store, name) for name in names], READ, now="t")


def build(store: Store, setting: int = 0, most: int = 2) -> DatasetVersion:
    """What a build does with the registered subjects: one partition per subject and per set of up
    to `most` of them, two pairs each, and a version."""
    state = registry.read_registry(store)
    subjects = [] if state is None else [one.subject() for one in state.entries.values()]
    sets = [one for num in range(1, most + 1) for one in itertools.combinations(subjects, num)]
    pairs: list[Pair] = []
    artefacts: list[tuple[str, str]] = []
    rows = []
    for members in sets:
        own, keys = partition(store, members, setting)
        pairs += own
        artefacts += keys
        rows.append(
            PartitionRow(
                partition=own[0].partition,
                subject_ids=tuple(sorted(one.id for one in members)),
                key=keys[1][1],
                samples="s",
                pairs=len(own),
                rejects={"surplus": 1},
            )
        )
    index = write_shards(store, pairs, flat_complexity, SHARDS, previous=latest_rows(store))
    return publish(
        store, index, subjects=subjects, artefacts=artefacts,
        config={"setting": setting}, rejects={"surplus": len(sets)}, partitions=rows,
    )  # fmt: skip


def partition(
    store: Store, members: Sequence[Subject], setting: int
) -> tuple[list[Pair], list[tuple[str, str]]]:
    """Scene and pairs of a set; pairs depend on the setting."""
    ids = [one.id for one in members]
    name = stable_id("partition", *ids)
    looks = [one.digest for one in members]
    scene_key = content_key("compose", 1, {}, "", [name, *looks])
    scene = Scene(
        id=stable_id("scene", *ids, *looks),
        partition=name,
        subject_ids=tuple(ids),
        class_names=("cat",) * len(ids),
        prompt="cats",
        variant=0,
        seed=0,
    )
    store.commit("compose", scene_key, [scene], Scene, partition=name, versions={"code": "1"})
    key = content_key("pair", 1, {"setting": setting}, "", [scene_key])
    if store.has("pair", key):
        return store.read("pair", key, Pair), [("compose", scene_key), ("pair", key)]
    pairs, images = [], {}
    for at in range(2):
        member = f"p{at}"
        images |= {f"{member}-{side}.png": noise(key, at, side) for side in ("win", "lose")}
        images |= {f"{member}-m{r}.png": noise(key, at, r)[..., 0] > 127 for r in range(len(ids))}
        pairs.append(
            dataclasses.replace(
                make_sample(0, len(ids)).pair,
                id=stable_id("pair", name, *looks, at, setting),
                scene_id=scene.id,
                partition=name,
                subject_ids=tuple(ids),
                class_names=scene.class_names,
                captions=scene.class_names,
                win_image=image_key("pair", key, f"{member}-win.png"),
                lose_image=image_key("pair", key, f"{member}-lose.png"),
                masks=tuple(image_key("pair", key, f"{member}-m{r}.png") for r in range(len(ids))),
                prior=image_key("pair", key, f"{member}-m0.png"),
                references=tuple(one.references[at] for one in members),
            )
        )
    reject = Reject(
        scene_id=scene.id, candidate_id="x", source="rank", reason="surplus", detail="one more"
    )
    store.commit(
        "pair", key, pairs, Pair, images=images, more={"rejects": (Reject, [reject])},
        partition=name, inputs=[scene_key], seconds=0.5, versions={"code": "1"},
    )  # fmt: skip
    return pairs, [("compose", scene_key), ("pair", key)]


def pictures_of(store: Store, name: str) -> dict[str, bytes]:
    """Bytes by which each picture that shows a subject can be found in any file: the compressed
    pixels of its PNG."""
    found = {}
    for stage in ("subjects", "pair"):
        for key in store.keys(stage):
            artefact = store.artefact(stage, key)
            shown = {artefact.partition}
            if stage == "pair":
                shown = set(store.read("pair", key, Pair)[0].subject_ids)
            if name in shown:
                for member in artefact.files:
                    if member.endswith(".png") and "mask" not in member and "-m" not in member:
                        whole = store.image_bytes(f"{stage}/{key}/{member}")
                        found[f"{stage}/{key}/{member}"] = whole[41:-16]
    return found


def files_with(root: Path, needle: bytes) -> list[str]:
    """Files below a folder that hold some bytes anywhere."""
    return sorted(
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() and needle in path.read_bytes()
    )


def read_all(version: DatasetVersion) -> dict[str, bytes]:
    """Pair id -> pixels of its winner, of every row."""
    return {row.pair_id: version.read(row).images.win.tobytes() for row in version.rows}


def rows_of(version: DatasetVersion, *names: str) -> list[IndexRow]:
    """The rows that show one of these subjects."""
    return [row for row in version.rows if set(names) & set(row.subject_ids)]
