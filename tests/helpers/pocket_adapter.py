"""An adapter of the pocket generator as training leaves it, without the training."""

from __future__ import annotations

from pathlib import Path

from focusdpo.model.adapter import AdapterCard, add_policy, policy_parameters, save_adapter
from focusdpo.model.configs import LoraConfig
from focusdpo.pocket.parts_generator import PocketGenerator


def pocket_adapter(folder: Path) -> Path:
    """A LoRA of small constant weights: its pictures are not the base's."""
    backbone = PocketGenerator.load().backbone
    lora = LoraConfig(rank=4, alpha=4, targets=backbone.lora_targets)
    add_policy(backbone.transformer, lora, seed=0)
    for parameter in policy_parameters(backbone.transformer).values():
        parameter.data += 0.02
    card = AdapterCard(
        lora=lora, base_fingerprint=backbone.fingerprint, dataset_version="d1", objective="dpo",
        step=1, licences=("subjects: <b>MIT</b>",),
    )  # fmt: skip
    weights = policy_parameters(backbone.transformer)
    save_adapter(folder, backbone.transformer, card, weights)
    return folder
