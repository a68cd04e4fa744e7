"""SDXL, IP-Adapter-Plus and CLIP of a few thousand random weights, on disk as the public ones lie.

`base/` is a pipeline folder as diffusers saves it, `adapter/` is laid out as h94/IP-Adapter:
`sdxl_models/*.safetensors` in the authors' own key names and `models/image_encoder/`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from focusdpo.model.backbones.sdxl_conditioning import framed, to_bytes
from focusdpo.model.backbones.sdxl_config import SdxlIpAdapterConfig
from focusdpo.model.tokens import unpack

TEXT, CROSS, VISION, RESAMPLER, QUERIES = 16, 32, 32, 32, 16
WORDS = ("a", "and", "on", "grass", "cat", "dog", "car")
PLUS = "ip-adapter-plus_sdxl_vit-h.safetensors"


def _tokenizer(pad: str) -> CLIPTokenizer:
    """Letters and the pairs' words."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocab: dict[str, int] = {}
    merges: list[tuple[str, str]] = []
    for token in ["!", *letters, *(f"{letter}</w>" for letter in letters)]:
        vocab.setdefault(token, len(vocab))
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            if (pair := (parts[0], parts[1])) not in merges:
                merges.append(pair)
            parts[:2] = [parts[0] + parts[1]]
            vocab.setdefault(parts[0], len(vocab))
    for token in ("<|startoftext|>", "<|endoftext|>"):
        vocab[token] = len(vocab)
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad, model_max_length=12)


def _text_config(tokenizer: CLIPTokenizer, **changes: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT,
        intermediate_size=32,
        projection_dim=TEXT,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **changes,
    )


def tiny_unet() -> UNet2DConditionModel:
    """SDXL's layout: three levels, the first without attention, added time ids."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(2, 4, 4),
        norm_num_groups=8,
        cross_attention_dim=CROSS,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + TEXT,
    )


def tiny_vae() -> AutoencoderKL:
    """A factor of 8, 4 channels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8,) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=0.13025,
        force_upcast=True,
    )


def scheduler(**changes: Any) -> EulerDiscreteScheduler:
    """SDXL's scheduler_config.json."""
    settings: dict[str, Any] = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "timestep_spacing": "leading",
        "steps_offset": 1,
        "prediction_type": "epsilon",
        "interpolation_type": "linear",
    }
    return EulerDiscreteScheduler(**settings | changes)


def save_base(folder: Path, prediction: str = "epsilon") -> Path:
    """The pipeline folder."""
    first, second = _tokenizer("<|endoftext|>"), _tokenizer("!")
    pipeline = StableDiffusionXLPipeline(
        vae=tiny_vae(),
        text_encoder=CLIPTextModel(_text_config(first)),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(second, hidden_act="gelu")),
        tokenizer=first,
        tokenizer_2=second,
        unet=tiny_unet(),
        scheduler=scheduler(prediction_type=prediction),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder)
    for part, tokenizer in (("tokenizer", first), ("tokenizer_2", second)):
        _as_public(folder / part, tokenizer)
    return folder


def _as_public(folder: Path, tokenizer: CLIPTokenizer) -> None:
    """vocab.json and merges.txt, as the public folders have it, instead of tokenizer.json."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(tokenizer.get_vocab()))
    merges = [" ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))


def save_image_encoder(folder: Path) -> Path:
    """CLIP's vision tower; the public one is ViT-H."""
    config = CLIPVisionConfig(
        hidden_size=VISION,
        intermediate_size=64,
        projection_dim=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=28,
        patch_size=7,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def resampler_weights() -> dict[str, Tensor]:
    """`image_proj` of IP-Adapter-Plus in its authors' names: 4 layers, heads of width 64."""
    wide, inner = RESAMPLER, 64

    def weight(*shape: int) -> Tensor:
        return torch.randn(*shape) / shape[-1] ** 0.5

    tensors = {
        "latents": weight(1, QUERIES, wide),
        "proj_in.weight": weight(wide, VISION),
        "proj_in.bias": 0.1 * torch.randn(wide),
        "proj_out.weight": weight(CROSS, wide),
        "proj_out.bias": 0.1 * torch.randn(CROSS),
        "norm_out.weight": 1 + 0.1 * torch.randn(CROSS),
        "norm_out.bias": 0.1 * torch.randn(CROSS),
    }
    for i in range(4):
        for norm in ("0.norm1", "0.norm2", "1.0"):
            tensors[f"layers.{i}.{norm}.weight"] = 1 + 0.1 * torch.randn(wide)
            tensors[f"layers.{i}.{norm}.bias"] = 0.1 * torch.randn(wide)
        tensors[f"layers.{i}.0.to_q.weight"] = weight(inner, wide)
        tensors[f"layers.{i}.0.to_kv.weight"] = weight(2 * inner, wide)
        tensors[f"layers.{i}.0.to_out.weight"] = weight(wide, inner)
        tensors[f"layers.{i}.1.1.weight"] = weight(4 * wide, wide)
        tensors[f"layers.{i}.1.3.weight"] = weight(wide, 4 * wide)
    return tensors


def attention_weights(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """`ip_adapter`: odd numbers, one pair of matrices per cross-attention."""
    tensors = {}
    names = [name for name in unet.attn_processors if "attn2" in name]
    for index, name in enumerate(names):
        attention = unet.get_submodule(name.removesuffix(".processor"))
        for kind in ("k", "v"):
            shape = (attention.to_k.weight.shape[0], CROSS)
            tensors[f"{2 * index + 1}.to_{kind}_ip.weight"] = torch.randn(shape) / CROSS**0.5
    return tensors


def save_adapter_file(path: Path) -> Path:
    """The adapter's one file."""
    parts = {"image_proj": resampler_weights(), "ip_adapter": attention_weights(tiny_unet())}
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = {f"{part}.{name}": t for part, found in parts.items() for name, t in found.items()}
    save_file(flat, path)
    return path


def save_tiny_sdxl(folder: Path, seed: int = 0) -> Path:
    """`base/` and `adapter/` in a folder; weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        save_base(folder / "base")
        save_adapter_file(folder / "adapter" / "sdxl_models" / PLUS)
        save_image_encoder(folder / "adapter" / "models" / "image_encoder")
    return folder


def tiny_config(folder: Path, **changes: Any) -> SdxlIpAdapterConfig:
    """Settings for such a folder: 64 x 64 pixels, 4 x 4 tokens, float32."""
    settings: dict[str, Any] = {
        "base": str(folder / "base"),
        "adapter": str(folder / "adapter"),
        "image_size": (64, 64),
        "reference_size": 64,
        "dtype": "fp32",
        "steps": 3,
    }
    return SdxlIpAdapterConfig.model_validate(settings | changes)


def tiny_pipeline(folder: Path, scale: float = 0.78, **parts: Any) -> StableDiffusionXLPipeline:
    """diffusers' own pipeline on the same files, loaded by its own means."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        folder / "base", local_files_only=True, **parts
    )
    pipeline.register_modules(
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(
            folder / "adapter" / "models" / "image_encoder"
        )
    )
    pipeline.load_ip_adapter(
        str(folder / "adapter"), subfolder="sdxl_models", weight_name=PLUS, local_files_only=True
    )
    pipeline.set_ip_adapter_scale(scale)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def subjects(count: int = 2, batch: int = 2) -> tuple[list[Tensor], list[Tensor]]:
    """References of random colours, each with a box that is the subject."""
    generator = torch.Generator().manual_seed(3)
    images = [torch.rand((batch, 3, 48, 64), generator=generator) * 2 - 1 for _ in range(count)]
    masks = [torch.zeros(batch, 48, 64) for _ in range(count)]
    for i, mask in enumerate(masks):
        mask[:, 6 + 4 * i : 40, 8 : 40 + 4 * i] = 1
    return images, masks


def as_shown(image: Tensor, mask: Tensor) -> Image.Image:
    """What CLIP is shown, as a picture for diffusers."""
    square = to_bytes(framed(image, mask, "subject")[0])
    return Image.fromarray(square.permute(1, 2, 0).numpy())


def noise(seed: int) -> Tensor:
    """The backbone's start for a seed, as latents."""
    drawn = torch.randn((1, 16, 16), generator=torch.Generator().manual_seed(seed))
    return unpack(drawn, (4, 4))
