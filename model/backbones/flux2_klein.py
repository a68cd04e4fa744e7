"""FLUX.2 Klein (kind "flux2-klein"): what its checkpoint must hold, what identifies it, how it is
loaded. Importing this imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from focusdpo.model.backbones.flux2_config import Flux2KleinConfig
from focusdpo.model.backbones.flux2_files import (
    checks,
    fingerprint,
    require_memory,
    sources,
    verify,
)

if TYPE_CHECKING:
    from torch import nn

    from focusdpo.model.backbones.flux2_backbone import Flux2KleinBackbone
    from focusdpo.model.backbones.flux2_text import QwenPrompts

__all__ = ["Flux2KleinConfig", "build", "checks", "fingerprint", "sources"]


def build(config: Flux2KleinConfig, device: str) -> Flux2KleinBackbone:
    """The backbone on `device`, frozen, in evaluation mode. UserError, before a weight is read, for
    a checkpoint that is incomplete or another model's and for a device with too little memory."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    from focusdpo.model.backbones.flux import SamplingConfig
    from focusdpo.model.backbones.flux2_backbone import Flux2KleinBackbone, middle_blocks

    found = verify(config)
    require_memory(config, device)
    folder, steps = found.folder, config.steps or (4 if found.is_distilled else 50)
    transformer, autoencoder = _load_models(config, folder, device)
    return Flux2KleinBackbone(
        transformer,
        autoencoder,
        _load_prompts(config, folder, device),
        FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        image_size=config.image_size,
        reference_size=(config.reference_size,) * 2,
        default_blocks=config.blocks or middle_blocks(found.num_double),
        token_pixels=found.token_pixels,
        sampling=SamplingConfig(
            steps=steps,
            guidance=1.0 if found.is_distilled else config.guidance,
            strength=config.strength,
        ),
        fingerprint=fingerprint(config),
    )


def _load_models(
    config: Flux2KleinConfig, folder: Path, device: str
) -> tuple[nn.Module, nn.Module]:
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel

    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
    transformer: nn.Module = Flux2Transformer2DModel.from_pretrained(
        folder / "transformer", dtype=torch_dtype(config.dtype), **options
    )
    autoencoder: nn.Module = AutoencoderKLFlux2.from_pretrained(
        folder / "vae", dtype=torch_dtype(config.vae_dtype), **options
    )
    for module in (transformer, autoencoder):
        module.to(device).eval().requires_grad_(False)
    return transformer, autoencoder


def _load_prompts(config: Flux2KleinConfig, folder: Path, device: str) -> QwenPrompts:
    from transformers import Qwen2TokenizerFast, Qwen3ForCausalLM

    from focusdpo.model.backbones.flux2_text import QwenPrompts

    whole: Any = Qwen3ForCausalLM.from_pretrained(
        folder / "text_encoder",
        dtype=torch_dtype(config.dtype),
        use_safetensors=True,
        local_files_only=True,
    )
    encoder = whole.model.eval().requires_grad_(False)
    # Layers above the last one that is read, and the word head, would only take memory. One more
    # layer stays: the state behind the very last one is normalised.
    encoder.layers = encoder.layers[: max(config.text_layers) + 1]
    encoder.config.num_hidden_layers = len(encoder.layers)
    return QwenPrompts(
        encoder,
        Qwen2TokenizerFast.from_pretrained(folder / "tokenizer", local_files_only=True),
        device=device,
        layers=config.text_layers,
        max_tokens=config.text_tokens,
        offload=config.offload,
        cache_mib=config.prompt_cache_mib,
    )


def torch_dtype(name: str) -> Any:
    """torch's type of that name in the settings."""
    import torch

    return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]
