"""Small, real models and shards for tests: nothing needs the trained weights."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from pair_samples import write_shards
from tiny_backbone import tiny_backbone

from focusdpo.model.backbones.flux import FluxBackbone

torch.set_num_threads(1)
# How fast a busy machine draws and runs an example says nothing about the code.
settings.register_profile(
    "busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("busy machine")


@pytest.fixture(scope="session")
def pair_shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two shards: 5 pairs of two subjects, 3 pairs of one."""
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def backbone() -> FluxBackbone:
    """Random weights, always the same."""
    return tiny_backbone()
