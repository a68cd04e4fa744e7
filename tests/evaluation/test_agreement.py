"""The scorer's view is what the stages segment and score see, and agreement is rank correlation."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from focusdpo.data_schemas.candidates import Sampled
from focusdpo.data_schemas.evaluations import ScorerView
from focusdpo.evaluation.agreement import agreement, rank_agreement, scorer_values
from focusdpo.evaluation.pocket_protocol import EvaluateConfig, measure, paint_scenes
from focusdpo.pipeline.score import ScoreConfig, score
from focusdpo.pipeline.segment import SegmentConfig, segment

CONFIG = EvaluateConfig(resamples=200)


def shown(world):
    return {name: world.shown(name) for name in world.subjects}


def view(toy, world, names, things, **fields):
    (one,) = scorer_values(
        [world.scene(*names)],
        [toy.picture(things)],
        shown(world),
        toy.Segmenter(),
        toy.Identity(),
        **fields,
    )
    return one


def test_it_equals_the_stages_on_a_complete_picture(toy, world):
    names, things = ("red", "blue", "green"), [("disc", 20, 0), ("disc", 200, 1), ("square", 90, 2)]
    scene = world.scene(*names)
    world.images["generate/k/c.png"] = toy.picture(things)
    sampled = [Sampled(id="c", scene_id=scene.id, index=0, seed=0, image="generate/k/c.png")]
    parts = toy.Segmenter(), toy.Identity()
    found = segment(
        [scene], world.subjects, sampled, world.read, *parts, SegmentConfig(), "segment/k"
    )
    instances = world.keep(found, "segment/k")
    (stage,) = score(
        [scene], world.subjects, sampled, [], instances, world.read, parts[1], toy.Clip(),
        ScoreConfig(),
    ).records  # fmt: skip
    one = view(toy, world, names, things, model="base")
    assert one.complete and one.model == "base" and one.scene_id == scene.id
    assert one.identity == pytest.approx(np.mean(stage.identity))
    assert one.leakage_margin == pytest.approx(np.mean(stage.leakage_margin))


def test_a_missing_subject_counts_nothing_and_one_subject_has_no_margin(toy, world):
    lost = view(toy, world, ["red", "green"], [("disc", 0, 0)])
    assert not lost.complete and lost.identity == pytest.approx(0.5, abs=1e-3)
    alone = view(toy, world, ["red"], [("disc", 0, 0)])
    assert alone.complete and math.isnan(alone.leakage_margin)
    twice = view(toy, world, ["red"], [("disc", 0, 0), ("disc", 0, 1)])
    assert not twice.complete and twice.identity == pytest.approx(1, abs=1e-3)


def test_a_wrong_number_of_pictures_is_refused(toy, world):
    with pytest.raises(ValueError, match="0 pictures, expected 2"):
        scorer_values(
            [world.scene("red")], [], shown(world), toy.Segmenter(), toy.Identity(), per_scene=2
        )


def both_views(toy, world, generators):
    config = EvaluateConfig(images_per_scene=2, resamples=200)
    scenes = [world.scene("red", "green", variant=v) for v in range(20)]
    judged, scored = {}, {}
    for model, generator in generators.items():
        painted = paint_scenes(scenes, shown(world), generator, config)
        judged[model] = measure(model, scenes, painted, shown(world), toy.Judge(), config)
        scored[model] = scorer_values(
            scenes, painted, shown(world), toy.Segmenter(), toy.Identity(), model=model, per_scene=2
        )
    return judged, scored


def test_parts_that_measure_alike_agree(toy, world):
    """The toy judge and the toy scorer read the same colours off the same blobs."""
    judged, scored = both_views(
        toy, world, {"base": toy.Generator(faults=0.5), "adapter": toy.Generator()}
    )
    made = {(row.metric, row.model): row for row in agreement(judged, scored, CONFIG)}
    assert {row.group for row in agreement(judged, scored, CONFIG)} == {"all"}
    assert {model for _, model in made} == {"base", "adapter", "adapter - base"}
    assert made["identity", "base"].count == 40 and made["identity", "adapter - base"].count == 20
    for row in made.values():
        assert row.spearman is not None and row.spearman > 0.75
    gain = made["identity", "adapter - base"]
    assert gain.judge_low > 0 and gain.scorer_low > 0


def test_scenes_of_new_words_are_told_apart(toy, world):
    judged, scored = both_views(toy, world, {"base": toy.Generator(faults=0.5)})
    new = [dataclasses.replace(one, held_out=n < 10) for n, one in enumerate(judged["base"])]
    counts = {row.group: row.count for row in agreement({"base": new}, scored, CONFIG)}
    assert counts == {"all": 40, "taught classes": 30}


def test_one_model_alone(toy, world):
    judged, scored = both_views(toy, world, {"base": toy.Generator(faults=0.5)})
    assert {row.model for row in agreement(judged, scored, CONFIG)} == {"base"}


def test_ranks_count_and_not_values(toy, world):
    judged, _ = both_views(toy, world, {"base": toy.Generator(faults=0.5)})
    squared = [
        ScorerView(
            model="base",
            scene_id=one.scene_id,
            index=one.index,
            complete=True,
            identity=-(one.identity**2),
            leakage_margin=float("nan"),
        )
        for one in judged["base"]
    ]
    assert rank_agreement(judged["base"], squared, "identity") == (pytest.approx(-1), 40)
    spearman, count = rank_agreement(judged["base"], squared, "leakage_margin")
    assert math.isnan(spearman) and count == 0
    flat = [dataclasses.replace(one, identity=0.5) for one in squared]
    assert math.isnan(rank_agreement(judged["base"], flat, "identity")[0])
    with pytest.raises(ValueError, match="saw different pictures"):
        rank_agreement(judged["base"][1:], squared, "identity")
