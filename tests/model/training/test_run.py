"""Training runs: what they leave behind, and that a killed one goes on to the bit."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from pair_samples import make_sample, write_shard
from safetensors.numpy import load_file
from small_disk import no_file_beyond
from tiny_backbone import tiny_backbone
from tiny_runs import SETTINGS, Interrupted, stop_at, table_rows

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.doctor import run_check
from focusdpo.model.adapter import load_adapter, policy_parameters, read_card, read_weights
from focusdpo.model.backbones.flux import FluxBackbone
from focusdpo.model.training.config import LoraConfig, ObjectiveConfig, TrainConfig
from focusdpo.model.training.run import TrainResult, train
from focusdpo.model.training.steps import learning_rate
from focusdpo.reports.training_section import collect_training
from focusdpo.store.samples import Sample


def settings(**changes: Any) -> TrainConfig:
    return TrainConfig.model_validate(SETTINGS | {"save_every": 4} | changes)


def outcome(run: Path) -> tuple[Any, ...]:
    """All that must not depend on interruptions."""
    names = ("adapter/adapter.json", "adapter/pytorch_lora_weights.safetensors")
    files = [(run / name).read_bytes() for name in (*names, "focus.safetensors", "config.json")]
    return (*files, table_rows(run), table_rows(run, "buckets"))


@pytest.fixture(scope="module")
def straight(pair_samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    run = tmp_path_factory.mktemp("straight")
    train(tiny_backbone(), pair_samples, settings(), run, dataset_version="v1")
    return run


def test_a_run_leaves_all_it_promises(straight: Path) -> None:
    table = table_rows(straight)
    assert [row["step"] for row in table] == [str(step) for step in range(1, 13)]
    first = pq.read_table(straight / "steps.parquet").to_pylist()[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["win_gap"] == first["lose_gap"] == first["logit"] == 0
    summary = json.loads((straight / "run.json").read_text())
    assert (summary["steps"], summary["pairs"], summary["dataset_version"]) == (12, 8, "v1")
    assert list((straight / "tensorboard").iterdir())
    assert len(list((straight / "checkpoints").iterdir())) == 2
    assert TrainConfig.model_validate_json((straight / "config.json").read_bytes()) == settings()
    counts = pq.read_table(straight / "buckets.parquet").column("count").to_pylist()
    assert sum(counts) == 12 * 4


def test_focus_maps_are_there_before_and_after(straight: Path) -> None:
    maps = load_file(straight / "focus.safetensors")
    num = len(maps["sigmas"])
    for phase in ("start", "end"):
        for branch in ("win", "lose"):
            assert maps[f"{phase}.{branch}.weight"].shape == (num, 64)
            assert maps[f"{phase}.{branch}.matches"].shape == (num, 2, 64)
            assert maps[f"{phase}.{branch}.weight"].mean(1) == pytest.approx([1.0] * num, abs=1e-5)
    assert maps["win"].shape == (64, 64, 3)
    assert (maps["start.win.similarity"] != maps["end.win.similarity"]).any()


def test_training_prefers_the_winner(straight: Path, pair_samples: list[Sample]) -> None:
    table = pq.read_table(straight / "steps.parquet").to_pylist()
    assert table[-1]["loss"] < table[0]["loss"]
    assert table[-1]["implicit_accuracy"] > 0.5


@pytest.mark.parametrize("step", [3, 4, 6, 11])
def test_an_interrupted_run_goes_on_to_the_bit(
    straight: Path, pair_samples: list[Sample], tmp_path: Path, step: int
) -> None:
    with pytest.raises(Interrupted):
        train(tiny_backbone(), pair_samples, settings(), tmp_path, progress=stop_at(step))
    result = train(tiny_backbone(), pair_samples, settings(), tmp_path, dataset_version="v1")
    assert result.resumed_from == step // 4 * 4
    assert outcome(tmp_path) == outcome(straight)


def test_guards_go_on_to_the_bit(
    pair_samples: list[Sample], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Windows longer than what a checkpoint is away, and a warning on either side of one."""
    guards = {"window": 5, "saturation": 0.9, "winner_rise": 0.0, "spike": 1.5}
    config = settings(guards=guards, tensorboard=False)
    train(tiny_backbone(), pair_samples, config, tmp_path / "whole")
    said = caplog.messages
    assert sum("the pairs are learned" in line for line in said) == 1
    caplog.clear()
    for stop in (6, 9):
        with pytest.raises(Interrupted):
            train(tiny_backbone(), pair_samples, config, tmp_path / "parts", progress=stop_at(stop))
    train(tiny_backbone(), pair_samples, config, tmp_path / "parts")
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")
    assert set(caplog.messages) == set(said)


HELPERS = str(Path(__file__).parents[2] / "helpers")
CHILD = """
import sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from tiny_backbone import tiny_backbone
from pair_samples import write_pairs
from focusdpo.model.training.config import TrainConfig
from focusdpo.model.training.run import train
config = TrainConfig.model_validate_json(sys.argv[1])
samples = write_pairs(Path(sys.argv[3]))
train(tiny_backbone(), samples, config, Path(sys.argv[2]), dataset_version="v1")
"""


def test_kill_minus_9_and_the_same_command_again(
    pair_samples: list[Sample], tmp_path: Path
) -> None:
    config = settings(steps=40, ema=0.9)
    command = [sys.executable, "-c", CHILD, config.model_dump_json(), str(tmp_path / "killed")]
    command.append(str(pair_samples[0].store.root))
    environment = dict(os.environ) | {"PYTHONPATH": HELPERS, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(command, env=environment)
    checkpoints = tmp_path / "killed" / "checkpoints"
    while not list(checkpoints.glob("step-*")):
        assert child.poll() is None, "it ended before its first checkpoint"
        time.sleep(0.005)
    time.sleep(0.1)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "run.json").exists()
    for name in ("killed", "whole"):
        train(tiny_backbone(), pair_samples, config, tmp_path / name, dataset_version="v1")
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def test_a_finished_run_is_not_run_again(straight: Path, pair_samples: list[Sample]) -> None:
    before = {p: p.stat().st_mtime_ns for p in straight.rglob("*") if p.is_file()}
    result = train(tiny_backbone(), pair_samples, settings(), straight, dataset_version="v1")
    assert isinstance(result, TrainResult)
    assert (result.steps, result.resumed_from) == (12, 12)
    assert {p: p.stat().st_mtime_ns for p in straight.rglob("*") if p.is_file()} == before


def test_a_run_killed_before_it_dropped_an_old_checkpoint_drops_it(
    straight: Path, pair_samples: list[Sample], tmp_path: Path
) -> None:
    """Killed just after the last checkpoint was there: no later one takes the old one along."""
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    shutil.copytree(run / "checkpoints" / kept[0], run / "checkpoints" / "step-000001")
    (run / "run.json").unlink()
    shutil.rmtree(run / "adapter")
    train(tiny_backbone(), pair_samples, settings(), run, dataset_version="v1")
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == kept
    assert outcome(run) == outcome(straight)


def test_a_longer_run_goes_on_from_a_shorter(
    straight: Path, pair_samples: list[Sample], tmp_path: Path
) -> None:
    train(tiny_backbone(), pair_samples, settings(steps=5), tmp_path)
    result = train(tiny_backbone(), pair_samples, settings(), tmp_path, dataset_version="v1")
    assert (result.steps, result.resumed_from) == (12, 5)
    assert outcome(tmp_path) == outcome(straight)


def test_a_folder_with_another_run_is_refused(straight: Path, pair_samples: list[Sample]) -> None:
    with pytest.raises(UserError, match="other settings"):
        train(tiny_backbone(), pair_samples, settings(lr=1e-4), straight)
    with pytest.raises(UserError, match="other base model"):
        train(tiny_backbone(seed=3), pair_samples, settings(), straight)
    with pytest.raises(UserError, match="other training pairs"):
        train(tiny_backbone(), pair_samples[:5], settings(), straight)
    with pytest.raises(UserError, match="a run of 12 steps, train.steps is 5"):
        train(tiny_backbone(), pair_samples, settings(steps=5), straight)


def test_micro_batches_follow_the_same_course(
    straight: Path, pair_samples: list[Sample], tmp_path: Path
) -> None:
    train(tiny_backbone(), pair_samples, settings(micro_pairs=1), tmp_path)
    whole, parts = (
        pq.read_table(run / "steps.parquet").to_pylist() for run in (straight, tmp_path)
    )
    for a, b in zip(whole, parts, strict=True):
        for name in ("loss", "grad_norm", "win_gap", "alignment"):
            assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-5), (a["step"], name)


def test_checkpointed_activations_change_nothing(
    straight: Path, pair_samples: list[Sample], tmp_path: Path
) -> None:
    config = settings(gradient_checkpointing=True)
    backbone = tiny_backbone()
    train(backbone, pair_samples, config, tmp_path)
    assert not backbone.transformer.is_gradient_checkpointing
    assert table_rows(tmp_path) == table_rows(straight)


@pytest.mark.parametrize("name", ["sft", "dpo", "dpo_prior", "focus_dpo"])
def test_every_objective_lowers_its_loss(
    pair_samples: list[Sample], tmp_path: Path, name: str
) -> None:
    objective = ObjectiveConfig(name=name, beta=200.0, eta=0.01)  # type: ignore[arg-type]
    config = settings(
        steps=20,
        lr=3e-3,
        objective=objective.model_dump(),
        tensorboard=False,
    )
    train(tiny_backbone(), pair_samples, config, tmp_path)
    losses = [row["loss"] for row in pq.read_table(tmp_path / "steps.parquet").to_pylist()]
    assert sum(losses[-5:]) < sum(losses[:5])


def test_the_backbone_comes_back_as_it_went(
    backbone: FluxBackbone, pair_samples: list[Sample], straight: Path, tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in backbone.transformer.state_dict().items()}
    with pytest.raises(Interrupted):
        train(backbone, pair_samples, settings(), tmp_path, progress=stop_at(2))
    after = backbone.transformer.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not policy_parameters(backbone.transformer)
    card = load_adapter(backbone, straight / "adapter")
    assert card.lora == LoraConfig(rank=2, targets=("to_q", "to_k", "to_v"))
    assert card.train_config == settings().model_dump(mode="json")


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good(
    pair_samples: list[Sample], tmp_path: Path
) -> None:
    config = settings(steps=100, save_every=1, lr=1e36, grad_clip=1e9)
    with pytest.raises(UserError, match=r"stopped at step \d+.*last good checkpoint is .*step-"):
        train(tiny_backbone(), pair_samples, config, tmp_path)
    assert list((tmp_path / "checkpoints").glob("step-*"))
    assert not (tmp_path / "run.json").exists()


def test_a_damaged_checkpoint_is_named_and_the_one_before_serves(
    straight: Path, pair_samples: list[Sample], tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        train(tiny_backbone(), pair_samples, settings(), tmp_path, progress=stop_at(10))
    state = tmp_path / "checkpoints" / "step-000008" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(UserError, match="step-000008 is damaged"):
        train(tiny_backbone(), pair_samples, settings(), tmp_path)
    state.unlink()
    (state.parent / "checkpoint.json").unlink()
    state.parent.rmdir()
    train(tiny_backbone(), pair_samples, settings(), tmp_path, dataset_version="v1")
    assert outcome(tmp_path) == outcome(straight)


def test_a_full_disk_is_said(pair_samples: list[Sample], tmp_path: Path) -> None:
    with no_file_beyond(10), pytest.raises(UserError, match="config.json: cannot be written"):
        train(tiny_backbone(), pair_samples, settings(), tmp_path)


def test_fewer_pairs_than_a_batch_train_all_the_same(tmp_path: Path) -> None:
    samples = write_shard(tmp_path, "one.tar", [make_sample(0, 3)])
    result = train(tiny_backbone(), samples, settings(steps=2), tmp_path / "run")
    assert (result.pairs, result.steps) == (1, 2)


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    def course(schedule: str) -> list[float]:
        config = settings(steps=10, lr=1.0, warmup=2, schedule=schedule)
        return [round(learning_rate(step, config), 4) for step in range(11)]

    assert course("constant") == [0.5] + [1.0] * 10
    linear = course("linear")
    assert linear[:3] == [0.5, 1.0, 1.0]
    assert linear[6] == 0.5
    assert linear[10] == 0
    cosine = course("cosine")
    assert cosine[2] == 1.0
    assert cosine[6] == 0.5
    assert cosine[10] == 0
    assert cosine == sorted(cosine, reverse=True) or cosine[1:] == sorted(cosine[1:], reverse=True)


def test_wrong_settings_name_their_field() -> None:
    with pytest.raises(ValueError, match="micro_pairs 3 must divide batch_pairs 4"):
        settings(micro_pairs=3)
    with pytest.raises(ValueError, match="betta"):
        settings(objective={"betta": 3})


LEFT = (
    *("run.json", "config.json", "steps.parquet", "buckets.parquet", "focus.safetensors"),
    *("adapter/adapter.json", "adapter/pytorch_lora_weights.safetensors"),
)


@pytest.mark.parametrize("name", LEFT)
def test_one_flipped_bit_is_seen_by_reader_and_doctor_and_mended(
    straight: Path, pair_samples: list[Sample], tmp_path: Path, name: str
) -> None:
    run = tmp_path / "moved" / "run"  # it works from wherever it was moved to
    shutil.copytree(straight, run)
    assert run_check(run).ok
    path = run / name
    data = bytearray(path.read_bytes())
    place = data.index(b":") if path.suffix == ".json" else len(data) * 2 // 3
    data[place + 2] ^= 1
    path.write_bytes(bytes(data))
    told = run_check(run)
    assert not told.ok and str(path) in told.told
    with pytest.raises(UserError, match=re.escape(str(path))):
        train(tiny_backbone(), pair_samples, settings(), run, dataset_version="v1")
    with pytest.raises(UserError, match=re.escape(str(path))):
        if name.startswith("adapter/"):
            read_weights(run / "adapter", read_card(run / "adapter"))
        else:
            collect_training(run)
    (run / "run.json").unlink()  # as the message says
    train(tiny_backbone(), pair_samples, settings(), run, dataset_version="v1")
    assert outcome(run) == outcome(straight) and run_check(run).ok


def test_a_run_of_before_there_were_checksums_is_read(
    straight: Path, pair_samples: list[Sample], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    for name in ("run.json", "adapter/adapter.json"):
        values = json.loads((run / name).read_text())
        values.pop("blake2b")
        values.pop("digests", None)
        (run / name).write_text(json.dumps(values))
    result = train(tiny_backbone(), pair_samples, settings(), run, dataset_version="v1")
    assert result.resumed_from == 12
    assert read_card(run / "adapter").step == 12 and collect_training(run).charts
