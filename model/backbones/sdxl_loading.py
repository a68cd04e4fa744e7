"""Reads SDXL, IP-Adapter-Plus and CLIP into a backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from focusdpo.data_schemas.checkpoints import locate
from focusdpo.model import full_policy
from focusdpo.model.backbones.sdxl_backbone import SdxlBackbone
from focusdpo.model.backbones.sdxl_config import KV_TARGETS, SdxlIpAdapterConfig
from focusdpo.model.backbones.sdxl_ip_adapter import adapter_path, encoder_folder
from focusdpo.model.backbones.sdxl_references import ImageTokens
from focusdpo.model.backbones.sdxl_text import SdxlText

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class GivenTokens(nn.Module):
    """In place of a UNet's image projection, where image tokens are made beforehand."""

    def forward(self, image_embeds: list[Tensor]) -> list[Tensor]:
        """Per adapter (B, R, m, E), unchanged."""
        return image_embeds


def load(config: SdxlIpAdapterConfig, device: str, fingerprint: str) -> SdxlBackbone:
    """The backbone, frozen and in evaluation mode, from checkpoints that were checked."""
    dtype = _DTYPES[config.dtype]
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        locate(config.base, "models.backbone.base"),
        dtype={"vae": _DTYPES[config.vae_dtype], "default": dtype},
        variant=config.variant,
        use_safetensors=True,
        local_files_only=True,
        add_watermarker=False,
    )
    encoder = CLIPVisionModelWithProjection.from_pretrained(
        encoder_folder(config), dtype=dtype, use_safetensors=True, local_files_only=True
    )
    pipeline.register_modules(image_encoder=encoder)
    unet, resampler = with_adapter(pipeline, adapter_path(config), config.scale)
    text = SdxlText(
        (pipeline.tokenizer, pipeline.tokenizer_2),
        (pipeline.text_encoder, pipeline.text_encoder_2),
        zero_empty=pipeline.config.force_zeros_for_empty_prompt,
        cache_mib=config.prompt_cache_mib,
    )
    images = ImageTokens(encoder, resampler)
    rest = "cpu" if config.offload else device
    for module, where in ((unet, device), (pipeline.vae, rest), (text, rest), (images, rest)):
        module.to(where).eval().requires_grad_(False)
    if config.policy == "adapter_kv":
        full_policy.choose(unet, KV_TARGETS)
    return SdxlBackbone(unet, pipeline.vae, text, images, pipeline.scheduler, config, fingerprint)


def with_adapter(pipeline: Any, path: Path, scale: float) -> tuple[Any, nn.Module]:
    """The pipeline's UNet with IP-Adapter's attention, and the resampler taken out of it: a LoRA
    on the UNet leaves it alone, and references go through it once."""
    weights: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in load_file(path).items():
        part, _, rest = name.partition(".")
        weights[part][rest] = tensor
    pipeline.load_ip_adapter([weights], subfolder=[None], weight_name=[None])
    pipeline.set_ip_adapter_scale(scale)
    resampler: nn.Module = pipeline.unet.encoder_hid_proj.image_projection_layers[0]
    pipeline.unet.encoder_hid_proj = GivenTokens()
    return pipeline.unet, resampler
