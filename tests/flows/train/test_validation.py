"""What training sees of validation individuals, on a toy suite that trains; and which pairs it
trains on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_trainer
from plain_build import execute, prepare
from toy_root import Toy

from focusdpo.data_schemas.errors import UserError
from focusdpo.evaluation import validation
from focusdpo.evaluation.held_out import HeldOutConfig, held_out_scenes
from focusdpo.evaluation.metrics import METRICS
from focusdpo.evaluation.validation import (
    SCORE,
    Validator,
    check_metric,
    validation_scenes,
)
from focusdpo.flows import wiring
from focusdpo.flows.cli import main
from focusdpo.flows.config import BuildRun, TrainRun
from focusdpo.flows.settings import resolve
from focusdpo.flows.train.run import train
from focusdpo.model.adapter import add_policy, policy_parameters, remove_policy
from focusdpo.model.training.config import LoraConfig
from focusdpo.pipeline.upkeep.garbage import collect
from focusdpo.store.artefacts import Store
from focusdpo.store.versions import open_version

TRAIN: dict[str, Any] = {
    "steps": 2,
    "batch_pairs": 2,
    "lr": 1e-3,
    "warmup": 0,
    "mixed_precision": "no",
    "tensorboard": False,
    "lora": {"rank": 2},
}


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(wiring.SUITES, "pocket", "toy_trainer")
    monkeypatch.setattr(validation, "_BASES", {})


@pytest.fixture
def policy(suite: None) -> Iterator[dict[str, Any]]:
    """A LoRA that changes nothing yet, on the backbone that the suite paints with."""
    transformer = toy_trainer.backbone().transformer
    add_policy(transformer, LoraConfig(rank=2, targets=("to_q", "to_v")), seed=0)
    yield policy_parameters(transformer)
    remove_policy(transformer)


def test_a_policy_that_changes_nothing_differs_in_nothing(policy: dict[str, Any]) -> None:
    values = Validator(wiring.suite("pocket"), 6)()
    assert set(values) == {*METRICS, SCORE}
    assert set(values.values()) == {0.0}


def test_the_base_is_measured_without_the_policy_and_once(policy: dict[str, Any]) -> None:
    told: list[tuple[str, int, int]] = []
    look = Validator(
        wiring.suite("pocket"), 6, lambda what, done, total, _: told.append((what, done, total))
    )
    assert look.scenes == 6
    for name, parameter in policy.items():
        if "lora_B" in name:
            parameter.data.fill_(0.05)
    moved = look()
    assert moved["identity"] != 0 and moved["hue_error"] != 0
    assert told == [("validate", 6, 6)] * 2, "base and policy"
    base = look.base()
    assert look() == moved and told == [("validate", 6, 6)] * 3
    for name, parameter in policy.items():
        if "lora_B" in name:
            parameter.data.zero_()
    assert set(look().values()) == {0.0}
    assert Validator(wiring.suite("pocket"), 6).base() == base and 0 < base["identity"] <= 1


def test_weights_that_diverged_are_not_judged(
    policy: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Validator(wiring.suite("pocket"), 6)
    assert look.base()

    def black(self: object, prompts: list[str], *_: object) -> list[np.ndarray]:
        return [np.zeros((48, 48, 3), np.uint8) for _ in prompts]

    monkeypatch.setattr(toy_trainer.Painter, "generate", black)
    with pytest.raises(UserError, match="the generator: painted a picture of one colour"):
        look()


def test_the_score_is_identity_and_the_margin_where_there_is_one(policy: dict[str, Any]) -> None:
    """A scene of one subject has no margin: it counts with its identity alone."""
    base = Validator(wiring.suite("pocket"), 12).base()
    several = 10 / 12  # two of twelve scenes have one subject
    expected = base["identity"] + several * base["leakage_margin"]
    assert base[SCORE] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("count", [6, 36, 96, 144, 192])
def test_scenes_are_in_the_presets_proportions(count: int) -> None:
    config = validation_scenes(count)
    kinds = [config.singles, config.pairs, config.same_class_pairs, config.triples]
    assert config.split == "val" and sum(kinds) == count
    assert kinds == [count // 6, count // 2, count // 6, count // 6]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 9, 10, 100])
def test_other_counts_are_about_so_many_of_every_kind(count: int) -> None:
    config = validation_scenes(count)
    kinds = [config.singles, config.pairs, config.same_class_pairs, config.triples]
    assert min(kinds) >= 1 and sum(kinds) == max(count, 4)


def test_individuals_are_of_val_and_in_no_other_split() -> None:
    mine = held_out_scenes(validation_scenes(12), ("grey",))
    theirs = held_out_scenes(
        HeldOutConfig(singles=4, pairs=8, same_class_pairs=4, triples=4), ("grey",)
    )
    assert {one.identity.split for one in mine.subjects.values()} == {"val"}
    cells = {one.identity.cell for one in mine.subjects.values()}
    assert cells.isdisjoint(one.identity.cell for one in theirs.subjects.values())
    assert {one.id for one in mine.scenes}.isdisjoint(one.id for one in theirs.scenes)


def test_training_looks_and_keeps_the_best(toy: Toy, suite: None, tmp_path: Path) -> None:
    execute(prepare(resolve(BuildRun, toy.tree())))
    looks = {"every": 1, "scenes": 6, "keep": "best"}
    tree = {"root": str(toy.root), "out": str(tmp_path / "t"), "train": TRAIN | {"steps": 3}}
    run = resolve(TrainRun, tree | {"train": tree["train"] | {"validation": looks}})
    told: list[str] = []
    result = train(run, lambda what, *_: told.append(what))
    assert [row["step"] for row in result.validation] == [1, 2, 3]
    assert all(set(row) == {"step", SCORE, *METRICS} for row in result.validation)
    scores = [row[SCORE] for row in result.validation]
    assert result.adapter_step == 1 + int(np.argmax(scores))
    assert len(set(scores)) > 1 and told.count("validate") == 4
    again = train(run)
    assert again.resumed_from == 3 and again.validation == result.validation


def test_gc_leaves_a_training_what_it_reads(toy: Toy, suite: None, tmp_path: Path) -> None:
    old = execute(prepare(resolve(BuildRun, toy.tree())))
    new = execute(prepare(resolve(BuildRun, toy.tree(pair={"min_drop": 0.2}))))
    assert old.version != new.version
    tree = {"root": str(toy.root), "out": str(tmp_path / "t"), "version": old.version}
    run = resolve(TrainRun, tree | {"train": TRAIN})
    kept: list[dict[str, str]] = []

    def sweep(*_: object) -> None:
        kept.append(collect(Store.open(toy.root), keep_versions=1, min_age=0).in_use)

    assert train(run, sweep).steps == 2
    assert kept and all(list(one) == [old.version] for one in kept)
    gone = collect(Store.open(toy.root), keep_versions=1, min_age=0)
    assert list(gone.versions) == [old.version], "the training is over"


def last_json(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[Any, Any]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--json"])
    return ended.value.code, json.loads(capsys.readouterr().out.rstrip().rpartition("\n")[2])


def test_the_command_trains_on_the_pairs_of_a_source(
    toy: Toy, suite: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ranked = {"rank_margin": 0.001, "max_rank_per_scene": 2}
    execute(prepare(resolve(BuildRun, toy.tree(pair=ranked))))
    rows = [row for row in open_version(toy.root).rows if row.split == "train"]
    sources = [row.source for row in rows]
    assert sources.count("rank") > 0 and sources.count("disrupt") > 0
    given = {**{k: v for k, v in TRAIN.items() if k != "lora"}, "steps": 1, "lora.rank": 2}
    for source in ("rank", "both"):
        arguments = ["train", "--root", str(toy.root), "--out", str(tmp_path / source)]
        for name, value in {**given, "source": source}.items():
            arguments += ["--set", f"train.{name}={json.dumps(value)}"]
        code, told = last_json([*arguments, "--no-prefect"], capsys)
        wanted = len(rows) if source == "both" else sources.count(source)
        assert code in (0, None) and told["pairs"] == wanted


def test_an_unknown_source_is_refused(
    toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "t"
    arguments = ["train", "--root", str(toy.root), "--out", str(out), "--no-prefect"]
    code, told = last_json([*arguments, "--set", "train.source=ranked"], capsys)
    assert code == 2 and "train.source" in told["error"]
    assert all(word in told["error"] for word in ("ranked", "both", "disrupt", "rank"))
    assert not out.exists()


@pytest.mark.parametrize("name", ["confusion", "pattern_error", "nonsense"])
def test_a_metric_that_no_look_can_be_best_by_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="score, identity, leakage_margin"):
        check_metric(name)


@pytest.mark.parametrize("name", ["score", "identity", "class_recognition"])
def test_metrics_that_are_better_when_higher_are_taken(name: str) -> None:
    check_metric(name)
