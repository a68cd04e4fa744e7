"""Adapters as training leaves them, without the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from focusdpo.model.adapter import (
    AdapterCard,
    add_policy,
    policy_parameters,
    remove_policy,
    save_adapter,
)
from focusdpo.model.training.config import LoraConfig
from focusdpo.pocket.models.pocket_painter import PocketGenerator


def pocket_adapter(folder: Path) -> Path:
    """A LoRA of small constant weights: its pictures are not the base's."""
    return small_adapter(PocketGenerator.load().backbone, folder, 0.02, "subjects: <b>MIT</b>")


def small_adapter(backbone: Any, folder: Path, shift: float, licence: str) -> Path:
    """The same of any backbone, which is left as it was."""
    lora = LoraConfig(rank=4, alpha=4, targets=backbone.lora_targets)
    add_policy(backbone.transformer, lora, seed=0)
    for parameter in policy_parameters(backbone.transformer).values():
        parameter.data += shift
    card = AdapterCard(
        lora=lora, base_fingerprint=backbone.fingerprint, dataset_version="d1", objective="dpo",
        step=1, licences=(licence,),
    )  # fmt: skip
    weights = policy_parameters(backbone.transformer)
    save_adapter(folder, backbone.transformer, card, weights)
    remove_policy(backbone.transformer)
    return folder
