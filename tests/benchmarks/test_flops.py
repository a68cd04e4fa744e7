"""Counted operations: against torch's own counter, against a closed form, and what they are for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_bench import tiny_bench
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.device import FlopCounter, Flops, peak_flops, predict_flops, step_flops
from benchmarks.gpu.full_size_models import (
    image_flops,
    lora_config,
    random_backbone,
    random_batch,
)
from benchmarks.gpu.gpu_config import GpuBenchConfig, ModelName
from focusdpo.model.adapter import add_policy
from focusdpo.model.backbone import Backbone
from focusdpo.model.training.batches import PairBatch

MODELS: tuple[ModelName, ...] = ("flux", "sdxl", "klein")


def torch_counts(backbone: Backbone, batch: PairBatch) -> Flops:
    """By torch's counter, on the values of the passes. Attention is broken down into products, for
    the fused kernel of a CPU has no formula there."""
    sigma_B = torch.full((len(batch),), 0.5)
    ahead, back = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH):
        with ahead:
            output = backbone.predict(batch.win_BNC, sigma_B, batch.prompts, batch.references)
        if output.output_BNC.requires_grad:
            with back:
                output.output_BNC.sum().backward()
    return Flops(ahead.get_total_flops(), back.get_total_flops())


@pytest.mark.parametrize("model", MODELS)
def test_it_is_torchs_count(model: ModelName) -> None:
    config = tiny_bench()
    backbone = random_backbone(model, config, "fp32")
    batch = random_batch(backbone, config, 2)
    inputs = (backbone, batch.prompts, batch.references, batch.win_BNC)
    frozen = predict_flops(*inputs)
    assert frozen == torch_counts(backbone, batch)
    assert frozen.backward == 0, "nothing there is trained"
    add_policy(backbone.transformer, lora_config(backbone, config), seed=0)
    policy = predict_flops(*inputs)
    assert policy == torch_counts(backbone, batch)
    assert policy.backward > 0 and policy.forward > frozen.forward
    with torch.no_grad():
        assert predict_flops(*inputs) == Flops(policy.forward, 0)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.slow
def test_the_meta_device_gives_the_same(model: ModelName) -> None:
    config = tiny_bench()
    policy, reference = image_flops(model, config)
    backbone = random_backbone(model, config, "fp32")
    batch = random_batch(backbone, config, 1)
    inputs = (backbone, batch.prompts, batch.references, batch.win_BNC)
    assert predict_flops(*inputs) == reference
    add_policy(backbone.transformer, lora_config(backbone, config), seed=0)
    assert predict_flops(*inputs) == policy


def flux_forward(config: GpuBenchConfig) -> int:
    """The base's forward pass over one image, from the architecture's letters."""
    arch: dict[str, Any] = config.architecture("flux")
    d, c = arch["num_attention_heads"] * arch["attention_head_dim"], arch["in_channels"]
    text = config.text_tokens
    image = (config.image_size // 16) ** 2 + config.references * (config.reference_size // 16) ** 2
    both = text + image
    attention = 2 * 2 * both * both * d
    embed = 2 * (image * c * d + text * arch["joint_attention_dim"] * d)
    # time (from 256 sines), guidance (the same) and the pooled text, two layers each
    vector = 2 * (2 * (256 * d + d * d) + arch["pooled_projection_dim"] * d + d * d)
    # q, k, v and out: 4 d^2; feed forward: 8 d^2; modulation of image and text: 6 d^2 each
    double = 2 * both * 12 * d * d + 2 * 2 * 6 * d * d + attention
    # q, k, v: 3 d^2; up: 4 d^2; out of both: 5 d^2; modulation: 3 d^2
    single = 2 * both * 12 * d * d + 2 * 3 * d * d + attention
    last = 2 * (2 * d * d + image * d * c)
    blocks = arch["num_layers"] * double + arch["num_single_layers"] * single
    return embed + vector + blocks + last


@pytest.mark.parametrize("config", [tiny_bench(), tiny_bench(references=0), GpuBenchConfig()])
def test_flux_is_its_closed_form(config: GpuBenchConfig) -> None:
    backbone = random_backbone("flux", config, "fp32", "meta")
    batch = random_batch(backbone, config, 1)
    with torch.no_grad():
        counted = predict_flops(backbone, batch.prompts, batch.references, batch.win_BNC)
    assert counted.forward == flux_forward(config)


def test_only_factors_that_need_it_have_a_gradient() -> None:
    x, w = torch.randn(3, 4), torch.randn(5, 4, requires_grad=True)
    with FlopCounter() as trained:
        F.linear(x, w)
    with FlopCounter() as both:
        F.linear(x.requires_grad_(), w)
    with FlopCounter() as plain:
        _ = torch.randn(2, 3, 4) @ torch.randn(4, 5)
    assert trained.total == Flops(2 * 3 * 4 * 5, 2 * 3 * 4 * 5)
    assert both.total == Flops(2 * 3 * 4 * 5, 2 * 2 * 3 * 4 * 5)
    assert plain.total == Flops(2 * 2 * 3 * 4 * 5, 0)


def test_a_product_without_a_rule_is_an_error() -> None:
    with pytest.raises(NotImplementedError, match="no rule"), FlopCounter():
        torch.einsum("ij,jk->ik", torch.randn(2, 2), torch.randn(2, 2))


def test_what_a_step_needs() -> None:
    policy, reference = Flops(10, 12), Flops(9, 0)
    assert step_flops("sft", 3, policy, reference) == 3 * 22
    for objective in ("dpo", "focus_dpo"):
        assert step_flops(objective, 3, policy, reference) == 6 * (22 + 9)


@pytest.mark.parametrize(
    "name, tera",
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 311.9),
        ("NVIDIA A10", 125.0),
        ("NVIDIA L40S", 362.1),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("cpu", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H1000", None),
        ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", None),
    ],
)
def test_peaks_go_by_the_device_s_name(name: str, tera: float | None) -> None:
    assert peak_flops(name) == (None if tera is None else tera * 1e12)
