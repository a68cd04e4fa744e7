"""Pictures that are nearly one are found, told, and kept out of validation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from focusdpo.pipeline.subjects.ingest import put_subject
from focusdpo.pipeline.subjects.near_duplicates import (
    HASHES,
    DuplicateConfig,
    Winner,
    compare_winners,
    identity_notes,
    near,
    picture_hash,
    reference_notes,
)
from focusdpo.store.artefacts import Store

CONFIG = DuplicateConfig()


def scene(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(cells).resize((64, 64), Image.Resampling.BICUBIC))


def brighter(image: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(9).integers(-3, 4, image.shape)
    return (image.astype(int) + 6 + noise).clip(0, 255).astype(np.uint8)


@given(
    st.lists(st.integers(0, 2**64 - 1), max_size=12),
    st.lists(st.sets(st.integers(0, 63), max_size=6), max_size=12),
    st.integers(0, 8),
)
def test_bands_find_what_comparing_all_finds(
    seeds: list[int], flips: list[set[int]], most: int
) -> None:
    hashes = list(seeds)
    for value, bits in zip(seeds, flips, strict=False):
        hashes.append(value ^ sum(1 << bit for bit in bits))
    wanted = [
        (i, j)
        for i, j in itertools.combinations(range(len(hashes)), 2)
        if (hashes[i] ^ hashes[j]).bit_count() <= most
    ]
    assert near(hashes, most) == wanted


def test_a_copy_that_was_lit_anew_is_near_and_another_picture_is_not() -> None:
    one, two = picture_hash(scene(1)), picture_hash(scene(2))
    assert (one ^ picture_hash(brighter(scene(1)))).bit_count() <= CONFIG.bits
    assert (one ^ two).bit_count() > 3 * CONFIG.bits


def test_references_within_and_across_subjects_are_told(tmp_path) -> None:
    store, full = Store.open(tmp_path), np.ones((64, 64), np.bool_)

    def subject(name: str, *pictures: np.ndarray):
        shown = [(one, full) for one in pictures]
        return put_subject(store, id=name, class_name="cat", pictures=shown)

    subjects = [
        subject("twice", scene(1), brighter(scene(1))),
        subject("other", scene(2), scene(3)),
        subject("same", brighter(scene(2)), scene(4)),
    ]
    notes = reference_notes(store, subjects, CONFIG)
    assert len(notes) == 2
    assert notes[0].startswith("subject 'twice': 1 pair of nearly equal pictures")
    assert notes[1].startswith("subjects 'other' and 'same' share")


def test_two_subjects_that_are_one_are_told_by_the_encoder() -> None:
    """Several views each: as alike across as within. Measured by their own, whatever the encoder's
    scale is; another class is not compared."""
    rng = np.random.default_rng(0)

    def views(centre: np.ndarray) -> np.ndarray:
        wide = centre + 0.06 * rng.normal(size=(4, 64))
        return (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float32)

    centres = rng.normal(size=(2, 64))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    vectors = {name: views(centres[at]) for name, at in (("a", 0), ("b", 0), ("c", 1), ("d", 0))}
    words = {"a": "cat", "b": "cat", "c": "cat", "d": "dog"}
    (note,) = identity_notes(vectors, words, CONFIG)
    assert note.startswith("subjects 'a' and 'b' may be one")


def test_what_training_shows_is_kept_out_of_validation(tmp_path) -> None:
    store = Store.open(tmp_path)
    read: list[str] = []

    def winner(name: str, scene_id: str, picture: np.ndarray, *, validation: bool) -> Winner:
        def load() -> np.ndarray:
            read.append(name)
            return picture

        return Winner(name, scene_id, f"digest-{name}", validation, load)

    winners = [
        winner("t1", "s1", scene(1), validation=False),
        winner("t2", "s2", brighter(scene(1)), validation=False),
        winner("v1", "s3", brighter(scene(1)), validation=True),
        winner("v2", "s4", scene(2), validation=True),
        winner("t3", "s5", scene(3), validation=False),
        winner("t4", "s5", scene(3), validation=False),
    ]
    alike = compare_winners(store.files, winners, CONFIG)
    assert alike.leaking == {"v1"}
    assert len(alike.notes) == 2 and "t1, t2" in alike.notes[0] and "v1" in alike.notes[1]
    assert len(read) == len(winners)
    again = compare_winners(store.files, winners, CONFIG)
    assert (again.leaking, again.notes, len(read)) == (alike.leaking, alike.notes, len(winners))
    store.files.write(HASHES, b"damaged")
    assert compare_winners(store.files, winners, CONFIG).leaking == {"v1"}
    assert len(read) == 2 * len(winners)


@pytest.mark.parametrize("most", [0, 4])
def test_a_thousand_of_one_are_few_comparisons(most: int) -> None:
    rng = np.random.default_rng(0)
    hashes = [int(value) for value in rng.integers(0, 2**63, 20_000)]
    assert near(hashes, most) == []
