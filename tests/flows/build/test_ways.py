"""How many of our functions lie between a command and what it is about."""

from __future__ import annotations

from pathlib import Path

import pytest
from plain_build import execute, prepare
from toy_root import Toy

from benchmarks.ways import PairWay, as_text, build_way
from focusdpo.flows import wiring
from focusdpo.flows.config import BuildRun, TrainRun
from focusdpo.flows.settings import resolve
from focusdpo.flows.train.run import train

QUICK = {"steps": 12, "batch_pairs": 4, "save_every": 12, "warmup": 1, "mixed_precision": "no"}


def test_a_builds_way_to_its_first_stage(toy: Toy) -> None:
    way = build_way(toy.arguments)
    assert [function.name for function in (way[0], way[-1])] == ["main", "_compose"]
    assert len(way) <= 12, as_text(way)
    assert len({function.module for function in way}) <= 6, as_text(way)


def test_a_pairs_way_to_the_training_step(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(wiring.SUITES, "pocket", "toy_trainer")
    wiring.resident_parts.cache_clear()
    build = prepare(resolve(BuildRun, toy.tree()))
    given = {**QUICK, "source": "both", "lora": {"rank": 2}, "tensorboard": False}
    where = {"root": str(toy.root), "out": str(tmp_path / "train")}
    way = PairWay()
    way.follow(lambda: execute(build))
    way.follow(lambda: train(resolve(TrainRun, {**where, "train": given})))
    names = [function.name for function in way.functions]
    assert (names[0], names[-1]) == ("pair", "backward_step")
    assert len(names) <= 15, as_text(way.functions)
