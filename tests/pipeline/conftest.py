"""Fixtures of the toy world (tests/helpers/toy_world.py)."""

from __future__ import annotations

import pytest
import toy_world
from hypothesis import settings

# A busy machine is slow, not wrong.
settings.register_profile("patient", deadline=None, max_examples=60)
settings.load_profile("patient")


@pytest.fixture
def world():
    """Red disc, blue disc, green square, with two pictures each."""
    return toy_world.three_subjects()


@pytest.fixture
def toy():
    """The toy parts and painting helpers, by name."""
    return toy_world
