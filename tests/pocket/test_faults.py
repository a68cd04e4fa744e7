"""The kit of planted faults, put to a judge that knows the truth and to ones that err."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from focusdpo.flows.pocket_recipes import read_planted
from focusdpo.pipeline.parts import Image, Mask, Seen, Vectors
from focusdpo.pocket.classes import class_names
from focusdpo.pocket.faults import (
    FaultRow,
    PlantedScene,
    plant_scenes,
    table_lines,
    tabulate,
)
from focusdpo.pocket.models.bodies import box_of
from focusdpo.pocket.world.identities import Identity

WIDTH = 256


class KnowingJudge:
    """A judge that was told who stands where: a vector at random for each individual."""

    fingerprint = "knows"
    class_names = class_names()

    def __init__(self, planted: Sequence[PlantedScene], blind: bool = False) -> None:
        self._scenes = {each.image.tobytes(): each for each in planted}
        self._people = {
            picture.image.tobytes(): person
            for each in planted
            for person, pictures in zip(each.asked, each.references, strict=True)
            for picture in pictures
        }
        self._blind = blind

    def look(self, images: Sequence[Image]) -> list[list[Seen]]:
        return [self._seen(self._scenes[image.tobytes()]) for image in images]

    def _seen(self, scene: PlantedScene) -> list[Seen]:
        out = []
        for person, mask in zip(scene.shown, scene.masks, strict=True):
            scores = np.zeros(len(self.class_names), np.float32)
            scores[self.class_names.index(person.class_name)] = 1
            out.append(Seen(mask, box_of(mask), 1.0, scores, self._vector(person), 0.0))
        return out

    def _vector(self, person: Identity) -> Vectors:
        seed = 0 if self._blind else abs(hash(person)) % 2**31
        vector = np.random.default_rng(seed).standard_normal(WIDTH)
        return (vector / np.linalg.norm(vector)).astype(np.float32)

    def embed_references(self, images: Sequence[Image], masks: Sequence[Mask]) -> Vectors:
        return np.stack([self._vector(self._people[image.tobytes()]) for image in images])

    def hue(self, images: Sequence[Image], masks: Sequence[Mask]) -> Vectors:
        return np.zeros(len(images), np.float32)

    def pattern(self, images: Sequence[Image], masks: Sequence[Mask]) -> Vectors:
        return np.full((len(images), 2, 4, 4), np.nan, np.float32)


def rows_of(judge: KnowingJudge, planted: Sequence[PlantedScene]) -> list[FaultRow]:
    return tabulate(planted, read_planted(judge, planted))


def test_a_judge_that_knows_passes_true_renders_and_finds_every_fault() -> None:
    planted = plant_scenes(4)
    rows = rows_of(KnowingJudge(planted), planted)
    assert all(row.ok for row in rows), table_lines(rows)
    by_fault = {(row.kind, row.fault): row for row in rows}
    assert by_fault["two classes", "none"].failed == 0
    assert by_fault["two classes", "swapped"].unlike == 1
    assert by_fault["one class", "missing"].missing == 1
    assert by_fault["three", "stranger"].extra == 1
    assert by_fault["one class", "twice"].doubled == 1


def test_a_judge_that_takes_all_for_one_fails_the_check() -> None:
    planted = plant_scenes(2)
    rows = rows_of(KnowingJudge(planted, blind=True), planted)
    assert not all(row.ok for row in rows)


def test_planting_is_a_function_of_the_seed_and_magnifies() -> None:
    first, again, large = plant_scenes(1, 3), plant_scenes(1, 3), plant_scenes(1, 3, scale=3)
    assert len(first) == len(again) == len(large)
    for scene, same, big in zip(first, again, large, strict=True):
        assert (scene.image == same.image).all() and scene.shown == same.shown == big.shown
        assert big.image.shape == (288, 288, 3)
        assert big.references[0][0].mask.shape == (288, 288)
        assert len(scene.references) == len(scene.class_names)


def test_what_is_planted_is_what_it_is_called() -> None:
    for scene in plant_scenes(3):
        gone = [subject for subject in scene.asked if subject not in scene.shown]
        if scene.fault == "none":
            assert scene.shown == scene.asked
        elif scene.fault == "twice":
            assert not gone and len(scene.shown) == len(scene.asked) + 1
        elif scene.fault in ("replaced", "missing"):
            assert len(gone) == 1
        elif scene.fault == "swapped":
            assert len(gone) == 2
            assert [p.class_name for p in scene.shown] == list(scene.class_names)
        else:
            assert len(scene.shown) == len(scene.asked) + 1
