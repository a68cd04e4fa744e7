"""M_d against its formula written out pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest

from focusdpo.pipeline.complexity import (
    ComplexityConfig,
    as_bytes,
    complexity_map,
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
    assert as_bytes(made).max() == 255


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
