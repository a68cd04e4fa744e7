"""Assignment, leakage and confusion against direct definitions."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from focusdpo.pipeline.matching import (
    NOBODY,
    assign,
    at_places,
    claims,
    confused,
    leakage_margins,
    similarity_matrix,
)

COSINE = st.floats(-1, 1, width=32)
TABLES = st.tuples(st.integers(1, 4), st.integers(0, 5)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=COSINE)
)
SQUARES = st.integers(1, 4).flatmap(lambda n: arrays(np.float64, (n, n), elements=COSINE))


def best_total(table):
    """The greatest total over all one-to-one assignments, by trying every one."""
    subjects, instances = table.shape
    if subjects <= instances:
        orders = permutations(range(instances), subjects)
        return max(sum(table[i, k] for i, k in enumerate(order)) for order in orders)
    orders = permutations(range(subjects), instances)
    return max(sum(table[i, k] for k, i in enumerate(order)) for order in orders)


@given(TABLES)
def test_assignment_is_the_best_of_all_permutations(table):
    found = assign(table)
    used = [k for k in found if k != NOBODY]
    assert len(set(used)) == len(used) == min(table.shape)
    total = sum(table[i, k] for i, k in enumerate(found) if k != NOBODY)
    assert total == pytest.approx(best_total(table), abs=1e-9)


@given(SQUARES)
def test_leakage_margin_equals_its_definition(places):
    count = len(places)
    for i, margin in enumerate(leakage_margins(places)):
        rivals = [places[i, j] for j in range(count) if j != i] or [-1.0]
        assert margin == pytest.approx(places[i, i] - max(rivals))


@given(SQUARES, st.randoms())
def test_renaming_the_subjects_renames_the_margins(places, random):
    order = list(range(len(places)))
    random.shuffle(order)
    moved = leakage_margins(places[np.ix_(order, order)])
    np.testing.assert_allclose(moved, leakage_margins(places)[order])


@given(TABLES)
def test_confusion_means_another_reference_fits_better(table):
    found = assign(table)
    for i, wrong in enumerate(confused(table, found)):
        k = found[i]
        assert wrong == (k != NOBODY and any(row[k] > table[i, k] for row in table))


def test_similarity_is_the_mean_over_the_references_pictures():
    rng = np.random.default_rng(0)
    references = [rng.normal(size=(n, 5)) for n in (1, 3)]
    instances = rng.normal(size=(4, 5))
    table = similarity_matrix(references, instances)
    for i, own in enumerate(references):
        for k, instance in enumerate(instances):
            assert table[i, k] == pytest.approx(np.mean([r @ instance for r in own]))
    assert similarity_matrix(references, np.zeros((0, 5))).shape == (2, 0)


def test_a_place_without_an_instance_is_absent():
    table = np.array([[0.9, 0.2], [0.1, 0.8], [0.3, 0.4]])
    found = assign(table)
    assert found == [0, 1, NOBODY]
    places = at_places(table, found, absent=-1)
    np.testing.assert_array_equal(places[:, 2], [-1, -1, -1])
    np.testing.assert_array_equal(places[:, :2], table)


def test_one_subject_painted_twice_is_claimed_twice():
    table = np.array([[0.9, 0.8, 0.2], [0.1, 0.3, 0.1]])
    assert claims(table, least=0.3).tolist() == [2, 0]
    assert confused(table, assign(table)).tolist() == [False, True]
