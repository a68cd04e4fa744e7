"""Small random checkpoints of DINO, DINOv2 and CLIP in the layouts of the public ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTModel,
)

WIDTH, DEPTH = 128, 2
CLIP_MODEL = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 64, "head_width": 32, "patch_size": 32},
    "text_cfg": {
        "context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2,
    },
}  # fmt: skip
CLIP_PREPROCESS = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def randomise(model: nn.Module, seed: int) -> None:
    """Weights large enough that pictures are told apart."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, values in sorted(model.named_parameters()):
            if values.ndim > 1:
                fan = values[0].numel()
                noise = torch.randn(values.shape, generator=generator)
                values.copy_(noise * (1.4 / fan**0.5 if "embeddings." not in name else 0.1))
            elif "bias" in name:
                values.copy_(0.1 * torch.randn(values.shape, generator=generator))


def save_dino_folder(folder: Path, seed: int = 0) -> Path:
    """As facebook/dino-vits16: transformers' ViTModel, with the epsilon that it ships."""
    config = ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=WIDTH // 64,
        intermediate_size=4 * WIDTH,
        layer_norm_eps=1e-12,
    )
    model = ViTModel(config, add_pooling_layer=False)
    randomise(model, seed)
    model.save_pretrained(folder)
    return folder


def tiny_timm() -> VisionTransformer:
    """The model of timm's vit_small_patch16_224.dino, but smaller."""
    model = VisionTransformer(
        img_size=224, patch_size=16, embed_dim=WIDTH, depth=DEPTH, num_heads=WIDTH // 64,
        num_classes=0,
    )  # fmt: skip
    randomise(model, 1)
    return model.eval()


def save_timm_folder(folder: Path, model: VisionTransformer) -> Path:
    """As timm/vit_small_patch16_224.dino."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    about = {"architecture": "vit_small_patch16_224", "num_classes": 0, "num_features": WIDTH}
    (folder / "config.json").write_text(json.dumps(about))
    return folder


def save_dinov2_folder(folder: Path, *, registers: bool = False, swiglu: bool = False) -> Path:
    """As facebook/dinov2-base (trained at 518 px), or -with-registers-, or -giant's blocks."""
    config_class = Dinov2WithRegistersConfig if registers else Dinov2Config
    config = config_class(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=518, patch_size=14,
        use_swiglu_ffn=swiglu,
    )  # fmt: skip
    model = (Dinov2WithRegistersModel if registers else Dinov2Model)(config)
    randomise(model, 2)
    model.save_pretrained(folder)
    return folder


def save_clip_folder(folder: Path, **model_settings: object) -> Path:
    """As timm/vit_base_patch32_clip_224.openai."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"model_cfg": CLIP_MODEL | model_settings, "preprocess_cfg": CLIP_PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    torch.manual_seed(3)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    randomise(model.visual, 3)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def pictures(count: int, seed: int = 0, side: int = 96) -> list[NDArray[np.uint8]]:
    """Pictures of many sizes: smooth colours, no two alike."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        height, width = random.integers(side // 2, 2 * side, 2)
        y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
        waves = [np.sin(2 * np.pi * (a * x + b * y + c)) for a, b, c in random.normal(0, 2, (3, 3))]
        noise = random.normal(0, 8, (height, width, 3))
        made.append((127 + 100 * np.stack(waves, 2) + noise).clip(0, 255).astype(np.uint8))
    return made


def disc(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """An upright ellipse in the middle of a picture."""
    height, width = image.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return (x / 0.5) ** 2 + (y / 0.8) ** 2 < 1
