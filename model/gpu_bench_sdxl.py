"""SDXL with IP-Adapter-Plus' attention, in full size with random weights, for `bench --gpu`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from focusdpo.model.backbone import Prompts
from focusdpo.model.backbones.sdxl_backbone import SdxlBackbone
from focusdpo.model.backbones.sdxl_config import SdxlIpAdapterConfig
from focusdpo.model.codec import LatentCodec
from focusdpo.model.gpu_bench_config import GpuBenchConfig

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

    from focusdpo.model.backbones.sdxl_loading import GivenTokens

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
