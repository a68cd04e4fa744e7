"""What is seen of a run while it trains: sample pictures, the loss of unseen pairs, trackers; and
that seeing changes nothing."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_suite
from numpy.typing import NDArray
from pair_samples import make_sample, write_pairs, write_shard
from PIL import Image
from tiny_backbone import tiny_backbone
from tiny_runs import SETTINGS, Interrupted, stop_at, table_rows

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.models_config import PARTS
from focusdpo.model.adapter import WEIGHTS, add_policy, policy_parameters
from focusdpo.model.training.batches import PairData
from focusdpo.model.training.config import LoraConfig, TrainConfig
from focusdpo.model.training.held_out_pairs import HeldOutPairs
from focusdpo.model.training.previews import CELL, GAP
from focusdpo.model.training.run import train
from focusdpo.model.training.trackers import require_trackers
from focusdpo.store.samples import Sample

SEEN = {"validation": {"every": 2}, "previews": {"every": 4, "scenes": 2}}


def settings(**changes: Any) -> TrainConfig:
    base = SETTINGS | {"tensorboard": False, "save_every": 100, "steps": 10}
    return TrainConfig.model_validate(base | changes)


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Pairs that no run here trains on: of one and of two subjects."""
    root = tmp_path_factory.mktemp("unseen")
    two = write_shard(root, "two.tar", [make_sample(i, 2) for i in range(20, 23)])
    return two + write_shard(root, "one.tar", [make_sample(i, 1) for i in range(20, 22)])


@pytest.fixture(scope="module")
def seen(
    pair_samples: list[Sample], unseen: list[Sample], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    run = tmp_path_factory.mktemp("seen")
    train(tiny_backbone(), pair_samples, settings(**SEEN), run, held_out=unseen)
    return run


def sheets(run: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((run / "samples").glob("*.png"))}


def cells(run: Path, step: int) -> list[list[NDArray[np.uint8]]]:
    """The pictures of a sheet, by row and column."""
    whole = np.asarray(Image.open(run / "samples" / f"step-{step:06d}.png"))
    rows = len(json.loads((run / "samples" / "scenes.json").read_text()))
    columns, height = whole.shape[1] // (CELL + GAP), (whole.shape[0] - 30) // rows
    return [
        [
            whole[30 + row * height :][:CELL, GAP + column * (CELL + GAP) :][:, :CELL]
            for column in range(columns)
        ]
        for row in range(rows)
    ]


@pytest.mark.slow
def test_sheets_show_the_same_scenes_by_base_and_policy(seen: Path) -> None:
    assert list(sheets(seen)) == ["step-000004.png", "step-000008.png", "step-000010.png"]
    early, late = cells(seen, 4), cells(seen, 10)
    for before, after in zip(early, late, strict=True):
        *shown, base, policy = before
        *shown_later, base_later, policy_later = after
        assert all((a == b).all() for a, b in zip(shown, shown_later, strict=True))
        assert (base == base_later).all()
        assert (policy != base).any() and (policy != policy_later).any()
    scenes = json.loads((seen / "samples" / "scenes.json").read_text())
    assert {len(one["pair"]) for one in scenes} == {16} and scenes[0]["prompt"] == "a cat on grass"


def test_seeing_changes_no_weight(seen: Path, pair_samples: list[Sample], tmp_path: Path) -> None:
    train(tiny_backbone(), pair_samples, settings(), tmp_path)
    assert table_rows(tmp_path) == table_rows(seen)
    weights = (f"adapter/{WEIGHTS}", "focus.safetensors")
    assert all((tmp_path / name).read_bytes() == (seen / name).read_bytes() for name in weights)


@pytest.mark.parametrize("step", [3, 9])
@pytest.mark.slow
def test_an_interrupted_run_shows_the_same(
    seen: Path, pair_samples: list[Sample], unseen: list[Sample], tmp_path: Path, step: int
) -> None:
    config = settings(**SEEN)
    with pytest.raises(Interrupted):
        train(
            tiny_backbone(), pair_samples, config, tmp_path,
            held_out=unseen, progress=stop_at(step),
        )  # fmt: skip
    looks = json.loads((tmp_path / "looks.json").read_text())
    assert [row["step"] for row in looks] == list(range(2, step + 1, 2)), "told while it runs"
    train(tiny_backbone(), pair_samples, config, tmp_path, held_out=unseen)
    assert sheets(tmp_path) == sheets(seen)
    for name in ("looks.json", f"adapter/{WEIGHTS}"):
        assert (tmp_path / name).read_bytes() == (seen / name).read_bytes()


@pytest.mark.parametrize("objective", ["dpo", "focus_dpo"])
def test_a_policy_that_changes_nothing_has_the_bases_loss(
    unseen: list[Sample], objective: str
) -> None:
    backbone, config = tiny_backbone(), settings(objective={"name": objective, "beta": 50})
    add_policy(backbone.transformer, LoraConfig(rank=2, targets=("to_q", "to_v")), seed=0)
    look = HeldOutPairs(backbone, PairData(backbone, unseen), config)
    found = look()
    assert found["held_out_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert found["score"] == found["held_out_win_gap"] == 0
    for name, parameter in policy_parameters(backbone.transformer).items():
        if "lora_B" in name:
            parameter.data.fill_(0.05)
    moved = look()
    assert moved["score"] == pytest.approx(math.log(2) - moved["held_out_loss"], abs=1e-6) != 0
    assert look() == moved, "over the same noise at every look"


@pytest.mark.parametrize("kind", tiny_suite.KINDS)
@pytest.mark.slow
def test_every_backbone_is_seen_stopped_and_kept_at_its_best(
    kind: str, unseen: list[Sample], tmp_path: Path
) -> None:
    """Trained at a rate that only makes it worse after its first look."""
    backbone: Any = importlib.import_module(PARTS["backbone"].module(kind)).build(
        tiny_suite.backbone_config(kind, tmp_path), "cpu"
    )
    config = settings(
        lr=0.3, batch_pairs=2, warmup=0, lora={"rank": 2}, previews={"every": 1, "scenes": 1},
        validation={"every": 1, "patience": 2, "keep": "best", "metric": "score"}, steps=12,
    )  # fmt: skip
    samples, out = write_pairs(tmp_path / "root"), tmp_path / "run"
    result = train(backbone, samples, config, out, held_out=unseen)
    scores = [row["score"] for row in result.validation]
    best = 1 + int(np.argmax(scores))
    assert result.stopped == (result.steps < 12) and result.adapter_step == best
    assert len(sheets(out)) == result.steps
    *_, base, policy = cells(out, result.steps)[0]
    assert (base != policy).any()
    assert all(0 <= row["held_out_accuracy"] <= 1 for row in result.validation)


@pytest.mark.slow
def test_trackers_get_curves_and_pictures(
    pair_samples: list[Sample], unseen: list[Sample], tmp_path: Path, monkeypatch: Any
) -> None:
    """mlflow's and wandb's own files are read again; a resumed run goes on in the same run."""
    mlflow, wandb = pytest.importorskip("mlflow"), pytest.importorskip("wandb")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = settings(**SEEN, trackers=["mlflow", "wandb"], save_every=4)
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(
            tiny_backbone(), pair_samples, config, run, held_out=unseen, progress=stop_at(5)
        )  # fmt: skip
    train(tiny_backbone(), pair_samples, config, run, held_out=unseen)
    client = mlflow.MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'focusdpo'")
    (only,) = client.search_runs([experiment.experiment_id])
    told = {
        one.step: one.value for one in client.get_metric_history(only.info.run_id, "train/loss")
    }
    rows = {int(row["step"]): float(row["loss"]) for row in table_rows(run)}
    assert told == pytest.approx(rows)
    assert "validation/held_out_loss" in only.data.metrics
    pictures = client.list_artifacts(only.info.run_id, "samples")
    assert len(pictures) == 3
    assert wandb.run is None and len(list((run / "wandb").glob("offline-run-*"))) >= 1


@pytest.mark.parametrize(
    ("name", "prepared", "advice"),
    [("wandb", {}, "WANDB_API_KEY"), ("trackio", {"find_spec": None}, "pip install trackio")],
)
def test_a_tracker_that_cannot_be_is_refused_beforehand(
    name: str, prepared: dict[str, Any], advice: str, tmp_path: Path, monkeypatch: Any
) -> None:
    for variable in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    if prepared:
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=advice):
        require_trackers([name])
