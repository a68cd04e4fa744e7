"""The pocket identity encoder: a small DINOv2 that tells individuals apart.

DINOv2 (arXiv 2304.07193) as transformers builds it, on crops of the masked subject, with a linear
head; trained by a supervised contrastive loss (arXiv 2004.11362) instead of self-distillation,
because the pocket world knows who is who.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from focusdpo.pipeline.parts import Image, Mask, Vectors
from focusdpo.pocket.crops import crops_of
from focusdpo.pocket.weightfiles import WEIGHTS, fingerprint, load_weights, read_settings


class IdentityModelConfig(BaseModel):
    """Shape of the identity encoder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(32, description="side of the crop in pixels", ge=8)
    patch: int = Field(4, description="side of a patch in pixels", ge=1)
    width: int = Field(128, description="hidden size", ge=8)
    layers: int = Field(4, description="transformer layers", ge=1)
    heads: int = Field(4, description="attention heads", ge=1)
    embedding: int = Field(64, description="length of the embedding", ge=2)


class IdentityNet(nn.Module):
    """Crops (B, 3, S, S) in [0, 1] -> embeddings (B, D) of unit length."""

    def __init__(self, config: IdentityModelConfig) -> None:
        super().__init__()
        from transformers import Dinov2Config, Dinov2Model

        self.config = config
        self.backbone = Dinov2Model(
            Dinov2Config(
                image_size=config.size,
                patch_size=config.patch,
                hidden_size=config.width,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                mlp_ratio=4,
            )
        )
        # No token is ever masked here; an unused parameter would get no gradient.
        self.backbone.embeddings.mask_token.requires_grad_(False)
        self.head = nn.Linear(2 * config.width, config.embedding)

    def forward(self, crops: Tensor) -> Tensor:
        hidden = self.backbone(crops * 4 - 2).last_hidden_state
        pooled = torch.cat([hidden[:, 0], hidden[:, 1:].mean(1)], 1)
        return F.normalize(self.head(pooled), dim=1)


class PocketIdentity:
    """`pipeline.parts.IdentityEncoder` on the packaged weights."""

    def __init__(self, folder: Path = WEIGHTS, *, batch: int = 128, device: str = "cpu") -> None:
        config = IdentityModelConfig.model_validate(read_settings("identity", folder)["model"])
        self.net = IdentityNet(config)
        load_weights("identity", self.net, folder)
        self.net.eval().to(device)
        self.fingerprint = fingerprint("identity", folder)
        self._batch, self._device = batch, device

    def embed(self, images: Sequence[Image], masks: Sequence[Mask]) -> Vectors:
        """(B, D), unit length; an empty mask is embedded as a white crop."""
        crops = crops_of(images, masks, self.net.config.size)
        with torch.inference_mode():
            parts = [self.net(c.to(self._device)).cpu() for c in crops.split(self._batch)]
        return torch.cat(parts).numpy()
