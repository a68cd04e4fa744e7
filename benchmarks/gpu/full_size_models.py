"""Backbones of full size with random weights, and random pairs for them: nothing is downloaded."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu.device import Flops, predict_flops
from benchmarks.gpu.gpu_config import Base, GpuBenchConfig, ModelName
from focusdpo.data_schemas.errors import UserError
from focusdpo.model.adapter import LoraConfig, add_policy, remove_policy
from focusdpo.model.backbone import Backbone, Grid, Prompts
from focusdpo.model.backbones.flux import FluxBackbone, SamplingConfig
from focusdpo.model.backbones.flux2_backbone import Flux2KleinBackbone
from focusdpo.model.backbones.flux_uno_backbone import middle_blocks
from focusdpo.model.backbones.sdxl_backbone import SdxlBackbone
from focusdpo.model.backbones.sdxl_config import SdxlIpAdapterConfig
from focusdpo.model.backbones.uno_lora import uno_targets
from focusdpo.model.focus import FocusPriors
from focusdpo.model.tokens import LatentCodec
from focusdpo.model.training.batches import PairBatch

TEXT_TOKENS, IMAGE_TOKENS = 77, 16
"""Of CLIP's text encoders, and of a reference (IP-Adapter-Plus)."""
_TIME_IDS = 6


class GivenPrompts(nn.Module):
    """In place of both text encoders, which no training step calls."""

    def __init__(self, prompts: Callable[[Sequence[str]], Prompts]) -> None:
        super().__init__()
        self._prompts = prompts

    def missing(self, prompts: Sequence[str]) -> bool:
        """No encoder has to run."""
        return False

    def forward(self, prompts: Sequence[str], device: torch.device) -> Prompts:
        """Embeddings (B, 77, 2048) and pooled (B, 1280)."""
        return self._prompts(prompts)


class RandomImageTokens(nn.Module):
    """In place of CLIP's vision tower and the resampler, which no training step calls."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, images: Sequence[Tensor]) -> Tensor:
        """Pictures -> (B, 16, E)."""
        generator = torch.Generator().manual_seed(len(images))
        return torch.randn(len(images), IMAGE_TOKENS, self.width, generator=generator)


def random_sdxl(
    config: GpuBenchConfig,
    materialise: Callable[[nn.Module], None],
    prompts: Callable[[tuple[int, int], int], Callable[[Sequence[str]], Prompts]],
    codec: LatentCodec,
) -> SdxlBackbone:
    """`materialise` gives the UNet's tensors values; `prompts` makes an encoder of embeddings of a
    shape and a pooled width."""
    from diffusers import EulerDiscreteScheduler

    arch = config.architecture("sdxl")
    width = arch["cross_attention_dim"]
    pooled = (
        arch["projection_class_embeddings_input_dim"] - _TIME_IDS * arch["addition_time_embed_dim"]
    )
    with torch.device("meta"):
        unet = sdxl_unet(arch)
    materialise(unet)
    backbone = SdxlBackbone(
        unet,
        nn.Identity(),
        GivenPrompts(prompts((TEXT_TOKENS, width), pooled)),  # type: ignore[arg-type]
        RandomImageTokens(width),  # type: ignore[arg-type]
        EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
        SdxlIpAdapterConfig(
            image_size=(config.image_size,) * 2, reference_size=config.sdxl_reference_size
        ),
        "random",
    )
    backbone.codec = codec  # type: ignore[assignment]
    return backbone


def sdxl_unet(arch: dict[str, Any]) -> Any:
    """The UNet with IP-Adapter's cross-attention, its image projection left out, as the backbone's
    loader leaves it."""
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

    from focusdpo.model.backbones.sdxl_backbone import GivenTokens

    unet: Any = UNet2DConditionModel(**arch)
    processors = dict(unet.attn_processors)
    for name in processors:
        if name.endswith("attn2.processor"):
            attention = unet.get_submodule(name.removesuffix(".processor"))
            processors[name] = IPAdapterAttnProcessor2_0(
                attention.inner_dim, arch["cross_attention_dim"], num_tokens=(IMAGE_TOKENS,)
            )
    unet.set_attn_processor(processors)
    unet.encoder_hid_proj = GivenTokens()
    unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
    return unet


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

    def __init__(
        self, shape: tuple[int, int], pooled: int, *, device: str, dtype: torch.dtype
    ) -> None:
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
    dtype = torch.float32 if base == "fp32" else torch.bfloat16
    fill = partial(materialise, base=base, device=device)
    prompts = partial(RandomPrompts, device=device, dtype=dtype)
    if model == "sdxl":
        return cast("Backbone", random_sdxl(config, fill, prompts, NoCodec(4)))
    if model == "klein":
        return _random_klein(config, fill, prompts)
    return _random_flux(config, fill, prompts)


def _random_flux(
    config: GpuBenchConfig,
    fill: Callable[[nn.Module], None],
    prompts: Callable[[tuple[int, int], int], RandomPrompts],
) -> FluxBackbone:
    from diffusers import FluxTransformer2DModel

    arch = config.architecture("flux")
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(**arch)
    fill(transformer)
    backbone = FluxBackbone(
        transformer,
        NoCodec(arch["in_channels"] // 4),
        prompts((config.text_tokens, arch["joint_attention_dim"]), arch["pooled_projection_dim"]),
        image_size=(config.image_size,) * 2,
        reference_size=(config.reference_size,) * 2,
        default_blocks=middle_blocks(arch["num_layers"]),
        token_pixels=FLUX_TOKEN,
    )
    backbone.lora_targets = uno_targets(arch["num_layers"], arch["num_single_layers"])
    return backbone


def _random_klein(
    config: GpuBenchConfig,
    fill: Callable[[nn.Module], None],
    prompts: Callable[[tuple[int, int], int], RandomPrompts],
) -> Flux2KleinBackbone:
    """Its scheduler only paints, which no training step does."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel

    arch = config.architecture("klein")
    with torch.device("meta"):
        transformer = Flux2Transformer2DModel(**arch)
    fill(transformer)
    backbone = Flux2KleinBackbone(
        transformer,
        nn.Identity(),
        prompts((config.text_tokens, arch["joint_attention_dim"]), _POOLED),
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        image_size=(config.image_size,) * 2,
        reference_size=(config.reference_size,) * 2,
        default_blocks=middle_blocks(arch["num_layers"]),
        token_pixels=FLUX_TOKEN,
        sampling=SamplingConfig(),
        fingerprint="random",
    )
    backbone.codec = NoCodec(arch["in_channels"] // 4)
    return backbone


_POOLED = 1
"""Klein reads no pooled embedding."""


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
        bnb = importlib.import_module("bitsandbytes")  # optional, and without types
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
                # On a CPU it would repack weights for inference, with no way back for a gradient.
                layer.support_avx512bf16_for_cpu = False
                setattr(module, name, layer)
    cast("Any", model).is_loaded_in_4bit = True  # peft then picks its 4-bit LoRA layer


def random_batch(
    backbone: Backbone, config: GpuBenchConfig, pairs: int, *, seed: int = 0
) -> PairBatch:
    """Pairs of random pictures with a box per subject, on the backbone's device."""
    device = next(backbone.transformer.parameters()).device
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:  # on the CPU: the same numbers for every device
        return torch.rand(*shape, generator=generator)

    win, lose = (draw(pairs, 3, *backbone.image_size) * 2 - 1 for _ in range(2))
    size, count = config.reference_size, config.references
    pictures = [draw(pairs, 3, size, size) * 2 - 1 for _ in range(count)]
    masks = torch.zeros(pairs, size, size)
    masks[:, size // 8 : -size // 8, size // 8 : -size // 8] = 1
    tokens = backbone.grid[0] * backbone.grid[1]
    subjects_BRN = _boxes(pairs, max(count, 1), backbone.grid).to(device)
    return PairBatch(
        keys=tuple(f"random {i}" for i in range(pairs)),
        win_BNC=backbone.encode_images(win).float(),
        lose_BNC=backbone.encode_images(lose).float(),
        priors=FocusPriors(
            prior_BN=subjects_BRN.amax(1),
            subjects_BRN=subjects_BRN,
            detail_BN=draw(pairs, tokens).to(device),
        ),
        lose_detail_BN=draw(pairs, tokens).to(device),
        signs_BR=torch.ones(pairs, count, device=device),
        prompts=backbone.encode_prompts(["a subject"] * pairs),
        references=backbone.encode_references(pictures, [masks] * count),
    )


def _boxes(pairs: int, subjects: int, grid: Grid) -> Tensor:
    """Where the subjects stand, side by side: (B, R, N) in {0, 1}."""
    rows, columns = grid
    masks_BRhw = torch.zeros(pairs, subjects, rows, columns)
    width = columns // subjects
    for r in range(subjects):
        left = r * width
        masks_BRhw[:, r, rows // 4 : -rows // 4, left : left + width // 2 + 1] = 1
    return masks_BRhw.flatten(2)


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
