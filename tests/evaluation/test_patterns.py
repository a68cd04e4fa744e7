"""The comparison of structures against plain geometry."""

from __future__ import annotations

import math

import numpy as np
import pytest

from focusdpo.evaluation.metrics import pattern_difference

SIDE = 24


def waves(degrees=0.0, depth=0.1, period=7.0, phase=0.0):
    """Stripes on a disc: (2, S, S)."""
    grid = np.arange(SIDE) - (SIDE - 1) / 2
    y, x = np.meshgrid(grid, grid, indexing="ij")
    angle = np.deg2rad(degrees)
    known = (x**2 + y**2 < 9**2).astype(np.float32)
    along = np.cos(angle) * y + np.sin(angle) * x
    light = depth * np.sin(2 * np.pi * along / period + phase)
    return np.stack([light * known, known]).astype(np.float32)


def test_equal_structures_do_not_differ_and_crossed_ones_do():
    assert pattern_difference(waves(), [waves()]) == pytest.approx(0, abs=1e-6)
    assert pattern_difference(waves(20), [waves()]) < 0.05
    assert pattern_difference(waves(90), [waves()]) > 0.8
    assert pattern_difference(waves(0, phase=2 * np.pi / 7), [waves()]) < 0.05


def test_a_lost_pattern_is_all_the_difference_and_a_faint_one_a_part():
    assert pattern_difference(waves(depth=0.0), [waves()]) > 0.9
    half = pattern_difference(waves(depth=0.05), [waves()])
    # |a - a/2|^2 / (|a|^2 + |a/2|^2)
    assert half == pytest.approx(0.2, abs=0.02)


def test_flat_bodies_are_equal_whatever_their_grain():
    rng = np.random.default_rng(0)
    one, two = waves(depth=0.0), waves(depth=0.0)
    one[0] += rng.normal(0, 0.002, one[0].shape) * one[1]
    two[0] += rng.normal(0, 0.002, two[0].shape) * two[1]
    assert pattern_difference(one, [two]) < 0.05


def test_the_mean_is_over_the_references_that_can_be_compared():
    lost = np.full((2, SIDE, SIDE), np.nan, np.float32)
    crossed = pattern_difference(waves(), [waves(90)])
    assert pattern_difference(waves(), [waves(), waves(90), lost]) == pytest.approx(crossed / 2)
    assert math.isnan(pattern_difference(waves(), [lost]))
    assert math.isnan(pattern_difference(lost, [waves()]))


def test_bodies_that_hardly_overlap_are_unrelated():
    left, right = waves(), waves()
    left[:, :, 11:], right[:, :, :13] = 0, 0
    left[1, :2], right[1, :2] = 0, 0
    assert pattern_difference(left, [right]) <= 1
