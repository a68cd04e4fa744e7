"""Contrasts against a slow loop; intervals cover and families err as seldom as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from focusdpo.evaluation.comparison import arm_rows, contrasts

SETTINGS = {"resamples": 400, "level": 0.95, "seed": 0}
NAN = float("nan")


def tables(seeds=3, scenes=12, arms=("a", "b", "c"), rng=0, holes=0.1):
    """Two metrics, the base in one row, some values missing."""
    generator = np.random.default_rng(rng)
    made = {}
    for metric in ("identity", "leakage_margin"):
        table = {"base": generator.normal(0, 1, (1, scenes))}
        table |= {arm: generator.normal(0.3, 1, (seeds, scenes)) for arm in arms}
        for values in table.values():
            values[generator.random(values.shape) < holes] = NAN
        made[metric] = table
    return made


def slow(values, pairs, resamples, level, seed):
    """The definition, one drawn scene and seed at a time."""
    scenes = values["identity"]["base"].shape[1]
    seeds = max(len(v) for table in values.values() for v in table.values())
    rng = np.random.default_rng(seed)
    scene_counts = rng.multinomial(scenes, [1 / scenes] * scenes, resamples)
    seed_counts = rng.multinomial(seeds, [1 / seeds] * seeds, resamples)
    found = []
    for table in values.values():
        for a, b in pairs:
            cells = {}
            for s in range(seeds):
                for k in range(scenes):
                    first = table[a][s if len(table[a]) > 1 else 0][k]
                    second = table[b][s if len(table[b]) > 1 else 0][k]
                    if not math.isnan(first - second):
                        cells[s, k] = first - second
            mean = sum(cells.values()) / len(cells)
            stretch = math.sqrt(seeds / (seeds - 1)) if seeds > 1 else 1.0
            for s in range(seeds):
                own = [v for (t, _), v in cells.items() if t == s]
                push = (stretch - 1) * (sum(own) / len(own) - mean)
                for key in [key for key in cells if key[0] == s]:
                    cells[key] += push
            draws = []
            for r in range(resamples):
                drawn = [
                    cells[s, k]
                    for s in np.repeat(range(seeds), seed_counts[r])
                    for k in np.repeat(range(scenes), scene_counts[r])
                    if (s, k) in cells
                ]
                draws.append(sum(drawn) / len(drawn))
            found.append((mean, np.array(draws)))
    errors = [draws.std() for _, draws in found]
    largest = [
        max(abs(d[r] - m) / e for (m, d), e in zip(found, errors, strict=True))
        for r in range(resamples)
    ]
    width = np.quantile(largest, level)
    out = []
    for (mean, draws), error in zip(found, errors, strict=True):
        low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
        p = (1 + sum(one >= abs(mean) / error for one in largest)) / (resamples + 1)
        out.append((mean, low, high, mean - width * error, mean + width * error, p))
    return out


@pytest.mark.parametrize("seeds", [1, 3])
def test_equals_a_slow_loop(seeds):
    values, pairs = tables(seeds), [("a", "base"), ("a", "b"), ("c", "b")]
    made = contrasts(values, pairs, resamples=60, level=0.9, seed=4)
    assert [(m.metric, m.a, m.b) for m in made] == [(m, *p) for m in values for p in pairs]
    numbers = [(m.mean, m.low, m.high, m.family_low, m.family_high, m.p_family) for m in made]
    assert np.allclose(numbers, slow(values, pairs, 60, 0.9, 4))


def crossed(rng, seeds, scenes, arms, *, seed_std=0.15, scene_std=1.0, own_std=1.0, gain=0.0):
    """Arms with effects of their own per scene, per seed and per both."""
    base = rng.normal(0, 1, (1, scenes))
    table = {"base": base}
    for number in range(arms):
        effect = gain + rng.normal(0, scene_std, (1, scenes))
        effect = effect + rng.normal(0, seed_std, (seeds, 1))
        table[f"arm{number}"] = base + effect + rng.normal(0, own_std, (seeds, scenes))
    return table


@pytest.mark.parametrize("stds", [(0.05, 1.0, 0.5), (0.1, 0.5, 1.0)])
def test_the_interval_covers_as_often_as_it_says(stds):
    rng = np.random.default_rng(0)
    spread = dict(zip(("seed_std", "scene_std", "own_std"), stds, strict=True))
    hits = 0
    for trial in range(200):
        table = crossed(rng, 3, 80, 1, gain=0.7, **spread)
        one = contrasts({"m": table}, [("arm0", "base")], **(SETTINGS | {"seed": trial}))[0]
        hits += one.low <= 0.7 <= one.high
    assert hits / 200 >= 0.90


def test_the_family_errs_seldom_when_nothing_differs():
    rng = np.random.default_rng(1)
    pairs = [(f"arm{n}", "base") for n in range(5)]
    wrong = alone = 0
    for trial in range(200):
        values = {m: crossed(rng, 3, 60, 5, seed_std=0.05, own_std=0.5) for m in ("i", "l")}
        made = contrasts(values, pairs, **(SETTINGS | {"seed": trial}))
        assert len(made) == 10
        wrong += any(one.family_low > 0 or one.family_high < 0 for one in made)
        alone += any(one.low > 0 or one.high < 0 for one in made)
    assert wrong / 200 <= 0.10
    assert alone > 2 * wrong, "without the family's width some of ten would look real"


def test_a_family_interval_and_its_p_value_say_the_same():
    values = tables(scenes=40)
    for one in contrasts(values, [("a", "b"), ("a", "base"), ("c", "base")], **SETTINGS):
        assert (one.family_low > 0 or one.family_high < 0) == (one.p_family <= 0.05)
        assert one.family_low < one.low and one.high < one.family_high


def test_an_arm_against_itself_is_exactly_nothing():
    made = contrasts(tables(), [("a", "a"), ("a", "b")], **SETTINGS)
    for one in made[::2]:
        assert (one.mean, one.low, one.high, one.family_low, one.family_high) == (0, 0, 0, 0, 0)
        assert one.p_family == 1


def test_a_constant_gain_is_certain():
    values = np.random.default_rng(0).random((3, 20))
    one = contrasts({"m": {"a": values + 0.1, "b": values}}, [("a", "b")], **SETTINGS)[0]
    ends = (one.mean, one.low, one.high, one.family_low, one.family_high)
    assert ends == pytest.approx((0.1,) * 5)
    assert one.p_family == pytest.approx(1 / 401)


def test_the_other_way_round_is_the_negative():
    forth = contrasts(tables(), [("a", "b"), ("c", "base")], **SETTINGS)
    back = contrasts(tables(), [("b", "a"), ("base", "c")], **SETTINGS)
    for one, other in zip(forth, back, strict=True):
        assert other.mean == pytest.approx(-one.mean)
        assert (other.low, other.high) == pytest.approx((-one.high, -one.low))
        assert (other.family_low, other.family_high) == pytest.approx(
            (-one.family_high, -one.family_low)
        )
        assert other.p_family == one.p_family and other.scenes == one.scenes


def test_scenes_without_a_value_do_not_count():
    values = tables(holes=0)
    table = values["leakage_margin"]
    table["a"][:, :4] = NAN
    table["b"][1, 5] = NAN
    by_metric = {one.metric: one for one in contrasts(values, [("a", "b")], **SETTINGS)}
    assert by_metric["identity"].scenes == 12
    assert by_metric["leakage_margin"].scenes == 8
    mean = np.nanmean(table["a"] - table["b"])
    assert by_metric["leakage_margin"].mean == pytest.approx(mean)


def test_a_metric_without_any_value_is_nan_and_leaves_the_others_alone():
    values = tables(holes=0)
    alone = contrasts({"identity": values["identity"]}, [("a", "b")], **SETTINGS)[0]
    values["leakage_margin"]["a"][:] = NAN
    identity, empty = contrasts(values, [("a", "b")], **SETTINGS)
    assert identity == alone
    assert empty.scenes == 0
    numbers = (empty.mean, empty.low, empty.high, empty.family_low, empty.p_family)
    assert all(math.isnan(number) for number in numbers)


def test_the_same_seed_gives_the_same_and_other_contrasts_move_only_the_family():
    pairs = [("a", "b"), ("c", "base")]
    assert contrasts(tables(), pairs, **SETTINGS) == contrasts(tables(), pairs, **SETTINGS)
    other = contrasts(tables(), pairs, **(SETTINGS | {"seed": 1}))
    assert other != contrasts(tables(), pairs, **SETTINGS)
    one = contrasts(tables(), pairs, **SETTINGS)[0]
    alone = contrasts(tables(), pairs[:1], **SETTINGS)[0]
    assert (one.mean, one.low, one.high) == (alone.mean, alone.low, alone.high)


def test_seeds_that_disagree_widen_the_interval():
    rng = np.random.default_rng(0)
    base, noise = np.zeros((1, 100)), rng.normal(0, 0.1, (3, 100))
    apart = noise + np.array([[-0.2], [0.0], [0.2]])
    made = contrasts(
        {"m": {"base": base, "near": noise, "apart": apart}},
        [("near", "base"), ("apart", "base")],
        **SETTINGS,
    )
    near, wide = (one.high - one.low for one in made)
    assert wide > 5 * near
    # Seed means of variance 0.04 over 3 seeds: standard error 0.115, an interval 3.9 times that.
    assert wide == pytest.approx(3.9 * math.sqrt(0.04 / 3), rel=0.2)


def test_tables_that_do_not_fit_are_refused():
    odd = {"m": {"a": np.zeros((3, 5)), "b": np.zeros((2, 5))}}
    with pytest.raises(ValueError, match=r"3 seeds \(or one\) by 5 scenes, got .'m, b: \(2, 5\)'"):
        contrasts(odd, [("a", "b")], **SETTINGS)
    assert contrasts({}, [("a", "b")], **SETTINGS) == []


def test_rows_are_means_over_seeds_and_scenes():
    table = {"base": np.array([[1.0, NAN]]), "a": np.array([[1.0, 2.0], [3.0, 4.0]])}
    table["none"] = np.full((2, 2), NAN)
    base, a = arm_rows({"m": table}, group="2 subjects")
    assert (base.arm, base.metric, base.group, base.mean) == ("base", "m", "2 subjects", 1.0)
    assert math.isnan(base.seed_std) and (base.seeds, base.scenes) == (1, 1)
    assert (a.mean, a.seeds, a.scenes) == (2.5, 2, 2)
    assert a.seed_std == pytest.approx(np.std([1.5, 3.5], ddof=1))
