"""The public repositories of the shipped presets in a hub's cache, at full size: real headers and
the public settings, and holes in place of weights, so that they cost nothing on disk.

Settings are those of the public config.json files; names and shapes of tensors are what the classes
that those name give. Sizes of the public files, for comparison: `PUBLIC_BYTES`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.gpu_config import FULL
from focusdpo.model.backbones.sdxl_ip_adapter import PLUS, image_keys
from focusdpo.model.backbones.uno_lora import uno_shapes
from focusdpo.pipeline.adapters.clip_scorer import expected_shapes
from focusdpo.pipeline.adapters.dino import timm_shapes
from focusdpo.store.checkpoints import read_header

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Shapes = Mapping[str, tuple[int, ...]]
_SIZES = {"F32": 4, "BF16": 2, "F16": 2, "I64": 8}

# The public file leaves the axes to diffusers, whose default they are.
FLUX = {name: value for name, value in FULL["flux"].items() if name != "axes_dims_rope"}
KLEIN, SDXL_UNET = FULL["klein"], FULL["sdxl"]
_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "sample_size": 1024,
}
FLUX_VAE = _VAE | {
    "latent_channels": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "force_upcast": True,
}
SDXL_VAE = _VAE | {"latent_channels": 4, "scaling_factor": 0.13025}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
          "num_attention_heads": 12, "projection_dim": 768}  # fmt: skip
CLIP_BIG_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
              "num_attention_heads": 20, "projection_dim": 1280, "hidden_act": "gelu"}  # fmt: skip
T5_XXL = {"d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_layers": 24, "num_heads": 64,
          "vocab_size": 32128, "feed_forward_proj": "gated-gelu"}  # fmt: skip
QWEN3_4B = {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
            "vocab_size": 151936, "tie_word_embeddings": True}  # fmt: skip
VIT_H = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
         "num_attention_heads": 16, "patch_size": 14, "image_size": 224,
         "projection_dim": 1024, "hidden_act": "gelu"}  # fmt: skip
CLIP_B32 = {
    "embed_dim": 512,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}

PUBLIC_BYTES = {
    "black-forest-labs/FLUX.1-dev": 33.74e9,
    "bytedance-research/UNO": 1.91e9,
    "stabilityai/stable-diffusion-xl-base-1.0": 6.94e9,
    "h94/IP-Adapter": 3.38e9,
    "black-forest-labs/FLUX.2-klein-base-4B": 15.97e9,
    "diffusers/stable-diffusion-xl-1.0-inpainting-0.1": 6.94e9,
    "IDEA-Research/grounding-dino-tiny": 0.69e9,
    "IDEA-Research/grounding-dino-base": 0.93e9,
    "facebook/sam-vit-huge": 2.56e9,
    "facebook/sam2.1-hiera-large": 0.90e9,
    "timm/vit_small_patch16_224.dino": 0.087e9,
    "facebook/dinov2-base": 0.346e9,
    "timm/vit_base_patch32_clip_224.openai": 0.605e9,
    "Falconsai/nsfw_image_detection": 0.343e9,
}
"""What of each repository the presets need, as their public files measure; parameters times bytes
where a file's own size was not at hand."""


def write_sparse(path: Path, shapes: Shapes, dtype: str = "F32") -> None:
    """A safetensors file with a real header and a hole."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        size = _SIZES[dtype]
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    data = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(data).to_bytes(8, "little") + data)
        file.truncate(8 + len(data) + at)


def _shapes(model: Any, *without: str) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if not any(part in name for part in without)
    }


def _folder(cache: Path, name: str) -> Path:
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(COMMIT)
    folder = repository / "snapshots" / COMMIT
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _diffusers(folder: Path, kind: str, about: dict[str, Any], file: str, dtype: str) -> None:
    import diffusers

    _json(folder / "config.json", {"_class_name": kind, **about})
    with torch.device("meta"):
        model = getattr(diffusers, kind).from_config(about)
    write_sparse(folder / file, _shapes(model), dtype)


def _transformers(
    folder: Path, kind: str, config: Any, dtype: str, *without: str, file: str = "model"
) -> None:
    import transformers

    config.architectures = [kind]
    _json(folder / "config.json", config.to_dict())
    with torch.device("meta"):
        model = getattr(transformers, kind)(config)
    write_sparse(folder / f"{file}.safetensors", _shapes(model, *without), dtype)


def _tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "vocab.json", "tokenizer_config.json"):
        _json(folder / name, {})
    (folder / "merges.txt").write_text("")


def _clip_text(folder: Path, kind: str, about: dict[str, Any], file: str, dtype: str) -> None:
    from transformers import CLIPTextConfig

    _transformers(folder, kind, CLIPTextConfig(**about), dtype, "position_ids", file=file)


def write_flux(cache: Path) -> None:
    """FLUX.1-dev and UNO."""
    from transformers import T5Config

    folder = _folder(cache, "black-forest-labs/FLUX.1-dev")
    names = {"transformer": "FluxTransformer2DModel", "vae": "AutoencoderKL",
             "text_encoder": "CLIPTextModel", "text_encoder_2": "T5EncoderModel"}  # fmt: skip
    index = {name: ["diffusers", kind] for name, kind in names.items()}
    _json(folder / "model_index.json", {"_class_name": "FluxPipeline", **index})
    weights = "diffusion_pytorch_model.safetensors"
    _diffusers(folder / "transformer", names["transformer"], FLUX, weights, "BF16")
    _diffusers(folder / "vae", "AutoencoderKL", FLUX_VAE, weights, "BF16")
    _clip_text(folder / "text_encoder", "CLIPTextModel", CLIP_L, "model", "BF16")
    _transformers(
        folder / "text_encoder_2", "T5EncoderModel", T5Config(**T5_XXL), "BF16", "embed_tokens"
    )
    _flow_schedule(folder)
    for name in ("tokenizer", "tokenizer_2"):
        _tokenizer(folder / name)
    uno = _folder(cache, "bytedance-research/UNO")
    write_sparse(uno / "dit_lora.safetensors", uno_shapes(19, 38, 3072, 512), "BF16")


def _flow_schedule(folder: Path) -> None:
    about = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True,
             "base_shift": 0.5, "max_shift": 1.15, "shift": 3.0}  # fmt: skip
    _json(folder / "scheduler" / "scheduler_config.json", about)


def write_klein(cache: Path) -> None:
    """FLUX.2 Klein base, 4B."""
    from transformers import Qwen3Config

    folder = _folder(cache, "black-forest-labs/FLUX.2-klein-base-4B")
    _json(folder / "model_index.json", {"_class_name": "Flux2KleinPipeline", "is_distilled": False})
    weights = "diffusion_pytorch_model.safetensors"
    _diffusers(folder / "transformer", "Flux2Transformer2DModel", KLEIN, weights, "BF16")
    _diffusers(folder / "vae", "AutoencoderKLFlux2", {}, weights, "BF16")
    about = json.loads((folder / "vae" / "config.json").read_text())
    about |= {"latent_channels": 32, "block_out_channels": [128, 256, 512, 512]}
    _json(folder / "vae" / "config.json", about)
    _transformers(
        folder / "text_encoder", "Qwen3ForCausalLM", Qwen3Config(**QWEN3_4B), "BF16", "lm_head"
    )
    _flow_schedule(folder)
    _tokenizer(folder / "tokenizer")
    (folder / "tokenizer" / "chat_template.jinja").write_text("{{ messages }}")


def _sdxl(folder: Path, pipeline: str, unet: dict[str, Any], variants: tuple[str, ...]) -> None:
    _json(folder / "model_index.json", {"_class_name": pipeline})
    for variant in variants:
        end, dtype = (f".{variant}", "F16") if variant else ("", "F32")
        weights = f"diffusion_pytorch_model{end}.safetensors"
        _diffusers(folder / "unet", "UNet2DConditionModel", unet, weights, dtype)
        _diffusers(folder / "vae", "AutoencoderKL", SDXL_VAE, weights, dtype)
        _clip_text(folder / "text_encoder", "CLIPTextModel", CLIP_L, f"model{end}", dtype)
        second = folder / "text_encoder_2", "CLIPTextModelWithProjection", CLIP_BIG_G
        _clip_text(*second, f"model{end}", dtype)
    about = {"_class_name": "EulerDiscreteScheduler", "prediction_type": "epsilon",
             "beta_start": 0.00085, "beta_end": 0.012,
             "beta_schedule": "scaled_linear"}  # fmt: skip
    _json(folder / "scheduler" / "scheduler_config.json", about)
    for name in ("tokenizer", "tokenizer_2"):
        _tokenizer(folder / name)


def write_sdxl(cache: Path) -> None:
    """SDXL in both variants, IP-Adapter-Plus, and SDXL for inpainting."""
    from transformers import CLIPVisionConfig

    base = _folder(cache, "stabilityai/stable-diffusion-xl-base-1.0")
    _sdxl(base, "StableDiffusionXLPipeline", SDXL_UNET, ("", "fp16"))
    fill = _folder(cache, "diffusers/stable-diffusion-xl-1.0-inpainting-0.1")
    _sdxl(fill, "StableDiffusionXLInpaintPipeline", SDXL_UNET | {"in_channels": 9}, ("fp16",))
    adapter = _folder(cache, "h94/IP-Adapter")
    write_sparse(adapter / PLUS, ip_adapter_plus(SDXL_UNET), "F16")
    _transformers(
        adapter / "models" / "image_encoder",
        "CLIPVisionModelWithProjection",
        CLIPVisionConfig(**VIT_H),
        "F32",
        "position_ids",
    )


def ip_adapter_plus(unet: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of ip-adapter-plus_sdxl_vit-h.safetensors."""
    shapes: dict[str, tuple[int, ...]] = {
        "latents": (1, 16, 1280),
        "proj_in.weight": (1280, 1280),
        "proj_in.bias": (1280,),
        "proj_out.weight": (2048, 1280),
        "proj_out.bias": (2048,),
        "norm_out.weight": (2048,),
        "norm_out.bias": (2048,),
    }
    for i in range(4):
        for norm in ("0.norm1", "0.norm2", "1.0"):
            shapes |= {f"layers.{i}.{norm}.{part}": (1280,) for part in ("weight", "bias")}
        shapes[f"layers.{i}.0.to_q.weight"] = (1280, 1280)
        shapes[f"layers.{i}.0.to_kv.weight"] = (2560, 1280)
        shapes[f"layers.{i}.0.to_out.weight"] = (1280, 1280)
        shapes[f"layers.{i}.1.1.weight"] = (5120, 1280)
        shapes[f"layers.{i}.1.3.weight"] = (1280, 5120)
    return {f"image_proj.{name}": shape for name, shape in shapes.items()} | image_keys(unet)


def write_parts(cache: Path) -> None:
    """Detectors, segmenters, identity encoders, CLIP and the filter of unsafe pictures."""
    from transformers import (
        Dinov2Config,
        GroundingDinoConfig,
        Sam2VideoConfig,
        SamConfig,
        SwinConfig,
        ViTConfig,
    )

    base = SwinConfig(embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32],
                      image_size=384, window_size=12,
                      out_features=["stage2", "stage3", "stage4"])  # fmt: skip
    for size, config in (
        ("tiny", GroundingDinoConfig()),
        ("base", GroundingDinoConfig(backbone_config=base)),
    ):
        folder = _folder(cache, f"IDEA-Research/grounding-dino-{size}")
        _transformers(folder, "GroundingDinoForObjectDetection", config, "F32")
        _tokenizer(folder)
        (folder / "vocab.txt").write_text("[PAD]\n")
    huge = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16,
            "global_attn_indexes": [7, 15, 23, 31], "mlp_dim": 5120,
            "output_channels": 256}  # fmt: skip
    folder = _folder(cache, "facebook/sam-vit-huge")
    _transformers(folder, "SamModel", SamConfig(vision_config=huge), "F32")
    hiera = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 144,
        "num_attention_heads": 2,
        "blocks_per_stage": [2, 6, 36, 4],
        "embed_dim_per_stage": [144, 288, 576, 1152],
        "num_attention_heads_per_stage": [2, 4, 8, 16],
        "window_size_per_stage": [8, 4, 16, 8],
        "global_attention_blocks": [23, 33, 43],
    }
    vision = {"backbone_config": hiera, "backbone_channel_list": [1152, 576, 288, 144]}
    folder = _folder(cache, "facebook/sam2.1-hiera-large")
    config = Sam2VideoConfig(vision_config=vision)
    _transformers(folder, "Sam2VideoModel", config, "F32", "prompt_encoder.shared_embedding")
    folder = _folder(cache, "timm/vit_small_patch16_224.dino")
    _json(folder / "config.json", {"architecture": "vit_small_patch16_224"})
    write_sparse(folder / "model.safetensors", timm_shapes(384, 12, 16))
    folder = _folder(cache, "facebook/dinov2-base")
    config = Dinov2Config(image_size=518, patch_size=14)
    _transformers(folder, "Dinov2Model", config, "F32")
    file = folder / "model.safetensors"
    named = {_public_dinov2(name): one.shape for name, one in read_header(file, "test").items()}
    write_sparse(file, named)
    folder = _folder(cache, "timm/vit_base_patch32_clip_224.openai")
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    settings = {"model_cfg": CLIP_B32, "preprocess_cfg": {"mean": mean, "std": std}}
    _json(folder / "open_clip_config.json", settings)
    write_sparse(folder / "open_clip_model.safetensors", expected_shapes(CLIP_B32))
    folder = _folder(cache, "Falconsai/nsfw_image_detection")
    labels = {0: "normal", 1: "nsfw"}
    config = ViTConfig(id2label=labels, label2id={name: at for at, name in labels.items()})
    _transformers(folder, "ViTForImageClassification", config, "F32")
    _json(folder / "preprocessor_config.json", {"image_processor_type": "ViTImageProcessor"})
    _tokenizer(folder)


def _public_dinov2(name: str) -> str:
    """The public file is older than transformers 5, which calls its attention otherwise."""
    for ours, public in (
        ("q", "attention.query"),
        ("k", "attention.key"),
        ("v", "attention.value"),
    ):
        name = name.replace(f"attention.{ours}_proj.", f"attention.{public}.")
    return name.replace("attention.o_proj.", "attention.output.dense.")


def write_cache(cache: Path) -> Path:
    """Everything that the shipped presets name."""
    for write in (write_flux, write_klein, write_sdxl, write_parts):
        write(cache)
    return cache
