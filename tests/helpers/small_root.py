"""A dataset root made by hand: real store, real shards, a published version, known counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pair_samples import make_sample

from focusdpo.data_schemas.candidates import Disrupted, Sampled, Scored
from focusdpo.data_schemas.pairs import Pair, Reject
from focusdpo.data_schemas.scenes import Scene
from focusdpo.data_schemas.subjects import Origin, Reference
from focusdpo.pipeline.complexity import complexity_map
from focusdpo.pipeline.shard import ShardConfig, write_shards
from focusdpo.pipeline.subjects.ingest import NOT_TOLD, put_subject
from focusdpo.store.artefacts import Store
from focusdpo.store.keys import content_key, image_key
from focusdpo.store.versions import DatasetVersion, publish

WORDS = ("cat", "dog")


def small_version(
    root: Path | str,
    *,
    scenes: int = 5,
    prompt: str = "a cat and a dog",
    origin: Origin = NOT_TOLD,
    size: int = 96,
) -> DatasetVersion:
    """Two subjects; per scene two sampled candidates (one of them complete), one disrupted of the
    first subject, one pair, and one reject of the second candidate."""
    store = Store.open(root)
    samples = [make_sample(index, 2, size=size) for index in range(scenes)]
    subjects = [
        put_subject(
            store,
            id=f"s{r}",
            class_name=word,
            pictures=[(samples[0].images.references[r], samples[0].images.reference_masks[r])],
            licence="MIT",
            origin=origin if r == 0 else NOT_TOLD,
        )
        for r, word in enumerate(WORDS)
    ]
    references = tuple(subject.references[0] for subject in subjects)
    keys = [_partition(store, i, samples[i].images, references, prompt) for i in range(scenes)]
    pairs = [pair for own in keys for pair in store.read("pair", own["pair"], Pair)]
    rows = write_shards(store, pairs, complexity_map, ShardConfig(max_pairs=4))
    return publish(
        store,
        rows,
        subjects=subjects,
        artefacts=[item for own in keys for item in own.items()],
        config={"suite": "pocket", "root": str(root)},
        rejects={"missing_subject": scenes},
        seeds={"compose": 7},
    )


def _partition(store, index, images, references: tuple[Reference, ...], prompt) -> dict[str, str]:
    name, scene_id = f"p{index}", f"{index:016x}"
    stages = ("compose", "generate", "disrupt", "score", "pair")
    keys = {stage: content_key(stage, 1, {}, "toy", [name]) for stage in stages}
    masks = {f"m{r}.png": mask for r, mask in enumerate(images.masks)}
    key = {
        member: image_key(stage, keys[stage], f"{member}.png")
        for stage, members in (("generate", ("w", "x", "m0", "m1")), ("disrupt", ("l", "p")))
        for member in members
    }
    scene = Scene(
        id=scene_id,
        partition=name,
        subject_ids=("s0", "s1"),
        class_names=WORDS,
        prompt=prompt,
        variant=0,
        seed=index,
    )
    sampled = [
        Sampled(id=f"{one}{index}", scene_id=scene_id, index=at, seed=at, image=key[one])
        for at, one in enumerate(("w", "x"))
    ]
    disrupted = Disrupted(
        id=f"l{index}",
        scene_id=scene_id,
        parent_id=f"w{index}",
        mode="subset",
        subject_ids=("s0",),
        seed=9,
        image=key["l"],
        prior=key["p"],
    )
    reject = Reject(
        scene_id=scene_id,
        candidate_id=f"x{index}",
        source="disrupt",
        reason="missing_subject",
        detail="1 of 2 subjects not found: s1",
    )
    pair = Pair(
        id=f"pair{index}",
        scene_id=scene_id,
        partition=name,
        source="disrupt",
        mode="subset",
        prompt=prompt,
        subject_ids=("s0", "s1"),
        class_names=WORDS,
        captions=WORDS,
        win_id=f"w{index}",
        lose_id=f"l{index}",
        win_image=key["w"],
        lose_image=key["l"],
        masks=(key["m0"], key["m1"]),
        prior=key["p"],
        references=references,
        win_identity=(0.8, 0.7),
        lose_identity=(0.3 - 0.01 * index, 0.7),
        win_leakage_margin=(0.4, 0.3),
        lose_leakage_margin=(-0.1, 0.3),
        win_clip_t=0.31,
        lose_clip_t=0.30,
        margin=0.5 + 0.01 * index,
        reason="identity of s0 falls",
    )
    scored = [_scored(f"{one}{index}", scene_id, one) for one in ("w", "x", "l")]
    more = {"rejects": (Reject, [reject])}
    members = {"w.png": images.win, "x.png": images.lose, **masks}
    versions = {"code": "1", "model": "toy"}
    own = {"partition": name}
    store.commit("compose", keys["compose"], [scene], Scene, **own)
    store.commit(
        *("generate", keys["generate"], sampled, Sampled),
        **{"images": members, "versions": versions, "seconds": 2, **own},
    )
    prior = {"l.png": images.lose, "p.png": images.masks[0]}
    store.commit("disrupt", keys["disrupt"], [disrupted], Disrupted, images=prior, **own)
    store.commit("score", keys["score"], scored, Scored, **own)
    store.commit("pair", keys["pair"], [pair], Pair, more=more, **own)
    return keys


def _scored(candidate_id: str, scene_id: str, one: str) -> Scored:
    return Scored(
        candidate_id=candidate_id,
        scene_id=scene_id,
        kind="disrupted" if one == "l" else "sampled",
        similarity=((0.8, 0.1), (0.2, 0.7)),
        identity=(0.8, 0.7),
        leakage_margin=(0.7, 0.5),
        clip_i=(0.8, 0.8),
        clip_t=0.3,
        background=0.0,
        complete=one == "w",
    )


def grey(level: int) -> np.ndarray:
    """A flat 64 x 64 picture."""
    return np.full((64, 64, 3), level, np.uint8)
