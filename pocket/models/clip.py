"""The pocket CLIP: open_clip's two towers in a small config, with the pocket world's words.

CLIP (arXiv 2103.00020) compares whole scenes with prompts and instance crops with "a CLASS".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from focusdpo.pipeline.parts import Image, Vectors
from focusdpo.pocket.models.vocabulary import LENGTH, tokenize, words
from focusdpo.pocket.weightfiles import WEIGHTS, fingerprint, load_weights, read_settings


class ClipModelConfig(BaseModel):
    """Shape of the two towers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(64, description="side of the picture in pixels", ge=16)
    tower: str = Field("regnetx_002", description="timm name of the image tower")
    text_width: int = Field(96, description="width of the text tower", ge=32)
    text_layers: int = Field(2, description="layers of the text tower", ge=1)
    embedding: int = Field(96, description="length of the common embedding", ge=2)


class ClipNet(nn.Module):
    """`open_clip.CLIP` on the pocket vocabulary."""

    def __init__(self, config: ClipModelConfig) -> None:
        super().__init__()
        from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

        self.config = config
        self.towers = CLIP(
            embed_dim=config.embedding,
            vision_cfg=CLIPVisionCfg(
                image_size=config.size,
                # A convolutional tower: it learns from far fewer pictures than a ViT.
                timm_model_name=config.tower,
                timm_pool="avg",
                timm_proj="linear",
            ),
            text_cfg=CLIPTextCfg(
                context_length=LENGTH,
                vocab_size=len(words()),
                width=config.text_width,
                heads=config.text_width // 32,
                layers=config.text_layers,
                no_causal_mask=True,
                pool_type="none",
            ),
        )

    def images(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] -> (B, D) of unit length."""
        out: Tensor = self.towers.encode_image(images * 4 - 2, normalize=True)
        return out

    def texts(self, texts: Sequence[str]) -> Tensor:
        """(B, D) of unit length: the mean over words, not one token's state, so that every class
        of a prompt counts from the first step on (pooled at one token, prompts told backgrounds
        apart and no classes)."""
        ids = tokenize(texts).to(self.towers.logit_scale.device)
        states_BTD = self.towers.encode_text(ids)
        real_BT = (ids > 0).float()
        pooled = torch.einsum("btd,bt->bd", states_BTD, real_BT)
        return F.normalize(pooled, dim=1)


class PocketClip:
    """`pipeline.parts.TextImageEncoder` on the packaged weights."""

    def __init__(self, folder: Path = WEIGHTS, *, batch: int = 64, device: str = "cpu") -> None:
        config = ClipModelConfig.model_validate(read_settings("clip", folder)["model"])
        self.net = ClipNet(config)
        load_weights("clip", self.net, folder)
        self.net.eval().to(device)
        self.fingerprint = fingerprint("clip", folder)
        self._batch, self._device = batch, device

    def embed_images(self, images: Sequence[Image]) -> Vectors:
        """(B, D), unit length: scenes or square crops of any size."""
        size, rows = self.net.config.size, []
        with torch.inference_mode():
            for start in range(0, len(images), self._batch):
                pixels = [_resized(image, size) for image in images[start : start + self._batch]]
                rows.append(self.net.images(torch.cat(pixels).to(self._device)).cpu())
        return self._stacked(rows)

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """(B, D), unit length."""
        with torch.inference_mode():
            rows = [self.net.texts(list(texts)).cpu()] if texts else []
        return self._stacked(rows)

    def _stacked(self, rows: list[Tensor]) -> Vectors:
        empty = torch.zeros(0, self.net.config.embedding)
        return torch.cat([empty, *rows]).numpy()


def _resized(image: Image, size: int) -> Tensor:
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255
    if pixels.shape[-2:] == (size, size):
        return pixels
    return F.interpolate(
        pixels, size=(size, size), mode="bilinear", align_corners=False, antialias=True
    ).clamp(0, 1)
