"""M_d against its formula written out pixel by pixel."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from focusdpo.pipeline.complexity import (
    ComplexityConfig,
    complexity_map,
    histogram_entropy,
    local_entropy,
    luma,
    scale_inside,
)


def slow_entropy(values, sigma, eps, reach=4.0):
    """Moments under a normalised, truncated Gaussian window with mirrored edges."""
    height, width = values.shape
    radius = int(reach * sigma + 0.5)
    steps = range(-radius, radius + 1)
    bell = [math.exp(-(step**2) / (2 * sigma**2)) for step in steps]

    def mirror(at, size):
        at %= 2 * size
        return at if at < size else 2 * size - 1 - at

    entropy = np.zeros_like(values)
    for y in range(height):
        for x in range(width):
            total = first = second = 0.0
            for i, dy in enumerate(steps):
                for k, dx in enumerate(steps):
                    weight = bell[i] * bell[k]
                    value = values[mirror(y + dy, height), mirror(x + dx, width)]
                    total += weight
                    first += weight * value
                    second += weight * value**2
            variance = max(second / total - (first / total) ** 2, 0)
            entropy[y, x] = 0.5 * math.log(2 * math.pi * math.e * (variance + eps))
    return entropy


@pytest.mark.parametrize("sigma", [0.8, 1.5])
def test_entropy_equals_the_slow_formula(sigma):
    values = np.random.default_rng(0).random((9, 11))
    np.testing.assert_allclose(
        local_entropy(values, sigma, 1e-4), slow_entropy(values, sigma, 1e-4), rtol=1e-9, atol=1e-9
    )


def test_a_flat_picture_has_the_floor_of_entropy():
    flat = np.full((8, 8), 0.7)
    floor = 0.5 * math.log(2 * math.pi * math.e * 1e-4)
    np.testing.assert_allclose(local_entropy(flat, 1.0, 1e-4), floor)


def test_luma_of_known_colours():
    image = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8)
    np.testing.assert_allclose(luma(image), [[0.299, 0.587, 0.114, 1.0]])


def test_detail_gets_more_than_flatness_and_outside_gets_nothing():
    rng = np.random.default_rng(1)
    image = np.full((64, 64, 3), 128, np.uint8)
    image[:, 32:] = rng.integers(0, 256, (64, 32, 1))
    prior = np.zeros((64, 64), bool)
    prior[8:56, 8:56] = True
    made = complexity_map(image, prior, ComplexityConfig())
    assert made.dtype == np.float32 and made.min() == 0 and made.max() == 1
    assert (made[~prior] == 0).all()
    assert made[8:56, 40:56].mean() > 0.7 and made[8:56, 8:26].max() < 0.05


def test_scaling_is_robust_and_inside_the_prior():
    values = np.arange(100.0).reshape(10, 10)
    values[0, 0] = 1e9
    prior = np.ones((10, 10), bool)
    prior[9] = False
    scaled = scale_inside(values, prior, 0.1, 0.9)
    bottom, top = np.quantile(values[prior], [0.1, 0.9])
    np.testing.assert_allclose(
        scaled[prior], np.clip((values[prior] - bottom) / (top - bottom), 0, 1), rtol=1e-6
    )
    assert (scaled[9] == 0).all()


def test_nothing_to_tell_is_zero():
    image = np.full((16, 16, 3), 90, np.uint8)
    assert not complexity_map(image, np.ones((16, 16), bool)).any()
    assert not complexity_map(image, np.zeros((16, 16), bool)).any()


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"prior is \(8, 8\), expected \(16, 16\)"):
        complexity_map(np.zeros((16, 16, 3), np.uint8), np.ones((8, 8), bool))
    with pytest.raises(ValueError, match="low is 0.9, it must lie below high"):
        ComplexityConfig(low=0.9, high=0.5)


def slow_histogram_entropy(values, sigma, radius, bins, window):
    """Pixel by pixel; the blur alone is scipy's."""
    blurred = ndimage.gaussian_filter(values, sigma, mode="reflect")
    height, width = values.shape

    def mirror(at, size):
        at %= 2 * size
        return at if at < size else 2 * size - 1 - at

    entropy = np.zeros_like(values)
    for y in range(height):
        for x in range(width):
            counts = [0] * bins
            for dy in range(-radius, radius + 1):
                for dx in range(-radius, radius + 1):
                    if window == "disk" and dy**2 + dx**2 > radius**2:
                        continue
                    value = blurred[mirror(y + dy, height), mirror(x + dx, width)]
                    counts[min(int(value * bins), bins - 1)] += 1
            shares = [n / sum(counts) for n in counts if n]
            entropy[y, x] = -sum(share * math.log(share) for share in shares)
    return entropy


@pytest.mark.parametrize("window", ["disk", "square"])
@pytest.mark.parametrize("radius, bins, sigma", [(1, 2, 0.5), (3, 8, 0.8), (5, 32, 1.5)])
def test_histogram_entropy_equals_the_slow_formula(window, radius, bins, sigma):
    values = np.random.default_rng(0).random((9, 11)) ** 2
    values[:2] = 1.0
    np.testing.assert_allclose(
        histogram_entropy(values, sigma, radius, bins, window),
        slow_histogram_entropy(values, sigma, radius, bins, window),
        atol=1e-12,
    )


@settings(max_examples=25)
@given(
    seed=st.integers(0, 999),
    size=st.tuples(st.integers(4, 24), st.integers(4, 24)),
    bins=st.integers(2, 64),
    radius=st.floats(0.01, 0.4),
    window=st.sampled_from(["disk", "square"]),
    estimator=st.sampled_from(["gaussian", "histogram"]),
)
def test_every_estimator_gives_a_map_inside_the_prior(seed, size, **choices):
    rng = np.random.default_rng(seed)
    prior = rng.random(size) > 0.5
    made = complexity_map(
        rng.integers(0, 256, (*size, 3)).astype(np.uint8), prior, ComplexityConfig(**choices)
    )
    assert made.dtype == np.float32 and made.shape == size
    assert made.min() >= 0 and made.max() <= 1
    assert (made[~prior] == 0).all()


def test_both_estimators_find_the_detail():
    rng = np.random.default_rng(1)
    image = np.full((64, 64, 3), 128, np.uint8)
    image[:, 32:] = rng.integers(0, 256, (64, 32, 1))
    prior = np.ones((64, 64), bool)
    for window in ("disk", "square"):
        made = complexity_map(image, prior, ComplexityConfig(estimator="histogram", window=window))
        assert made[:, 40:].mean() > 0.6 and made[:, :24].max() < 0.05


CHANGES = {
    "estimator": {"histogram": {}},
    "window": {"square": {"estimator": "histogram"}},
    "radius": {1 / 8: {"estimator": "histogram"}},
    "bins": {8: {"estimator": "histogram"}},
    "sigma": {1 / 16: {"estimator": "histogram"}},
    "eps": {1e-2: {}},
    "low": {0.1: {}},
    "high": {0.9: {}},
}


@pytest.mark.parametrize("field", ComplexityConfig.model_fields)
def test_no_field_is_dead(field):
    image = np.random.default_rng(2).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    image[20:40] //= 8
    prior = np.ones((64, 64), bool)
    for value, others in CHANGES[field].items():
        base = complexity_map(image, prior, ComplexityConfig(**others))
        other = complexity_map(image, prior, ComplexityConfig(**{**others, field: value}))
        assert not np.array_equal(base, other)


def test_every_alternative_of_a_choice_is_among_the_changes():
    for name, field in ComplexityConfig.model_fields.items():
        default, *others = get_args(field.annotation) or [None]
        assert set(others) <= set(CHANGES[name])
        assert not others or field.default == default
