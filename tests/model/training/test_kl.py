"""The KL term: what it is, that it holds the policy, and that runs with it resume to the bit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from tiny_backbone import tiny_backbone
from tiny_runs import SETTINGS, Interrupted, stop_at, table_rows

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.train.run import some
from focusdpo.model.adapter import add_policy, policy_parameters
from focusdpo.model.noise import draw_noise
from focusdpo.model.step import kl_step
from focusdpo.model.training.batches import encode_pairs
from focusdpo.model.training.config import LoraConfig, TrainConfig
from focusdpo.model.training.run import train
from focusdpo.store.samples import Sample

LORA = LoraConfig(rank=2, targets=("to_q", "to_k", "to_v"))


def settings(weight: float, **changes: Any) -> TrainConfig:
    return TrainConfig.model_validate(
        SETTINGS | {"save_every": 4, "kl": {"weight": weight}} | changes
    )


def test_it_is_the_squared_distance_from_the_base(pair_samples: list[Sample]) -> None:
    """Against a second backbone that never had a policy; 0, and without a slope, at a fresh one."""
    base, backbone = tiny_backbone(), tiny_backbone()
    batch = encode_pairs(backbone, [s.read() for s in pair_samples if s.row.num_subjects == 2][:2])
    noise_BNC, sigma_B = draw_noise(
        batch.win_BNC, range(2), seed=1, step=0, config=settings(1.0).noise, slots_in_step=2
    )
    add_policy(backbone.transformer, LORA, seed=0)
    parameters = policy_parameters(backbone.transformer)
    fresh = kl_step(backbone, batch, noise_BNC, sigma_B)
    assert fresh.item() == 0
    with torch.no_grad():
        for parameter in parameters.values():
            parameter += 0.1 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(2)
            )
    value = kl_step(backbone, batch, noise_BNC, sigma_B)
    noisy_BNC = base.add_noise(batch.win_BNC, noise_BNC, sigma_B)
    with torch.no_grad():
        given, was = (
            each.predict(noisy_BNC, sigma_B, batch.prompts, batch.references).output_BNC.double()
            for each in (backbone, base)
        )
    assert value.item() == pytest.approx(((given - was) ** 2).mean().item(), rel=1e-4)
    value.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters.values())


def column(run: Path, name: str) -> list[float]:
    return [row[name] for row in pq.read_table(run / "steps.parquet").to_pylist()]


def test_more_weight_holds_the_policy_nearer(pair_samples: list[Sample], tmp_path: Path) -> None:
    drift = {}
    for weight in (1e-6, 100.0):
        run = tmp_path / str(weight)
        train(tiny_backbone(), pair_samples, settings(weight, lr=3e-3), run)
        drift[weight] = column(run, "kl")
        assert drift[weight][0] == 0  # no step has been taken yet
    assert drift[100.0][-1] < 0.5 * drift[1e-6][-1]


@pytest.mark.parametrize("every", [1, 3])
def test_a_killed_run_goes_on_to_the_bit(
    pair_samples: list[Sample], tmp_path: Path, every: int
) -> None:
    config = settings(10.0, kl={"weight": 10.0, "every": every})
    with pytest.raises(Interrupted):
        train(tiny_backbone(), pair_samples, config, tmp_path / "killed", progress=stop_at(6))
    for name in ("killed", "whole"):
        train(tiny_backbone(), pair_samples, config, tmp_path / name)
    assert table_rows(tmp_path / "killed") == table_rows(tmp_path / "whole")
    weights = [
        (tmp_path / name / "adapter/pytorch_lora_weights.safetensors").read_bytes()
        for name in ("killed", "whole")
    ]
    assert weights[0] == weights[1]
    distances = column(tmp_path / "whole", "kl")
    assert [not math.isnan(value) for value in distances] == [
        step % every == 0 for step in range(12)
    ]


def test_every_second_step_it_counts_twice(pair_samples: list[Sample], tmp_path: Path) -> None:
    """In the first step the distance is 0, the second has no term: so the third's loss is of the
    same weights, whatever the term's weight is."""
    rows = {}
    for weight in (1e-9, 5.0):
        config = settings(0.0, steps=3, lr=3e-2, warmup=0, kl={"weight": weight, "every": 2})
        train(tiny_backbone(), pair_samples, config, tmp_path / str(weight))
        rows[weight] = pq.read_table(tmp_path / str(weight) / "steps.parquet").to_pylist()[2]
    without, with_term = rows.values()
    assert with_term["kl"] == pytest.approx(without["kl"], rel=1e-4)
    assert with_term["kl"] > 1e-4
    assert with_term["loss"] - without["loss"] == pytest.approx(10 * with_term["kl"], rel=1e-2)


def test_parts_of_a_step_sum_up_to_the_step(pair_samples: list[Sample], tmp_path: Path) -> None:
    for micro in (0, 1):
        config = settings(10.0, micro_pairs=micro)
        train(tiny_backbone(), pair_samples, config, tmp_path / str(micro))
    for name in ("loss", "kl", "grad_norm"):
        whole, parts = (column(tmp_path / micro, name) for micro in ("0", "1"))
        assert whole == pytest.approx(parts, rel=1e-3, abs=1e-5), name


def test_runs_of_before_go_on_and_others_do_not_mix(
    pair_samples: list[Sample], tmp_path: Path
) -> None:
    """Without the term a run is the one that it was before there was any."""
    assert (
        settings(0.0).identity()
        == TrainConfig.model_validate(SETTINGS | {"save_every": 4}).identity()
    )
    train(tiny_backbone(), pair_samples, settings(0.0), tmp_path)
    with pytest.raises(UserError, match="other settings"):
        train(tiny_backbone(), pair_samples, settings(1.0), tmp_path)


def test_winners_that_are_not_there_are_named(pair_samples: list[Sample], tmp_path: Path) -> None:
    config = settings(1.0, kl={"weight": 1.0, "source": "failure"})
    with pytest.raises(UserError, match="source 'failure': .*Set train.kl.source to one of"):
        train(tiny_backbone(), pair_samples, config, tmp_path)


def test_fewer_pairs_of_a_source_leave_the_others_winners(pair_samples: list[Sample]) -> None:
    kept = some(pair_samples, "disrupt", 3)
    assert [s.row.source for s in kept].count("disrupt") == 3
    assert [s.row.pair_id for s in kept if s.row.source == "rank"] == [
        s.row.pair_id for s in pair_samples if s.row.source == "rank"
    ]
    assert len(some(pair_samples, "both", 3)) == 3
