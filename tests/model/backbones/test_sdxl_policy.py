"""What trains on SDXL + IP-Adapter: a LoRA, or the adapter's own keys and values."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from pair_samples import make_sample
from safetensors.torch import load_file
from tiny_sdxl import PLUS, save_tiny_sdxl, subjects, tiny_config, tiny_pipeline
from torch import Tensor

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.adapter import (
    TrainedCopy,
    add_policy,
    load_adapter,
    policy_parameters,
    reference_policy,
    remove_policy,
    set_scale,
)
from focusdpo.model.backbones.sdxl_backbone import SdxlBackbone
from focusdpo.model.backbones.sdxl_ip_adapter import build, save_ip_adapter
from focusdpo.model.step import pair_step
from focusdpo.model.training.batches import encode_pairs
from focusdpo.model.training.config import LoraConfig, TrainConfig
from focusdpo.model.training.run import train
from focusdpo.store.samples import Sample

PROMPTS = ["a cat and a dog on grass", "a car"]
SETTINGS: dict[str, Any] = {
    "steps": 2,
    "batch_pairs": 2,
    "lr": 1e-2,
    "warmup": 0,
    "mixed_precision": "no",
    "tensorboard": False,
    "lora": {"rank": 2},
    "objective": {"beta": 100.0},
}


COMBINATIONS = [(p, f) for p in ("lora", "adapter_kv") for f in ("unet_self", "ip_kv")]


def settings(**changes: Any) -> TrainConfig:
    return TrainConfig.model_validate(SETTINGS | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_sdxl(tmp_path_factory.mktemp("sdxl"))


def built(folder: Path, **changes: Any) -> SdxlBackbone:
    return build(tiny_config(folder, **changes), "cpu")


@pytest.fixture(scope="module", params=["lora", "adapter_kv"])
def backbone(folder: Path, request: pytest.FixtureRequest) -> SdxlBackbone:
    return built(folder, policy=request.param)


def add(backbone: SdxlBackbone, **lora: Any) -> dict[str, torch.nn.Parameter]:
    remove_policy(backbone.transformer)
    config = LoraConfig(**{"rank": 2, "targets": tuple(backbone.lora_targets)} | lora)
    add_policy(backbone.transformer, config, seed=0)
    return policy_parameters(backbone.transformer)


def predict(backbone: SdxlBackbone) -> Tensor:
    references = backbone.encode_references(*subjects())
    noisy = torch.randn((2, 16, 16), generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.4, 0.8])
    prompts = backbone.encode_prompts(PROMPTS)
    return backbone.predict(noisy, sigma, prompts, references).output_BNC


def move(parameters: dict[str, torch.nn.Parameter]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for parameter in parameters.values():
            parameter.data.add_(0.1 * torch.randn_like(parameter))


def test_the_reference_policy_is_the_start_bit_for_bit(backbone: SdxlBackbone) -> None:
    remove_policy(backbone.transformer)
    start = predict(backbone)
    names = list(backbone.transformer.state_dict())
    parameters = add(backbone)
    assert torch.equal(predict(backbone), start)  # an untrained policy changes nothing
    move(parameters)
    assert (predict(backbone) - start).abs().max() > 1e-3
    with reference_policy(backbone.transformer):
        assert torch.equal(predict(backbone), start)
    set_scale(backbone.transformer, 0.0)
    torch.testing.assert_close(predict(backbone), start)
    set_scale(backbone.transformer, 1.0)
    remove_policy(backbone.transformer)
    assert torch.equal(predict(backbone), start)
    assert list(backbone.transformer.state_dict()) == names


def test_only_the_policy_trains(backbone: SdxlBackbone) -> None:
    parameters = add(backbone)
    trainable = {n for n, p in backbone.transformer.named_parameters() if p.requires_grad}
    assert trainable == set(parameters)
    predict(backbone).square().sum().backward()
    grads = [p.grad for p in parameters.values()]
    assert all(grad is not None and torch.isfinite(grad).all() for grad in grads)
    others = [p for n, p in backbone.transformer.named_parameters() if n not in parameters]
    assert all(p.grad is None for p in others)
    if backbone.config.policy == "adapter_kv":
        assert all(".to_k_ip." in name or ".to_v_ip." in name for name in parameters)
        copies = [m for m in backbone.transformer.modules() if isinstance(m, TrainedCopy)]
        assert len(copies) == len(parameters) == 2 * 11
    assert not any(p.requires_grad for p in backbone._image_tokens.parameters())
    remove_policy(backbone.transformer)


def test_a_copy_of_a_half_precision_layer_starts_as_it_is(folder: Path) -> None:
    backbone = built(folder, policy="adapter_kv", dtype="bf16")
    start = predict(backbone)
    parameters = add(backbone)
    assert all(p.dtype == torch.float32 for p in parameters.values())
    assert torch.equal(predict(backbone), start)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(predict(backbone), predict(backbone))
    move(parameters)
    with reference_policy(backbone.transformer):
        assert torch.equal(predict(backbone), start)


def test_keys_and_values_take_no_lora_targets(folder: Path) -> None:
    backbone = built(folder, policy="adapter_kv")
    with pytest.raises(UserError, match=r"lora.targets \['to_q'\].*policy is adapter_kv"):
        add(backbone, targets=("to_q",))
    with pytest.raises(UserError, match=r"lora.targets \['nowhere'\]"):
        add(built(folder), targets=("nowhere",))


@pytest.fixture(scope="module")
def runs(
    folder: Path, pair_samples: list[Sample], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Path]:
    """A run of two steps for each policy and way of reading features."""
    found = {}
    for policy, features in COMBINATIONS:
        found[policy, features] = tmp_path_factory.mktemp("run")
        backbone = built(folder, policy=policy, features=features)
        train(backbone, pair_samples[:5], settings(), found[policy, features])
    return found


@pytest.mark.parametrize(("policy", "features"), COMBINATIONS)
@pytest.mark.slow
def test_training_moves_the_policy_alone(
    folder: Path, runs: dict[tuple[str, str], Path], policy: str, features: str
) -> None:
    run = runs[policy, features]
    steps = pq.read_table(run / "steps.parquet").to_pylist()
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert steps[0]["win_gap"] == steps[0]["lose_gap"] == 0
    assert steps[1]["loss"] != steps[0]["loss"]
    backbone = built(folder, policy=policy, features=features)
    start = predict(backbone)
    card = load_adapter(backbone, run / "adapter")
    assert card.base_fingerprint == backbone.fingerprint
    trained = predict(backbone)
    assert (trained - start).abs().max() > 1e-4
    remove_policy(backbone.transformer)
    assert torch.equal(predict(backbone), start)
    load_adapter(backbone, run / "adapter")
    assert torch.equal(predict(backbone), trained)


def gradients(backbone: SdxlBackbone, config: TrainConfig, cast: Any = nullcontext) -> list[Tensor]:
    """Of one step of the configured objective, from the policy's start."""
    parameters = add(backbone)
    samples = [make_sample(i, 2) for i in range(2)]
    patches = config.objective.patch if config.objective.name == "patch_dpo" else None
    batch = encode_pairs(backbone, samples, patches)
    noise = torch.randn((2, 16, 16), generator=torch.Generator().manual_seed(1))
    output = pair_step(backbone, batch, noise, torch.tensor([0.3, 0.6]), config, cast)
    output.loss.value.backward()
    remove_policy(backbone.transformer)
    return [parameter.grad for parameter in parameters.values() if parameter.grad is not None]


def test_checkpointing_and_bf16_train_too(backbone: SdxlBackbone) -> None:
    """Gradients reach all of the policy, though a pass without gradient over the references runs
    in the same autocast."""
    plain = gradients(backbone, settings())
    assert len(plain) == (220 if backbone.config.policy == "lora" else 22)
    backbone.transformer.enable_gradient_checkpointing()
    again = gradients(backbone, settings())
    rough = gradients(backbone, settings(), lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    backbone.transformer.disable_gradient_checkpointing()
    assert len(rough) == len(plain)
    for one, other, third in zip(plain, again, rough, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)
        assert (third.abs().sum() > 0) == (one.abs().sum() > 0)


@pytest.mark.parametrize("name", ["sft", "dpo", "dpo_prior", "patch_dpo"])
def test_other_objectives_run_too(backbone: SdxlBackbone, name: str) -> None:
    found = gradients(backbone, settings(objective={"name": name}))
    assert sum(grad.abs().sum() for grad in found) > 0


def test_an_adapter_of_the_other_policy_is_refused(
    folder: Path, runs: dict[tuple[str, str], Path]
) -> None:
    with pytest.raises(UserError, match="trained on base"):
        load_adapter(built(folder, policy="adapter_kv"), runs["lora", "unet_self"] / "adapter")


def shown_by_diffusers(pipeline: Any) -> Tensor:
    """The UNet's answer for two references and a prompt."""
    embeds, _, pooled, _ = pipeline.encode_prompt(PROMPTS[0], do_classifier_free_guidance=False)
    generator = torch.Generator().manual_seed(0)
    shown = torch.randn((1, 2, 17, 32), generator=generator)
    with torch.no_grad():
        found: Tensor = pipeline.unet(
            torch.randn((1, 4, 8, 8), generator=generator),
            500,
            encoder_hidden_states=embeds,
            added_cond_kwargs={
                "text_embeds": pooled,
                "time_ids": torch.tensor([[64, 64, 0, 0, 64, 64]]),
                "image_embeds": [shown],
            },
        ).sample
    return found


def shown_by_us(backbone: SdxlBackbone) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn((1, 2, 17, 32), generator=generator)
    latents = torch.randn((1, 4, 8, 8), generator=generator)
    tokens = backbone._image_tokens.resampler(hidden[0])[None]
    prompts = backbone.encode_prompts(PROMPTS[:1])
    with torch.no_grad():
        level = torch.tensor([500])
        return backbone._denoise(latents, level, prompts, tokens, backbone._time_ids)


def test_diffusers_loads_the_lora(folder: Path, runs: dict[tuple[str, str], Path]) -> None:
    adapter = runs["lora", "unet_self"] / "adapter"
    backbone = built(folder)
    load_adapter(backbone, adapter)
    pipeline = tiny_pipeline(folder)
    before = shown_by_diffusers(pipeline)
    pipeline.load_lora_weights(adapter)
    assert pipeline.get_list_adapters() == {"unet": ["default_0"]}
    loaded = {name for name, _ in pipeline.unet.named_parameters() if "lora_" in name}
    assert len(loaded) == len(policy_parameters(backbone.transformer))
    after = shown_by_diffusers(pipeline)
    assert (after - before).abs().max() > 1e-4
    torch.testing.assert_close(shown_by_us(backbone), after, atol=1e-5, rtol=1e-4)
    plain = StableDiffusionXLPipeline.from_pretrained(folder / "base", local_files_only=True)
    plain.load_lora_weights(adapter)  # before the IP-Adapter: 2 x 11 layers of it are left out
    assert sum("lora_" in n for n, _ in plain.unet.named_parameters()) == len(loaded) - 44


def test_diffusers_loads_the_keys_and_values(
    folder: Path, runs: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    adapter, out = runs["adapter_kv", "unet_self"] / "adapter", tmp_path / "new" / "ip.safetensors"
    backbone = built(folder, policy="adapter_kv")
    load_adapter(backbone, adapter)
    save_ip_adapter(backbone.config, adapter, out)
    start, written = load_file(folder / "adapter" / "sdxl_models" / PLUS), load_file(out)
    assert written.keys() == start.keys()
    changed = {n for n in start if not torch.equal(start[n], written[n])}
    assert changed == {n for n in start if n.startswith("ip_adapter.")}
    pipeline = tiny_pipeline(folder)
    pipeline.load_ip_adapter(
        str(out.parent), subfolder="", weight_name=out.name, local_files_only=True
    )
    pipeline.set_ip_adapter_scale(0.78)
    ours, theirs = shown_by_us(backbone), shown_by_diffusers(pipeline)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_a_lora_becomes_no_ip_adapter_file(
    folder: Path, runs: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    adapter, out = runs["lora", "unet_self"] / "adapter", tmp_path / "ip.safetensors"
    with pytest.raises(UserError, match="a LoRA loads as it is"):
        save_ip_adapter(tiny_config(folder), adapter, out)
    with pytest.raises(UserError, match="trained on base"):
        save_ip_adapter(tiny_config(folder, scale=0.5), adapter, out)
