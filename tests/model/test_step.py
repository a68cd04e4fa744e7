"""One step on a real transformer: equivalences of objectives, and the passes that they take."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pair_samples import make_sample
from policy_step import give_policy, gradients, step

from benchmarks.step_cost import step_cost, step_memory
from focusdpo.model.adapter import (
    add_policy,
    policy_parameters,
    reference_policy,
    set_scale,
)
from focusdpo.model.backbone import FeatureConfig
from focusdpo.model.backbones.flux import FluxBackbone
from focusdpo.model.focus_config import FocusConfig, NoiseConfig
from focusdpo.model.noise import add_noise, draw_noise, velocity_target
from focusdpo.model.objectives import PairErrors, image_error, preference_loss, token_error
from focusdpo.model.step import autocast, tensor_cores
from focusdpo.model.training.batches import PairBatch, encode_pairs
from focusdpo.model.training.config import (
    LoraConfig,
    ObjectiveConfig,
    PatchConfig,
    TrainConfig,
)
from focusdpo.model.training.monitor import PER_PAIR, bucket_rows, observe

NAMES = ("focus_dpo", "dpo", "dpo_prior", "patch_dpo", "sft")


def test_tf32_rounds_nothing_that_decides() -> None:
    """Backward passes alone, and what a pass in bf16 leaves in float32; on a GPU."""
    before = torch.get_float32_matmul_precision()
    with tensor_cores(torch.device("cuda"), True):
        assert torch.get_float32_matmul_precision() == "high"
    with tensor_cores(torch.device("cuda"), False):
        assert torch.get_float32_matmul_precision() == before
    with tensor_cores(torch.device("cpu"), True):
        assert torch.get_float32_matmul_precision() == before
    assert torch.get_float32_matmul_precision() == before != "high"
    assert autocast(torch.device("cuda"), "no", tf32=True) is nullcontext


def config(name: str = "focus_dpo", **focus: Any) -> TrainConfig:
    return TrainConfig(
        objective=ObjectiveConfig(name=name, beta=30.0),  # type: ignore[arg-type]
        focus=FocusConfig(**focus),
        mixed_precision="no",
    )


@pytest.fixture
def batch(backbone: FluxBackbone) -> PairBatch:
    """Four pairs of two subjects; on the backbone there is a LoRA that changes something."""
    samples = [make_sample(i, 2) for i in range(4)]
    encoded = encode_pairs(backbone, samples, PatchConfig())
    give_policy(backbone)
    return encoded


def _errors(backbone: FluxBackbone, batch: PairBatch) -> list[torch.Tensor]:
    """Errors per token of winner, loser, and both by the reference policy, by direct calls."""
    noise, sigma = draw_noise(
        batch.win_BNC, range(len(batch)), seed=0, step=0, config=NoiseConfig()
    )

    def error(clean: torch.Tensor) -> torch.Tensor:
        noisy = add_noise(clean, noise, sigma)
        found = backbone.predict(noisy, sigma, batch.prompts, batch.references).output_BNC
        return token_error(found, velocity_target(clean, noise))

    policy = [error(batch.win_BNC), error(batch.lose_BNC)]
    with torch.no_grad(), reference_policy(backbone.transformer):
        return [*policy, error(batch.win_BNC), error(batch.lose_BNC)]


def test_flat_weights_are_plain_dpo(backbone: FluxBackbone, batch: PairBatch) -> None:
    flat = config(w_bg=1.0, w_low=1.0, w_high=1.0, lambda_d=0.0)
    focused, plain = step(backbone, batch, flat), step(backbone, batch, config("dpo"))
    assert focused.maps is not None
    torch.testing.assert_close(focused.loss.value, plain.loss.value, rtol=1e-6, atol=1e-6)
    assert not math.isclose(plain.loss.value.item(), math.log(2), abs_tol=1e-4)
    ours, theirs = gradients(backbone, focused), gradients(backbone, plain)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_without_m_s_and_m_d_it_is_masked_dpo(backbone: FluxBackbone, batch: PairBatch) -> None:
    bare = config(use_structure=False, use_detail=False)
    a, b = step(backbone, batch, bare), step(backbone, batch, config("dpo_prior"))
    assert a.maps is None
    assert torch.equal(a.loss.value, b.loss.value)
    assert not torch.equal(a.loss.value, step(backbone, batch, config("dpo")).loss.value)


@pytest.mark.parametrize("name", NAMES[:3])  # PatchDPO weighs the branches apart
def test_identical_pair_gives_log_2_and_no_gradient(
    backbone: FluxBackbone, batch: PairBatch, name: str
) -> None:
    same = replace(batch, lose_BNC=batch.win_BNC)
    output = step(backbone, same, config(name))
    assert output.loss.value.item() == pytest.approx(math.log(2), abs=1e-6)
    assert gradients(backbone, output).abs().max() < 1e-6


@pytest.mark.parametrize(
    "name, precision", [("focus_dpo", "bf16"), ("focus_dpo", "no"), ("dpo", "no")]
)
def test_a_fresh_policy_has_delta_zero(backbone: FluxBackbone, precision: str, name: str) -> None:
    batch = encode_pairs(backbone, [make_sample(i, 2) for i in range(2)])
    add_policy(backbone.transformer, LoraConfig(targets=("to_q", "proj_mlp")), seed=0)
    settings = config(name).model_copy(update={"mixed_precision": precision})
    output = step(backbone, batch, settings)
    assert output.loss.logit_B.tolist() == [0.0, 0.0]
    assert output.error_BN.dtype == torch.float32
    assert gradients(backbone, output).abs().max() > 0


@pytest.mark.parametrize(
    "name, passes", [("focus_dpo", 2), ("dpo", 2), ("dpo_prior", 2), ("patch_dpo", 2), ("sft", 1)]
)
def test_focus_takes_no_extra_pass(
    backbone: FluxBackbone, batch: PairBatch, name: str, passes: int
) -> None:
    calls = []
    handle = backbone.transformer.register_forward_hook(lambda *_: calls.append(1))
    step(backbone, batch, config(name))
    handle.remove()
    assert len(calls) == passes


def test_the_winners_maps_can_serve_both_branches(backbone: FluxBackbone, batch: PairBatch) -> None:
    weight = step(backbone, batch, config(branches="winner")).weight_BN
    assert weight is not None
    assert torch.equal(weight[:4], weight[4:])


@pytest.mark.parametrize("name", NAMES)
def test_what_is_observed_adds_up(backbone: FluxBackbone, batch: PairBatch, name: str) -> None:
    settings = config(name, tau=0.0)  # the gate is open
    output = step(backbone, batch, settings)
    table = observe(output, batch, settings.focus)
    assert set(table) == set(PER_PAIR)
    assert all(values.shape == (4,) for values in table.values())
    missing = {column for column, values in table.items() if math.isnan(values[0])}
    maps = {"alignment", "lose_alignment", "gate", "structure_share", "token_confusion"}
    maps |= {"share_matched", "share_structure", "share_detail"}
    reference = {"win_gap", "lose_gap", "lose_error", "logit", "implicit_accuracy"}
    reference |= {"pair_gradient"}
    missing -= {"safeguard"}  # off here
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
    table = observe(step(backbone, batch, settings), batch, settings.focus)
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


@pytest.mark.parametrize("name", ["focus_dpo", "dpo"])
def test_step_memory_leaves_the_base(backbone: FluxBackbone, name: str) -> None:
    batch = encode_pairs(backbone, [make_sample(i, 2) for i in range(2)])
    memory = step_memory(backbone, batch, config(), name, steps=1)
    assert not policy_parameters(backbone.transformer)
    if memory is not None:  # Linux
        assert 2**24 < memory.before_bytes <= memory.peak_bytes
        assert memory.growth_bytes < 2**30


def test_step_memory_is_silent_where_the_system_does_not_tell(
    backbone: FluxBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = encode_pairs(backbone, [make_sample(0, 2)])
    monkeypatch.setattr("benchmarks.step_cost._PROC", tmp_path / "nowhere")
    assert step_memory(backbone, batch, config(), "dpo", steps=1) is None
    assert not policy_parameters(backbone.transformer)


def test_the_safeguard_scales_the_losers_gradient_alone(
    backbone: FluxBackbone, batch: PairBatch
) -> None:
    """d loss / d theta = winner's part + lambda times the loser's part, value unchanged."""
    plain = step(backbone, batch, config("dpo"))
    guarded = config("dpo").objective.model_copy(update={"safeguard": 1.0})
    kept = step(backbone, batch, config("dpo").model_copy(update={"objective": guarded}))
    assert torch.equal(plain.loss.value, kept.loss.value)
    assert kept.safeguard_B is not None
    table = observe(kept, batch, FocusConfig())
    assert (table["safeguard"] == kept.safeguard_B.numpy()).all()
    # Shared noise makes both slopes agree here, and mu = 1 then allows the loser nothing: what is
    # left is the gradient with the loser's error held constant.
    assert kept.safeguard_B.tolist() == [0.0] * 4
    both, alone = gradients(backbone, plain), gradients(backbone, kept)
    assert not torch.allclose(both, alone)
    held = PairErrors(*(image_error(e) for e in _errors(backbone, batch)))
    frozen = replace(held, lose_B=held.lose_B.detach())
    loss = preference_loss(frozen, config("dpo").objective).value
    wanted = torch.autograd.grad(loss, list(policy_parameters(backbone.transformer).values()))
    torch.testing.assert_close(
        alone, torch.cat([g.flatten() for g in wanted]), rtol=1e-4, atol=1e-7
    )


def test_features_may_come_from_the_reference_policy(
    backbone: FluxBackbone, batch: PairBatch
) -> None:
    """The reference policy's maps do not depend on the LoRA: those of a zero LoRA are the same."""
    outputs = FeatureConfig(kind="block_output")
    settings = config(features=outputs, features_from="reference")
    ours = step(backbone, batch, settings)
    assert ours.maps is not None
    set_scale(backbone.transformer, 0.0)
    base = step(backbone, batch, config(features=outputs))
    assert base.maps is not None
    assert torch.equal(ours.maps.similarity_BRN, base.maps.similarity_BRN)
    set_scale(backbone.transformer, 1.0)
    policy = step(backbone, batch, config(features=outputs))
    assert policy.maps is not None
    assert not torch.equal(ours.maps.similarity_BRN, policy.maps.similarity_BRN)


def test_the_released_form_needs_no_reference_pass(
    backbone: FluxBackbone, batch: PairBatch
) -> None:
    released = ObjectiveConfig(name="patch_dpo", patch=PatchConfig(form="released"))
    calls = []
    handle = backbone.transformer.register_forward_hook(lambda *_: calls.append(1))
    output = step(backbone, batch, TrainConfig(objective=released, mixed_precision="no"))
    handle.remove()
    assert len(calls) == 1
    assert output.weight_BN is not None
    wanted = (output.weight_BN * output.error_BN).mean(1).mean()
    torch.testing.assert_close(output.loss.value, wanted)


def test_equal_tokens_weights_make_the_token_form_a_mean_of_sigmoids(
    backbone: FluxBackbone, batch: PairBatch
) -> None:
    objective = ObjectiveConfig(name="dpo", beta=30.0, form="tokens")
    output = step(backbone, batch, TrainConfig(objective=objective, mixed_precision="no"))
    assert output.ref_error_BN is not None
    gap = (output.error_BN - output.ref_error_BN).double()
    h = -15.0 * (gap[:4] - gap[4:])
    assert output.loss.value.item() == pytest.approx(torch.log1p(torch.exp(-h)).mean().item(), 1e-5)
