"""Backbones of full size with random weights, and random pairs for them: `bench --gpu` downloads
nothing. Speed and memory do not ask what the numbers say, as long as they are not all alike:
matrices of zeros draw less power, so that a GPU clocks higher than in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.adapter import LoraConfig, add_policy, remove_policy
from focusdpo.model.backbone import Backbone, Prompts
from focusdpo.model.backbones.flux import FluxBackbone
from focusdpo.model.batches import PairBatch
from focusdpo.model.flops import Flops, predict_flops
from focusdpo.model.focus import FocusPriors
from focusdpo.model.gpu_bench_config import Base, GpuBenchConfig, ModelName

STD = 0.02
LATENT_FACTOR, FLUX_TOKEN = 8, 16
"""Pixels of a latent's and of a FLUX token's side."""


class NoCodec(nn.Module):
    """Stands in for an autoencoder, which no training step calls (latents are encoded once):
    latents of the right shape, made of the pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def encode_latents(self, images_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, channels, H / 8, W / 8)."""
        small = F.avg_pool2d(images_BCHW, LATENT_FACTOR)
        return small.repeat(1, -(-self.channels // 3), 1, 1)[:, : self.channels]

    def decode_latents(self, latents_Bchw: Tensor) -> Tensor:
        """(B, channels, H / 8, W / 8) -> (B, 3, H, W)."""
        return F.interpolate(latents_Bchw[:, :3], scale_factor=LATENT_FACTOR)


class RandomPrompts:
    """Stands in for CLIP and T5, which no training step calls: embeddings of the right shape."""

    def __init__(self, shape: tuple[int, int], pooled: int, device: str, dtype: torch.dtype):
        self.shape, self.pooled, self.device, self.dtype = shape, pooled, device, dtype

    def __call__(self, prompts: Sequence[str]) -> Prompts:
        generator = torch.Generator().manual_seed(len(prompts))
        embeds = torch.randn(len(prompts), *self.shape, generator=generator)
        pooled = torch.randn(len(prompts), self.pooled, generator=generator)
        return Prompts(embeds.to(self.device, self.dtype), pooled.to(self.device, self.dtype))


def random_backbone(
    model: ModelName, config: GpuBenchConfig, base: Base, device: str | None = None
) -> Backbone:
    """Frozen random weights on `device` (None: the config's; "meta": shapes only), never on the
    host in between. UserError when nf4 is asked for and bitsandbytes is not installed."""
    device = device or config.device
    if model != "flux":
        raise NotImplementedError(model)
    return _random_flux(config, base, device)


def _random_flux(config: GpuBenchConfig, base: Base, device: str) -> FluxBackbone:
    from diffusers import FluxTransformer2DModel

    arch = config.architecture("flux")
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(**arch)
    materialise(transformer, base, device)
    dtype = torch.float32 if base == "fp32" else torch.bfloat16
    shape = (config.text_tokens, arch["joint_attention_dim"])
    double = arch["num_layers"]
    return FluxBackbone(
        transformer,
        NoCodec(arch["in_channels"] // 4),
        RandomPrompts(shape, arch["pooled_projection_dim"], device, dtype),
        image_size=(config.image_size,) * 2,
        reference_size=(config.reference_size,) * 2,
        default_blocks=tuple(f"double.{i}" for i in range(double // 3, 2 * double // 3)),
        token_pixels=FLUX_TOKEN,
    )


def materialise(model: nn.Module, base: Base, device: str) -> None:
    """Gives a model on the meta device random frozen weights on `device`, tensor by tensor."""
    dtype = torch.float32 if base == "fp32" else torch.bfloat16
    if base == "nf4":
        _quantise_linears(model, device)
    generator = None if device == "meta" else torch.Generator(device).manual_seed(0)
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.device.type == "meta":
                value = torch.empty(parameter.shape, dtype=dtype, device=device)
                _fill(value, name, generator)
                setattr(module, name, nn.Parameter(value, requires_grad=False))
    left = [name for name, buffer in model.named_buffers() if buffer.device.type == "meta"]
    if left and device != "meta":
        raise ValueError(f"buffers without a value: {left}")
    model.eval().requires_grad_(False)


def _fill(value: Tensor, name: str, generator: torch.Generator | None) -> None:
    """Matrices and kernels are random, scales of norms 1, biases 0."""
    if value.dim() > 1:
        value.normal_(0, STD, generator=generator)
    else:
        value.fill_(0.0 if name == "bias" else 1.0)


def _quantise_linears(model: nn.Module, device: str) -> None:
    """Every linear layer becomes bitsandbytes' 4-bit one (nf4, computes in bfloat16), as a QLoRA
    base is loaded; one layer's bfloat16 weights live at a time."""
    try:
        import bitsandbytes as bnb
    except ImportError as error:
        raise UserError("quantised=yes needs bitsandbytes: pip install bitsandbytes") from error
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                rows = torch.empty(child.weight.shape, dtype=torch.bfloat16, device=device)
                layer = bnb.nn.Linear4bit(
                    child.in_features,
                    child.out_features,
                    bias=child.bias is not None,
                    compute_dtype=torch.bfloat16,
                    quant_type="nf4",
                    device="meta",
                )
                weight = bnb.nn.Params4bit(
                    rows.normal_(0, STD), requires_grad=False, quant_type="nf4"
                )
                layer.weight = weight.to(device)
                setattr(module, name, layer)
    cast("Any", model).is_loaded_in_4bit = True  # peft then picks its 4-bit LoRA layer


def random_batch(
    backbone: Backbone, config: GpuBenchConfig, pairs: int, *, seed: int = 0
) -> PairBatch:
    """Pairs of random pictures with a box per subject, on the backbone's device."""
    device = next(backbone.transformer.parameters()).device
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).to(device)

    win, lose = (draw(pairs, 3, *backbone.image_size) * 2 - 1 for _ in range(2))
    size, count = config.reference_size, config.references
    pictures = [draw(pairs, 3, size, size) * 2 - 1 for _ in range(count)]
    masks = torch.zeros(pairs, size, size, device=device)
    masks[:, size // 8 : -size // 8, size // 8 : -size // 8] = 1
    rows, columns = backbone.grid
    subjects_BRhw = torch.zeros(pairs, max(count, 1), rows, columns, device=device)
    for r in range(max(count, 1)):  # side by side
        width = columns // max(count, 1)
        subjects_BRhw[:, r, rows // 4 : -rows // 4, r * width : r * width + width // 2 + 1] = 1
    subjects_BRN = subjects_BRhw.flatten(2)
    return PairBatch(
        keys=tuple(f"random {i}" for i in range(pairs)),
        win_BNC=backbone.encode_images(win).float(),
        lose_BNC=backbone.encode_images(lose).float(),
        priors=FocusPriors(
            prior_BN=subjects_BRN.amax(1),
            subjects_BRN=subjects_BRN,
            detail_BN=draw(pairs, rows * columns),
        ),
        lose_detail_BN=draw(pairs, rows * columns),
        prompts=backbone.encode_prompts(["a subject"] * pairs),
        references=backbone.encode_references(pictures, [masks] * count),
    )


def image_flops(model: ModelName, config: GpuBenchConfig) -> tuple[Flops, Flops]:
    """Of one image's pass through the policy and through the reference policy; counted on the meta
    device, where neither memory nor time is needed."""
    backbone = random_backbone(model, config, "fp32", "meta")
    batch = random_batch(backbone, config, 1)
    inputs = (backbone, batch.prompts, batch.references, batch.win_BNC)
    with torch.no_grad():
        reference = predict_flops(*inputs)
    with torch.device("meta"):
        add_policy(backbone.transformer, lora_config(backbone, config), seed=0)
    policy = predict_flops(*inputs)
    remove_policy(backbone.transformer)
    return policy, reference


def lora_config(backbone: Backbone, config: GpuBenchConfig) -> LoraConfig:
    """The policy that is measured."""
    return LoraConfig(rank=config.rank, alpha=config.rank, targets=tuple(backbone.lora_targets))
