"""A small random image classifier in the layout of Falconsai/nsfw_image_detection."""

from __future__ import annotations

from pathlib import Path

from tiny_encoders import randomise
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor


def save_filter_folder(
    folder: Path, seed: int = 0, labels: tuple[str, ...] = ("normal", "nsfw")
) -> Path:
    """ViT of two labels, with the preprocessing that the public one ships."""
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=224,
        patch_size=56,
        id2label=dict(enumerate(labels)),
        label2id={label: at for at, label in enumerate(labels)},
    )
    model = ViTForImageClassification(config)
    randomise(model, seed)
    model.save_pretrained(folder)
    ViTImageProcessor(
        size={"height": 224, "width": 224}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder)
    return folder
