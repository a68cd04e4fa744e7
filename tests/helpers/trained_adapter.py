"""An adapter of a checkpoint backbone in the folder of its training, as exports read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from torch import nn

from focusdpo.model.adapter import AdapterCard, LoraConfig, save_adapter


def save_trained(
    folder: Path,
    backbone: Any,
    config: BaseModel,
    lora: LoraConfig,
    weights: dict[str, nn.Parameter],
) -> Path:
    """Writes run.yaml and the adapter below `folder`; the adapter's folder."""
    card = AdapterCard(
        lora=lora, base_fingerprint=backbone.fingerprint, dataset_version="d", objective="dpo",
        step=1,
    )  # fmt: skip
    save_adapter(folder / "train" / "adapter", backbone.transformer, card, weights)
    run = {"suite": "checkpoints", "models": {"backbone": config.model_dump(mode="json")}}
    (folder / "train" / "run.yaml").write_text(yaml.safe_dump(run))
    return folder / "train" / "adapter"
