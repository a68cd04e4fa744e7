"""One step on a real transformer: equivalences of objectives, and the passes that they take."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from pair_samples import make_sample

from focusdpo.model.adapter import add_policy, policy_parameters
from focusdpo.model.backbones.flux import FluxBackbone
from focusdpo.model.batches import PairBatch, encode_pairs
from focusdpo.model.bench import step_cost
from focusdpo.model.configs import LoraConfig, ObjectiveConfig, TrainConfig
from focusdpo.model.focus_config import FocusConfig
from focusdpo.model.monitor import PER_PAIR, bucket_rows, observe
from focusdpo.model.noise import draw_noise
from focusdpo.model.step import StepOutput, autocast, pair_step

NAMES = ("focus_dpo", "dpo", "dpo_prior", "sft")


def config(name: str = "focus_dpo", **focus: Any) -> TrainConfig:
    return TrainConfig(
        objective=ObjectiveConfig(name=name, beta=30.0),  # type: ignore[arg-type]
        focus=FocusConfig(**focus),
        mixed_precision="no",
    )


@pytest.fixture
def batch(backbone: FluxBackbone) -> PairBatch:
    """Four pairs of two subjects; on the backbone there is a LoRA that changes something."""
    encoded = encode_pairs(backbone, [make_sample(i, 2) for i in range(4)])
    add_policy(backbone.transformer, LoraConfig(rank=4, targets=("to_q", "to_v")), seed=0)
    generator = torch.Generator().manual_seed(0)
    for parameter in policy_parameters(backbone.transformer).values():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return encoded


def run(backbone: FluxBackbone, batch: PairBatch, config: TrainConfig) -> StepOutput:
    shape = (batch.win_BNC.shape[1], batch.win_BNC.shape[2])
    noise, sigma = draw_noise(shape, range(len(batch)), seed=0, step=0, config=config.noise)
    cast = autocast(noise.device, config.mixed_precision)
    return pair_step(backbone, batch, noise, sigma, config, cast)


def gradients(backbone: FluxBackbone, output: StepOutput) -> torch.Tensor:
    parameters = list(policy_parameters(backbone.transformer).values())
    return torch.cat([g.flatten() for g in torch.autograd.grad(output.loss.value, parameters)])


def test_flat_weights_are_plain_dpo(backbone: FluxBackbone, batch: PairBatch) -> None:
    flat = config(w_bg=1.0, w_low=1.0, w_high=1.0, lambda_d=0.0)
    focused, plain = run(backbone, batch, flat), run(backbone, batch, config("dpo"))
    assert focused.maps is not None
    torch.testing.assert_close(focused.loss.value, plain.loss.value, rtol=1e-6, atol=1e-6)
    assert not math.isclose(plain.loss.value.item(), math.log(2), abs_tol=1e-4)
    ours, theirs = gradients(backbone, focused), gradients(backbone, plain)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_without_m_s_and_m_d_it_is_masked_dpo(backbone: FluxBackbone, batch: PairBatch) -> None:
    bare = config(use_structure=False, use_detail=False)
    a, b = run(backbone, batch, bare), run(backbone, batch, config("dpo_prior"))
    assert a.maps is None
    assert torch.equal(a.loss.value, b.loss.value)
    assert not torch.equal(a.loss.value, run(backbone, batch, config("dpo")).loss.value)


@pytest.mark.parametrize("name", NAMES[:3])
def test_identical_pair_gives_log_2_and_no_gradient(
    backbone: FluxBackbone, batch: PairBatch, name: str
) -> None:
    same = replace(batch, lose_BNC=batch.win_BNC)
    output = run(backbone, same, config(name))
    assert output.loss.value.item() == pytest.approx(math.log(2), abs=1e-6)
    assert gradients(backbone, output).abs().max() < 1e-6


@pytest.mark.parametrize(
    "name, precision", [("focus_dpo", "bf16"), ("focus_dpo", "no"), ("dpo", "no")]
)
def test_a_fresh_policy_has_delta_zero(backbone: FluxBackbone, precision: str, name: str) -> None:
    batch = encode_pairs(backbone, [make_sample(i, 2) for i in range(2)])
    add_policy(backbone.transformer, LoraConfig(targets=("to_q", "proj_mlp")), seed=0)
    settings = config(name).model_copy(update={"mixed_precision": precision})
    output = run(backbone, batch, settings)
    assert output.loss.logit_B.tolist() == [0.0, 0.0]
    assert output.error_BN.dtype == torch.float32
    assert gradients(backbone, output).abs().max() > 0


@pytest.mark.parametrize(
    "name, passes", [("focus_dpo", 2), ("dpo", 2), ("dpo_prior", 2), ("sft", 1)]
)
def test_focus_takes_no_extra_pass(
    backbone: FluxBackbone, batch: PairBatch, name: str, passes: int
) -> None:
    calls = []
    handle = backbone.transformer.register_forward_hook(lambda *_: calls.append(1))
    run(backbone, batch, config(name))
    handle.remove()
    assert len(calls) == passes


def test_the_winners_maps_can_serve_both_branches(backbone: FluxBackbone, batch: PairBatch) -> None:
    weight = run(backbone, batch, config(branches="winner")).weight_BN
    assert weight is not None
    assert torch.equal(weight[:4], weight[4:])


@pytest.mark.parametrize("name", NAMES)
def test_what_is_observed_adds_up(backbone: FluxBackbone, batch: PairBatch, name: str) -> None:
    settings = config(name, tau=0.0)  # the gate is open
    output = run(backbone, batch, settings)
    table = observe(output, batch, settings.focus)
    assert set(table) == set(PER_PAIR)
    assert all(values.shape == (4,) for values in table.values())
    missing = {column for column, values in table.items() if math.isnan(values[0])}
    maps = {"alignment", "lose_alignment", "gate", "structure_share", "token_confusion"}
    maps |= {"share_matched", "share_structure", "share_detail"}
    reference = {"win_gap", "lose_gap", "lose_error", "logit", "implicit_accuracy"}
    assert missing == {"focus_dpo": set(), "sft": maps | reference}.get(name, maps)
    if name == "focus_dpo":
        parts = ("share_background", "share_matched", "share_structure")
        assert sum(table[part] for part in parts) == pytest.approx([1.0] * 4, abs=1e-5)
        assert (table["share_detail"] > 0).all()
        assert (table["gate"] == 1).all()
    if name == "dpo":
        beta_half = 0.5 * settings.objective.beta
        assert table["logit"] == pytest.approx(
            -beta_half * (table["win_gap"] - table["lose_gap"]), abs=1e-4
        )


def test_buckets_hold_every_pair_once(backbone: FluxBackbone, batch: PairBatch) -> None:
    settings = config()
    table = observe(run(backbone, batch, settings), batch, settings.focus)
    rows = bucket_rows(3, table)
    assert sum(row["count"] for row in rows) == 4
    total = sum(row["count"] * row["win_error"] for row in rows) / 4
    assert total == pytest.approx(table["win_error"].mean())
    assert all(row["sigma_low"] <= row["sigma"] <= row["sigma_high"] for row in rows)


def test_step_cost_times_both_and_leaves_the_base(backbone: FluxBackbone) -> None:
    batch = encode_pairs(backbone, [make_sample(i, 2) for i in range(2)])
    cost = step_cost(backbone, batch, config(), repeats=3)
    assert cost.focus_seconds > 0
    assert cost.dpo_seconds > 0
    assert not policy_parameters(backbone.transformer)
