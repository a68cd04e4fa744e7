"""The training part of `focusdpo bench`: which pairs, which figures, what is promised."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_backbone import tiny_backbone

from benchmarks import measuring as step_figures
from benchmarks.measuring import StepBench, memory_figures, memory_of
from benchmarks.step_cost import StepMemory
from focusdpo.flows import wiring
from focusdpo.model.backbones.flux import FluxBackbone

GIB = 2**30


class Version:
    """Eight pairs of a dataset version."""

    def __init__(self, shards: list[Path]) -> None:
        self._shards = shards

    def shards(self, split: str) -> list[Path]:
        return self._shards

    def ids(self, split: str) -> None:
        return None


@pytest.fixture
def bench(pair_shards: list[Path], monkeypatch: pytest.MonkeyPatch) -> StepBench:
    """On the tiny backbone."""

    def build(suite: str, role: str) -> FluxBackbone:
        return tiny_backbone()

    monkeypatch.setattr(wiring, "build_part", build)
    monkeypatch.setattr("focusdpo.store.versions.open_version", lambda _: Version(pair_shards))
    return StepBench("root", "pocket", ("world.subjects=8", "train.objective.beta=7"))


def test_a_small_dataset_fills_the_batch_too(bench: StepBench) -> None:
    _, batch, config = bench.parts()
    assert len(batch) == step_figures.PAIRS == 16
    assert len(set(batch.keys)) == 5, "the larger group: five pairs of two subjects"
    assert config.objective.beta == 7


def test_memory_is_that_of_steps(bench: StepBench) -> None:
    memory = memory_of(bench, "focus_dpo")
    if memory is not None:  # Linux
        assert memory.before_bytes <= memory.peak_bytes


def test_time_and_memory_are_told_with_what_is_promised(
    bench: StepBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"dpo": StepMemory(3 * GIB, 4 * GIB), "focus_dpo": StepMemory(3 * GIB, 5 * GIB)}
    monkeypatch.setattr(step_figures, "_alone", lambda _, name: known[name])
    figures = step_figures.step_figures(Path("root"), "pocket", bench.overrides, 3)
    limits = {figure.name: figure.limit for figure in figures if figure.limit is not None}
    assert limits == {
        "FocusDPO step / DPO step": 1.03,
        "FocusDPO steps / DPO steps: memory above": 1.05,
    }
    last = figures[-1]
    assert (last.value, last.ok) == (2.0, False)
    assert [figure.value for figure in figures if figure.unit == "GiB"] == [4, 1, 5, 2]


def test_no_memory_figure_where_the_system_does_not_tell() -> None:
    assert memory_figures(None, StepMemory(1, 2)) == []


def test_the_environment_of_a_memory_process_does_not_stay(
    bench: StepBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    class Pool:
        def __init__(self, **_: object) -> None:
            assert os.environ["MALLOC_TRIM_THRESHOLD_"] == "65536"
            raise OSError("no process")

    monkeypatch.setattr(step_figures, "ProcessPoolExecutor", Pool)
    before = dict(os.environ)
    with pytest.raises(OSError, match="no process"):
        step_figures._alone(bench, "dpo")
    assert dict(os.environ) == before
