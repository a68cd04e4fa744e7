"""Candidates depend on scene and index, not on batching."""

from __future__ import annotations

import numpy as np

from focusdpo.data_schemas.scenes import candidate_seed
from focusdpo.pipeline.generate import GenerateConfig, generate
from focusdpo.pipeline.stage import reference_of


def run(toy, world, scenes, **fields):
    generator = toy.Generator()
    config = GenerateConfig(**fields)
    output = generate(scenes, world.subjects, world.read, generator, config, "generate/k")
    return output, generator


def test_every_scene_gets_its_candidates_from_its_own_seeds(toy, world):
    scenes = [world.scene("red", "green", variant=v) for v in range(3)]
    output, _ = run(toy, world, scenes, candidates=2)
    assert [(r.scene_id, r.index) for r in output.records] == [
        (scene.id, index) for scene in scenes for index in range(2)
    ]
    for record in output.records:
        seed = next(s.seed for s in scenes if s.id == record.scene_id)
        assert record.seed == candidate_seed(seed, record.index)
        assert record.image == f"generate/k/{record.id}.png"
    assert set(output.images) == {f"{r.id}.png" for r in output.records}


def test_pixels_do_not_depend_on_batching(toy, world):
    scenes = [world.scene("red", "green", variant=v) for v in range(3)]
    whole, one_call = run(toy, world, scenes)
    parts, many_calls = run(toy, world, scenes, batch=5)
    assert one_call.calls == [12]
    assert many_calls.calls == [5, 5, 2]
    alone, _ = run(toy, world, scenes[1:2])
    for name, image in whole.images.items():
        np.testing.assert_array_equal(image, parts.images[name])
    for name, image in alone.images.items():
        np.testing.assert_array_equal(image, whole.images[name])


def test_more_candidates_keep_the_first_ones(toy, world):
    scenes = [world.scene("red")]
    few, _ = run(toy, world, scenes, candidates=2)
    more, _ = run(toy, world, scenes, candidates=5)
    assert more.records[:2] == few.records


def test_references_rotate_over_scenes_and_are_one_per_scene(world):
    subject = world.subjects["red"]
    chosen = {reference_of(world.scene("red", variant=v), subject, "by_scene") for v in range(20)}
    assert chosen == set(subject.references)
    first = {reference_of(world.scene("red", variant=v), subject, "first") for v in range(20)}
    assert first == {subject.references[0]}
