"""FLUX.1 and UNO in their public layouts, with a few thousand random weights.

8 x 8 pixels a latent, 16 x 16 a token, as the real ones; a 64 x 64 image is 4 x 4 tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from focusdpo.model.backbones.flux_config import FluxUnoConfig
from focusdpo.model.backbones.uno_lora import uno_shapes

NUM_DOUBLE, NUM_SINGLE, WIDTH, RANK = 3, 2, 24, 4
TEXT_TOKENS = 12
_WORDS = ("a", "cat", "dog", "car", "and", "on", "grass", "red")


def _clip_tokenizer() -> CLIPTokenizer:
    letters = sorted({letter for word in _WORDS for letter in word})
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "ca", "cat</w>", "do", "dog</w>"]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    merges = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>")]
    vocab = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def _t5_tokenizer() -> T5Tokenizer:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0)]
    pieces += [(f"\u2581{word}", -float(i + 1)) for i, word in enumerate(_WORDS)]
    letters = sorted({letter for word in _WORDS for letter in word})
    pieces += [("\u2581", -12.0), *((letter, -13.0) for letter in letters)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def _transformer(guidance: bool) -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=NUM_DOUBLE,
        num_single_layers=NUM_SINGLE,
        attention_head_dim=12,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 4, 4),
    )


def _autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=64,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=True,
    )


def _text_encoders() -> tuple[CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer]:
    clip_tokenizer, t5_tokenizer = _clip_tokenizer(), _t5_tokenizer()
    end = clip_tokenizer.eos_token_id
    clip = CLIPTextConfig(
        vocab_size=len(clip_tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=clip_tokenizer.bos_token_id,
        eos_token_id=end,
        pad_token_id=end,
    )
    t5 = T5Config(
        vocab_size=len(t5_tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return CLIPTextModel(clip), clip_tokenizer, T5EncoderModel(t5), t5_tokenizer


def make_flux(folder: Path, *, distilled: bool = True, seed: int = 0) -> Path:
    """A pipeline folder: like FLUX.1-dev, or like schnell when not `distilled`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        clip, clip_tokenizer, t5, t5_tokenizer = _text_encoders()
        pipeline = FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(
                shift=3.0 if distilled else 1.0,
                use_dynamic_shifting=distilled,
                base_image_seq_len=256,
                max_image_seq_len=4096,
                base_shift=0.5,
                max_shift=1.15,
            ),
            vae=_autoencoder(),
            text_encoder=clip,
            tokenizer=clip_tokenizer,
            text_encoder_2=t5,
            tokenizer_2=t5_tokenizer,
            transformer=_transformer(distilled),
        )
        for name in ("transformer", "text_encoder", "text_encoder_2", "vae"):
            getattr(pipeline, name).eval()
        _stir(pipeline)
    pipeline.save_pretrained(folder)
    return folder


def _stir(pipeline: Any) -> None:
    """A fresh transformer's output hardly depends on its input; larger weights change that."""
    for parameter in pipeline.transformer.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)


def shard_transformer(folder: Path) -> list[Path]:
    """Rewrites the transformer as several files with an index, as the public one is."""
    model = FluxTransformer2DModel.from_pretrained(folder / "transformer", local_files_only=True)
    for old in (folder / "transformer").glob("*.safetensors"):
        old.unlink()
    model.save_pretrained(folder / "transformer", max_shard_size="100KB")
    return sorted((folder / "transformer").glob("*.safetensors"))


def uno_tensors(rank: int = RANK, seed: int = 1) -> dict[str, Tensor]:
    """UNO's LoRA for the tiny base, in its own key layout."""
    generator = torch.Generator().manual_seed(seed)
    shapes = uno_shapes(NUM_DOUBLE, NUM_SINGLE, WIDTH, rank)
    return {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def make_uno(folder: Path, tensors: dict[str, Tensor] | None = None) -> Path:
    """A folder with dit_lora.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(uno_tensors() if tensors is None else tensors, folder / "dit_lora.safetensors")
    return folder


def tiny_config(base: Path, uno: Path | None, **changes: Any) -> FluxUnoConfig:
    """Settings that fit the tiny checkpoints, in float32."""
    settings: dict[str, Any] = {
        "base": str(base),
        "uno": None if uno is None else str(uno),
        "image_size": (64, 64),
        "reference_sizes": (64, 32),
        "steps": 3,
        "dtype": "fp32",
        "max_text_tokens": TEXT_TOKENS,
    }
    return FluxUnoConfig.model_validate(settings | changes)


def edit_json(path: Path, **changes: Any) -> None:
    """Changes some entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
