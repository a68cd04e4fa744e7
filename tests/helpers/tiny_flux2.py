"""FLUX.2 Klein of a few thousand random weights, on disk as the public one lies."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from transformers import Qwen2TokenizerFast, Qwen3Config, Qwen3ForCausalLM

from focusdpo.model.backbones.flux_config import Flux2KleinConfig

LAYERS = (1, 2, 3)
TEXT, TOKENS = 16, 96
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def _byte_characters() -> list[str]:
    """The characters that byte-level BPE writes bytes with."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(b) for b in shown] + [chr(256 + i) for i in range(len(hidden))]


def tiny_tokenizer() -> Qwen2TokenizerFast:
    """A token per byte."""
    names = [*_byte_characters(), "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Qwen2TokenizerFast(
        vocab={name: i for i, name in enumerate(names)},
        merges=[],
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def save_tiny_flux2(folder: Path, *, distilled: bool = True, seed: int = 0) -> Path:
    """A Flux2KleinPipeline's folder; weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer()
        pipeline = Flux2KleinPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True, shift=3.0, base_shift=0.5, max_shift=1.15
            ),
            vae=_tiny_autoencoder(),
            text_encoder=Qwen3ForCausalLM(
                Qwen3Config(
                    vocab_size=len(tokenizer),
                    hidden_size=TEXT,
                    intermediate_size=32,
                    num_hidden_layers=5,
                    num_attention_heads=2,
                    num_key_value_heads=1,
                    head_dim=8,
                    tie_word_embeddings=True,
                    initializer_range=0.2,
                )
            ),
            tokenizer=tokenizer,
            transformer=Flux2Transformer2DModel(
                patch_size=1,
                in_channels=16,
                num_layers=2,
                num_single_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=len(LAYERS) * TEXT,
                timestep_guidance_channels=16,
                mlp_ratio=2.0,
                axes_dims_rope=(4, 4, 4, 4),
                guidance_embeds=False,
            ),
            is_distilled=distilled,
        )
        with torch.no_grad():  # so that references and words show in the pictures
            for parameter in pipeline.transformer.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(2.5)
        pipeline.save_pretrained(folder)
    return folder


def _tiny_autoencoder() -> AutoencoderKLFlux2:
    autoencoder = AutoencoderKLFlux2(
        block_out_channels=(8,) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        mid_block_add_attention=False,
    )
    autoencoder.bn.running_mean.normal_()
    autoencoder.bn.running_var.uniform_(0.2, 3.0)
    return autoencoder


def tiny_config(folder: Path, **changes: object) -> Flux2KleinConfig:
    """64 x 64 pixels, 4 x 4 tokens, float32."""
    settings = {
        "base": str(folder),
        "image_size": (64, 64),
        "reference_size": 64,
        "text_layers": LAYERS,
        "text_tokens": TOKENS,
        "dtype": "fp32",
        "vae_dtype": "fp32",
    }
    return Flux2KleinConfig.model_validate(settings | changes)
