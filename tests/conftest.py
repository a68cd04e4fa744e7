"""Small, real models and shards for tests: nothing needs the trained weights."""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Each process of tests has a Prefect of its own: not the developer's profile, nor one database for
# two. Children inherit it.
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="focusdpo-tests-")

import shutil
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
import torch
import toy_world
from hypothesis import HealthCheck, settings
from pair_samples import write_pairs
from tiny_backbone import tiny_backbone

from focusdpo.model.backbones.flux import FluxBackbone
from focusdpo.store.samples import Sample

if TYPE_CHECKING:
    from s3_server import S3Server

torch.set_num_threads(1)
# How fast a busy machine draws and runs an example says nothing about the code.
settings.register_profile(
    "busy machine", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("busy machine")


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["PREFECT_HOME"], ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def no_browser_is_left() -> Iterator[None]:
    """A file's tests share a browser; Playwright's event loop must not meet another file's."""
    yield
    if "browsing" in sys.modules:
        sys.modules["browsing"].close()


@pytest.fixture(scope="session")
def pair_samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """5 pairs of two subjects in one shard, 3 pairs of one in another."""
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="session")
def s3_running() -> Iterator[S3Server]:
    """One S3 server for all tests, with a bucket."""
    from s3_server import BUCKET, s3_server  # moto takes a second, and few tests need it

    with s3_server() as running:
        running.make_bucket(BUCKET)
        yield running


@pytest.fixture
def s3(s3_running: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The S3 server that this process's clients talk to; it fails when it is told to."""
    s3_running.use(monkeypatch)
    return s3_running


@pytest.fixture
def backbone() -> FluxBackbone:
    """Random weights, always the same."""
    return tiny_backbone()


@pytest.fixture
def world() -> toy_world.World:
    """Red disc, blue disc, green square, with two pictures each."""
    return toy_world.three_subjects()


@pytest.fixture
def toy() -> ModuleType:
    """The toy parts and painting helpers, by name."""
    return toy_world
