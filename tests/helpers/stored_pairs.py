"""Pairs whose pictures lie in a store, as the pair stage leaves them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pair_samples import make_sample

from focusdpo.data_schemas.pairs import Pair
from focusdpo.data_schemas.scenes import stable_id
from focusdpo.data_schemas.subjects import Subject
from focusdpo.pipeline.parts import Image, Mask
from focusdpo.pipeline.subjects.ingest import put_subject
from focusdpo.store.artefacts import Store
from focusdpo.store.keys import content_key, image_key


def flat_complexity(win: Image, prior: Mask) -> NDArray[np.float32]:
    """Any map will do here: luma inside the prior."""
    return (win.mean(axis=2) / 255 * prior).astype(np.float32)


def put_subjects(store: Store, count: int) -> list[Subject]:
    """Subjects s0, s1, ... with one reference each, of the classes of `make_sample`."""
    picture = make_sample(0, 3).images
    return [
        put_subject(
            store,
            id=f"s{i}",
            class_name=("cat", "dog", "car")[i % 3],
            pictures=[(np.roll(picture.references[0], i, axis=2), picture.reference_masks[0])],
            licence="CC0",
        )
        for i in range(count)
    ]


def put_pairs(
    store: Store, subjects: Sequence[Subject], count: int, *, partition: str, sources: int = 2
) -> tuple[list[Pair], str]:
    """`count` pairs of one partition with these subjects, and their artefact's key."""
    key = content_key("pair", 1, {"partition": partition, "count": count})
    images: dict[str, NDArray[np.generic]] = {}
    pairs = []
    for i in range(count):
        sample = make_sample(i, len(subjects), ("disrupt", "rank")[i % sources])
        name = stable_id("pair", partition, i)
        shown = sample.images
        images |= {f"{name}-win.png": shown.win, f"{name}-lose.png": shown.lose}
        images |= {f"{name}-{r}.png": mask for r, mask in enumerate(shown.masks)}
        prior = None
        if sample.pair.source == "disrupt":
            images[f"{name}-prior.png"] = shown.prior
            prior = image_key("pair", key, f"{name}-prior.png")
        pair = dataclasses.replace(
            sample.pair,
            id=name,
            partition=partition,
            subject_ids=tuple(one.id for one in subjects),
            class_names=tuple(one.class_name for one in subjects),
            win_image=image_key("pair", key, f"{name}-win.png"),
            lose_image=image_key("pair", key, f"{name}-lose.png"),
            masks=tuple(image_key("pair", key, f"{name}-{r}.png") for r in range(len(subjects))),
            prior=prior,
            references=tuple(one.references[0] for one in subjects),
        )
        pairs.append(pair)
    store.commit("pair", key, pairs, Pair, images=images, partition=partition, seconds=1.5)
    return pairs, key
