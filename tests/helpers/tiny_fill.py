"""FLUX.1 Fill and SDXL inpainting of a few thousand random weights, on disk as the public ones."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    FluxFillPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tiny_flux import make_flux
from tiny_sdxl import save_base

from focusdpo.pipeline.adapters.inpainters import FluxFillConfig, SdxlInpaintConfig


def save_flux_fill(folder: Path, scratch: Path) -> Path:
    """16 channels of noisy latents, 16 of the picture with a hole, 256 of the mask."""
    parts = FluxPipeline.from_pretrained(make_flux(scratch)).components
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        settings = dict(parts["transformer"].config) | {"in_channels": 288, "out_channels": 16}
        transformer = FluxTransformer2DModel.from_config(settings)
        for parameter in transformer.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    names = ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    pipeline = FluxFillPipeline(transformer=transformer, **{name: parts[name] for name in names})
    pipeline.save_pretrained(folder)
    return folder


def save_sdxl_inpaint(folder: Path, scratch: Path, variant: str | None = None) -> Path:
    """A UNet that reads 9 channels; with a variant also "<name>.<variant>.safetensors"."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        parts = StableDiffusionXLPipeline.from_pretrained(save_base(scratch)).components
        settings = dict(parts["unet"].config) | {"in_channels": 9}
        parts |= {"unet": UNet2DConditionModel.from_config(settings)}
    pipeline = StableDiffusionXLInpaintPipeline(**parts, add_watermarker=False)
    pipeline.save_pretrained(folder)
    if variant is not None:
        pipeline.save_pretrained(folder, variant=variant)
    return folder


def flux_fill_config(folder: Path, **changes: object) -> FluxFillConfig:
    """Three steps in float32."""
    settings = {"source": str(folder), "steps": 3, "text_tokens": 12, "dtype": "fp32", "batch": 2}
    return FluxFillConfig.model_validate(settings | changes)


def sdxl_config(folder: Path, **changes: object) -> SdxlInpaintConfig:
    """Four steps in float32, plain file names."""
    settings = {"source": str(folder), "steps": 4, "dtype": "fp32", "variant": None, "batch": 2}
    return SdxlInpaintConfig.model_validate(settings | changes)
