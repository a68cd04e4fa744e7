"""The policy is a LoRA; without it the model is the base, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from pair_samples import make_sample
from policy_step import give_policy
from tiny_backbone import tiny_backbone
from torch import Tensor

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.adapter import (
    AdapterCard,
    add_policy,
    load_adapter,
    policy_parameters,
    reference_policy,
    remove_policy,
    save_adapter,
    set_scale,
)
from focusdpo.model.backbones.flux import FluxBackbone
from focusdpo.model.step import autocast
from focusdpo.model.training.batches import encode_pairs
from focusdpo.model.training.config import AdapterKind, LoraConfig

LORA = LoraConfig(rank=3, alpha=6.0, targets=("to_q", "to_out.0", "proj_mlp"))


@torch.no_grad()
def velocity(backbone: FluxBackbone) -> Tensor:
    batch = encode_pairs(backbone, [make_sample(0, 2)])
    sigma = torch.tensor([0.5])
    return backbone.predict(batch.win_BNC, sigma, batch.prompts, batch.references).output_BNC


def train_a_little(backbone: FluxBackbone, kind: AdapterKind = "lora") -> None:
    give_policy(backbone, LORA.model_copy(update={"kind": kind}), seed=1, by=0.3)


def saved(backbone: FluxBackbone, directory: Path, kind: AdapterKind = "lora") -> Path:
    fingerprint = tiny_backbone().fingerprint
    card = AdapterCard(
        lora=LORA.model_copy(update={"kind": kind}),
        base_fingerprint=fingerprint,
        dataset_version="v1",
        objective="focus_dpo",
        step=5,
    )
    weights = policy_parameters(backbone.transformer)
    save_adapter(directory, backbone.transformer, card, weights)
    return directory


@pytest.fixture
def trained(backbone: FluxBackbone) -> FluxBackbone:
    train_a_little(backbone)
    return backbone


@pytest.mark.parametrize("kind", get_args(AdapterKind))
def test_a_fresh_policy_is_the_base(backbone: FluxBackbone, kind: AdapterKind) -> None:
    base = velocity(backbone)
    add_policy(backbone.transformer, LORA.model_copy(update={"kind": kind}), seed=0)
    assert torch.equal(velocity(backbone), base)
    remove_policy(backbone.transformer)
    assert torch.equal(velocity(backbone), base)
    assert not policy_parameters(backbone.transformer)


@pytest.mark.parametrize("kind", get_args(AdapterKind))
def test_a_fresh_policy_is_the_reference_policy_in_16_bits(
    backbone: FluxBackbone, kind: AdapterKind
) -> None:
    """On a base in bfloat16 under autocast, as on a GPU: a DoRA's lengths of rows are not rounded
    to the base's type, or the first loss would not be log 2."""
    backbone.transformer.to(torch.bfloat16)
    add_policy(backbone.transformer, LORA.model_copy(update={"kind": kind}), seed=0)
    with autocast(torch.device("cpu"), "bf16")():
        policy = velocity(backbone)
    with autocast(torch.device("cpu"), "bf16")(), reference_policy(backbone.transformer):
        assert torch.equal(velocity(backbone), policy)


@pytest.mark.parametrize("kind", get_args(AdapterKind))
def test_reference_policy_is_the_base_and_thaws_nothing(
    backbone: FluxBackbone, kind: AdapterKind
) -> None:
    base = velocity(backbone)
    train_a_little(backbone, kind)
    flags = [p.requires_grad for p in backbone.transformer.parameters()]
    policy = velocity(backbone)
    assert not torch.equal(policy, base)
    with reference_policy(backbone.transformer):
        assert [p.requires_grad for p in backbone.transformer.parameters()] == flags
        assert torch.equal(velocity(backbone), base)
    assert [p.requires_grad for p in backbone.transformer.parameters()] == flags
    assert torch.equal(velocity(backbone), policy)


def test_an_error_inside_does_not_leave_the_policy_off(trained: FluxBackbone) -> None:
    policy = velocity(trained)
    with pytest.raises(RuntimeError), reference_policy(trained.transformer):
        raise RuntimeError
    assert torch.equal(velocity(trained), policy)


def test_only_the_lora_learns_and_its_start_follows_the_seed(backbone: FluxBackbone) -> None:
    starts = []
    for seed in (0, 0, 1):
        torch.rand(3)  # the global generator must not matter
        add_policy(backbone.transformer, LORA, seed=seed)
        learning = {n for n, p in backbone.transformer.named_parameters() if p.requires_grad}
        assert learning == set(policy_parameters(backbone.transformer))
        parameters = policy_parameters(backbone.transformer).values()
        starts.append(torch.cat([p.detach().flatten() for p in parameters]))
        remove_policy(backbone.transformer)
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_saved_and_loaded_is_the_same_policy(trained: FluxBackbone, tmp_path: Path) -> None:
    policy = velocity(trained)
    saved(trained, tmp_path)
    other = tiny_backbone()
    base = velocity(other)
    card = load_adapter(other, tmp_path)
    assert (card.step, card.objective, card.dataset_version) == (5, "focus_dpo", "v1")
    assert torch.equal(velocity(other), policy)
    set_scale(other.transformer, 0.0)
    torch.testing.assert_close(velocity(other), base)
    load_adapter(other, tmp_path, scale=0.5)
    assert not torch.equal(velocity(other), policy)
    assert not any(p.requires_grad for p in other.transformer.parameters())


@pytest.mark.parametrize("kind", ["dora", "lokr"])
def test_other_kinds_come_back_and_tell_what_they_are(
    backbone: FluxBackbone, kind: AdapterKind, tmp_path: Path
) -> None:
    train_a_little(backbone, kind)
    policy = velocity(backbone)
    saved(backbone, tmp_path, kind)
    other = tiny_backbone()
    base, fingerprint = velocity(other), other.fingerprint
    assert load_adapter(other, tmp_path).lora.kind == kind
    assert torch.equal(velocity(other), policy)
    del other.fingerprint
    assert other.fingerprint == fingerprint, "an adapter on top does not count"
    remove_policy(other.transformer)
    assert torch.equal(velocity(other), base)
    if kind == "dora":
        with pytest.raises(UserError, match="a DoRA has no scale but 1, and 0.5"):
            load_adapter(other, tmp_path, scale=0.5)


def test_a_lora_s_card_and_digest_have_the_bytes_of_before_there_were_kinds() -> None:
    assert LORA.model_dump(mode="json").keys() == {"rank", "alpha", "targets"}
    assert LoraConfig(kind="lokr").model_dump()["kind"] == "lokr"
    assert LoraConfig.model_validate_json(LoraConfig(kind="dora").model_dump_json()).kind == "dora"


def test_diffusers_own_loader_reads_it(trained: FluxBackbone, tmp_path: Path) -> None:
    policy = velocity(trained)
    saved(trained, tmp_path)
    other = tiny_backbone()
    other.transformer.load_lora_adapter(
        tmp_path, weight_name="pytorch_lora_weights.safetensors", prefix="transformer"
    )
    torch.testing.assert_close(velocity(other), policy)


def test_the_same_weights_give_the_same_bytes(trained: FluxBackbone, tmp_path: Path) -> None:
    one, two = saved(trained, tmp_path / "1"), saved(trained, tmp_path / "2")
    for name in ("adapter.json", "pytorch_lora_weights.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_unknown_targets_are_a_users_error(backbone: FluxBackbone) -> None:
    with pytest.raises(UserError, match="lora.targets.*to_nothing"):
        add_policy(backbone.transformer, LoraConfig(targets=("to_nothing",)), seed=0)


def test_broken_folders_are_named(trained: FluxBackbone, tmp_path: Path) -> None:
    folder = saved(trained, tmp_path)
    weights, card = folder / "pytorch_lora_weights.safetensors", folder / "adapter.json"
    data, text = weights.read_bytes(), card.read_text()

    def message() -> str:
        with pytest.raises(UserError) as error:
            load_adapter(tiny_backbone(), folder)
        return str(error.value)

    weights.write_bytes(data[:-10])
    assert str(weights) in message()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "has changed since training" in message()
    changed = json.loads(text) | {"weights_digest": ""}
    card.write_text(json.dumps(changed))
    assert f"{card}: damaged" in message() and 'take "blake2b" out' in message()
    del changed["blake2b"]
    card.write_text(json.dumps(changed))
    weights.write_bytes(data[:100])
    assert str(weights) in message()
    weights.unlink()
    assert "missing" in message()
    card.write_text("{")
    assert str(card) in message()
    card.unlink()
    assert "no adapter.json" in message()


def test_another_base_is_refused_by_name(trained: FluxBackbone, tmp_path: Path) -> None:
    folder = saved(trained, tmp_path)
    other = tiny_backbone(seed=1)
    with pytest.raises(UserError, match=f"{tiny_backbone().fingerprint}.*{other.fingerprint}"):
        load_adapter(other, folder)
    wide = tiny_backbone(num_heads=4)
    card = json.loads((folder / "adapter.json").read_text())
    card["base_fingerprint"] = wide.fingerprint
    del card["blake2b"]
    (folder / "adapter.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="do not fit"):
        load_adapter(wide, folder)
    assert not policy_parameters(wide.transformer)
