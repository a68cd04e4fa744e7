"""Metrics against direct formulas; intervals cover; paired differences pair."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from focusdpo.data_schemas.evaluations import EvalScene
from focusdpo.evaluation.comparison import rows, scene_means
from focusdpo.evaluation.metrics import (
    METRICS,
    bootstrap,
    circular_mean,
    hue_difference,
    identity_values,
    nan_mean,
)
from focusdpo.evaluation.protocols import EvaluateConfig
from focusdpo.pipeline.matching import NOBODY

DEGREES = st.floats(0, 360, exclude_max=True)
SETTINGS = {"resamples": 1000, "level": 0.95, "seed": 0}


def test_values_of_a_worked_scene():
    # Subject 0 painted twice, subject 1 matched to the second copy, subject 2 missing.
    table = np.array([[0.9, 0.7], [0.2, 0.45], [0.1, 0.0]])
    values = identity_values(table, [0, 1, NOBODY], claim=0.3, least=0.5)
    assert values["identity"] == pytest.approx((0.9 + 0.45 + 0) / 3)
    margins = [0.9 - 0.7, 0.45 - 0.2, 0.0 - 0.1]
    assert values["leakage_margin"] == pytest.approx(np.mean(margins))
    assert values["confusion"] == pytest.approx(1 / 2)
    assert values["missing"] == pytest.approx(1 / 3)
    assert values["duplicate"] == pytest.approx(1 / 3)
    assert values["failed"] == 1  # twice; another's looks and below 0.5; missing
    assert (values["scr_40"], values["scr_50"], values["scr_60"]) == pytest.approx(
        (1 / 3, 2 / 3, 2 / 3)
    )


@pytest.mark.parametrize(
    ("similarity", "assignment", "failed"),
    [
        ([[0.9, 0.1], [0.2, 0.8]], [0, 1], 0),
        ([[0.9, 0.1], [0.2, 0.8]], [0, NOBODY], 1 / 2),  # missing
        ([[0.9, 0.1, 0.7], [0.2, 0.8, 0.1]], [0, 1], 1 / 2),  # twice
        ([[0.9, 0.1, 0.2], [0.2, 0.8, 0.1]], [0, 1], 0),  # a stranger claims nobody
        ([[0.6, 0.8], [0.9, 0.7]], [0, 1], 1),  # looks traded
        (
            [[0.6, 0.1], [0.7, 0.9]],
            [0, 1],
            1,
        ),  # the second comes twice
        ([[0.9, 0.1], [0.2, 0.4]], [0, 1], 1 / 2),  # below the least identity
        ([[0.9]], [0], 0),
        ([[0.9, 0.8]], [0], 1),
    ],
)
def test_a_subject_fails_in_one_of_four_ways(similarity, assignment, failed):
    values = identity_values(np.array(similarity), assignment, claim=0.3, least=0.5)
    assert values["failed"] == pytest.approx(failed)


def test_one_subject_has_no_leakage_and_an_empty_picture_only_misses():
    values = identity_values(np.array([[0.8]]), [0], claim=0.3, least=0.5)
    assert math.isnan(values["leakage_margin"]) and math.isnan(values["confusion"])
    empty = identity_values(np.zeros((2, 0)), [NOBODY, NOBODY], claim=0.3, least=0.5)
    assert (empty["identity"], empty["missing"], empty["duplicate"]) == (0, 1, 0)
    assert math.isnan(empty["confusion"]) and empty["scr_60"] == 1


@given(DEGREES, DEGREES)
def test_hue_difference_is_the_angle_between(a, b):
    between = math.acos(np.clip(math.cos(math.radians(a - b)), -1, 1))
    assert hue_difference(a, b) == pytest.approx(math.degrees(between), abs=1e-4)


def test_circular_mean_crosses_zero():
    assert circular_mean(np.array([350.0, 10.0, np.nan])) == pytest.approx(0, abs=1e-9) or (
        circular_mean(np.array([350.0, 10.0])) == pytest.approx(360)
    )
    assert math.isnan(circular_mean(np.array([np.nan])))


def test_nan_mean_leaves_out_what_has_no_meaning():
    assert nan_mean(np.array([1.0, np.nan, 3.0])) == 2
    assert math.isnan(nan_mean(np.array([])))


def test_the_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        interval = bootstrap(rng.normal(1.0, 2.0, 60), **(SETTINGS | {"seed": trial}))
        hits += interval.low <= 1.0 <= interval.high
    assert 0.90 <= hits / 300 <= 0.98


def test_the_interval_equals_the_percentiles_of_resampled_means():
    values = np.random.default_rng(1).random(30)
    at = np.random.default_rng(7).integers(0, 30, (500, 30))
    means = [np.mean([values[k] for k in row]) for row in at]
    interval = bootstrap(values, resamples=500, level=0.9, seed=7)
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(means, [0.05, 0.95])))
    assert interval.mean == pytest.approx(values.mean()) and interval.scenes == 30


def test_few_scenes():
    assert bootstrap(np.array([np.nan, 0.5]), **SETTINGS) == bootstrap(np.array([0.5]), **SETTINGS)
    one = bootstrap(np.array([0.5]), **SETTINGS)
    assert (one.mean, one.low, one.high, one.scenes) == (0.5, 0.5, 0.5, 1)
    none = bootstrap(np.array([np.nan]), **SETTINGS)
    assert none.scenes == 0 and math.isnan(none.mean)


def measured(model, scene, index=0, subjects=2, held_out=False, **values):
    defaults = dict.fromkeys(METRICS, 0.5)
    return EvalScene(
        protocol="pocket",
        model=model,
        scene_id=scene,
        index=index,
        image="",
        subject_ids=tuple(f"s{n}" for n in range(subjects)),
        class_names=tuple(f"c{n}" for n in range(subjects)),
        held_out=held_out,
        seen=subjects,
        boxes=((),) * subjects,
        matched=(0.5,) * subjects,
        **(defaults | values),
    )


def table(base, adapter, **fields):
    made = rows(base, adapter, EvaluateConfig(**fields))
    return {(r.metric, r.group, r.model): r for r in made}


def test_equal_models_differ_by_exactly_nothing():
    rng = np.random.default_rng(0)
    values = rng.random(20)
    base = [measured("base", f"s{n}", identity=v) for n, v in enumerate(values)]
    same = [measured("adapter", f"s{n}", identity=v) for n, v in enumerate(values)]
    for row in table(base, same).values():
        if row.model == "adapter - base":
            assert (row.mean, row.low, row.high) == (0, 0, 0)


def test_a_constant_gain_is_certain_although_scenes_vary():
    values = np.random.default_rng(0).random(20)
    base = [measured("base", f"s{n}", identity=v) for n, v in enumerate(values)]
    better = [measured("adapter", f"s{n}", identity=v + 0.1) for n, v in enumerate(values)]
    made = table(base, list(reversed(better)))
    gain = made["identity", "all", "adapter - base"]
    assert (gain.mean, gain.low, gain.high) == pytest.approx((0.1, 0.1, 0.1))
    alone = made["identity", "all", "base"]
    assert alone.high - alone.low > 0.1 and alone.scenes == 20


def test_a_scene_counts_once_however_many_pictures_it_has():
    base = [measured("base", "a", index=n, identity=v) for n, v in enumerate([0.2, 0.4])]
    base.append(measured("base", "b", identity=0.9))
    assert scene_means(base, "identity") == pytest.approx({"a": 0.3, "b": 0.9})
    row = table(base, [])["identity", "all", "base"]
    assert (row.mean, row.scenes) == (pytest.approx(0.6), 2)


def test_groups_hold_their_scenes():
    base = [
        measured("base", "a", subjects=1, identity=0.1, leakage_margin=np.nan),
        measured("base", "b", subjects=2, identity=0.2, held_out=True),
        measured("base", "c", subjects=3, identity=0.3),
    ]
    made = table(base, [])
    means = {g: made["identity", g, "base"].mean for m, g, _ in made if m == "identity"}
    assert means == pytest.approx(
        {
            "all": 0.2,
            "1 subject": 0.1,
            "2 subjects": 0.2,
            "3 subjects": 0.3,
            "held-out classes": 0.2,
        }
    )
    assert ("leakage_margin", "1 subject", "base") not in made
    assert made["leakage_margin", "all", "base"].scenes == 2


def test_models_on_different_scenes_are_refused():
    with pytest.raises(ValueError, match="different scenes: .'a', 'b'."):
        rows([measured("base", "a")], [measured("adapter", "b")], EvaluateConfig())
