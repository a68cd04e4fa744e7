"""The evaluation's scenes share nothing with what anything was trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from focusdpo.evaluation.held_out import HeldOutConfig, held_out_scenes
from focusdpo.evaluation.pocket_protocol import protocol_of
from focusdpo.pocket.world.identities import BACKGROUNDS, class_names
from focusdpo.pocket.world.world_subjects import WorldConfig, draw, export

SMALL = HeldOutConfig(singles=4, pairs=8, same_class_pairs=2, triples=4, new_classes=0.5)


@pytest.mark.parametrize("split", ["held_out", "val"])
def test_every_individual_is_of_the_split_and_stands_in_one_scene(split: str) -> None:
    held_out = held_out_scenes(SMALL.model_copy(update={"split": split}), BACKGROUNDS)
    assert {one.identity.split for one in held_out.subjects.values()} == {split}
    assert set(held_out.held_out_classes) == set(class_names(split))
    names = [name for scene in held_out.scenes for name in scene.subject_ids]
    assert len(names) == len(set(names)) == 4 + 16 + 4 + 12
    build = draw("train", class_names("train"), 32, 1, seed=7)
    cells = {one.identity.cell for one in build}
    assert cells.isdisjoint(one.identity.cell for one in held_out.subjects.values())


def test_validation_has_a_protocol_of_its_own_and_no_scene_of_the_results() -> None:
    val = SMALL.model_copy(update={"split": "val"})
    assert (protocol_of(SMALL), protocol_of(val)) == ("pocket", "pocket/val")
    mine, theirs = held_out_scenes(SMALL, BACKGROUNDS), held_out_scenes(val, BACKGROUNDS)
    assert {one.id for one in mine.scenes}.isdisjoint(one.id for one in theirs.scenes)
    cells = {one.identity.cell for one in mine.subjects.values()}
    assert cells.isdisjoint(one.identity.cell for one in theirs.subjects.values())


def test_half_of_the_scenes_have_classes_that_no_model_was_trained_on() -> None:
    held_out = held_out_scenes(SMALL, BACKGROUNDS)
    new, known = set(class_names("held_out")), set(class_names("train"))
    for scene in held_out.scenes:
        words = set(scene.class_names)
        assert words <= new or words <= known
        assert all(word in scene.prompt for word in words)
    share = [set(scene.class_names) <= new for scene in held_out.scenes]
    assert np.mean(share) == 0.5
    same = [s for s in held_out.scenes if len(s.class_names) > len(set(s.class_names))]
    assert len(same) == 2


def test_equal_settings_give_equal_pixels_and_another_seed_others() -> None:
    one, two = held_out_scenes(SMALL, BACKGROUNDS), held_out_scenes(SMALL, BACKGROUNDS)
    assert one.scenes == two.scenes
    for name, pictures in one.references.items():
        for mine, other in zip(pictures, two.references[name], strict=True):
            assert (mine.image == other.image).all() and (mine.mask == other.mask).all()
    other = held_out_scenes(SMALL.model_copy(update={"seed": 2}), BACKGROUNDS)
    assert {s.id for s in other.scenes}.isdisjoint(s.id for s in one.scenes)


def test_exported_subjects_are_of_the_training_split(tmp_path: Path) -> None:
    config = WorldConfig(subjects=5, references=2, seed=3)
    assert export(tmp_path / "s", config) == 5
    before = {p: p.read_bytes() for p in (tmp_path / "s").rglob("*.png")}
    assert len(before) == 10
    assert export(tmp_path / "s", config) == 0
    assert export(tmp_path / "s", config.model_copy(update={"seed": 4})) == 5
    assert export(tmp_path / "s", config) == 5
    assert {p: p.read_bytes() for p in (tmp_path / "s").rglob("*.png")} == before
