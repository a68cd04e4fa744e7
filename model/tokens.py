"""Between latents and tokens. Letters: B images, C latent channels, h x w latents, N = h w / 4."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from focusdpo.model.backbone import Grid

PATCH = 2


def pack(latents_BChw: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, N, 4 C): 2 x 2 latents become a token, as in FLUX."""
    patches = latents_BChw.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH))  # b c h p w q
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(tokens_BNC: Tensor, grid: Grid) -> Tensor:
    """The inverse of `pack` for a token grid of rows x columns."""
    patches = tokens_BNC.unflatten(2, (-1, PATCH, PATCH)).unflatten(1, grid)  # b h w c p q
    return patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def mask_to_tokens(masks_BHW: Tensor, grid: Grid, threshold: float = 0.5) -> Tensor:
    """Pixel masks to {0, 1} per token, (B, N) float32: average pooling, then coverage of at least
    `threshold`. With threshold 0, any coverage counts."""
    pooled = F.adaptive_avg_pool2d(masks_BHW.float()[:, None], grid)[:, 0].flatten(1)
    return (pooled > 0).float() if threshold <= 0 else (pooled >= threshold).float()


def text_ids(length: int) -> Tensor:
    """(T, 3) zeros: text has no place."""
    return torch.zeros(length, 3)


@lru_cache(maxsize=32)
def image_ids(target: Grid, references: tuple[Grid, ...]) -> Tensor:
    """(N + sum n_r, 3) position ids (0, row, column): the target from (0, 0), each reference from
    the summed rows and columns of all before it, that is along the diagonal.

    Source: UNO's UnoPE, arXiv 2504.02160 (bytedance/UNO, uno/flux/sampling.py).
    """
    parts = []
    row0 = col0 = 0
    for rows, cols in (target, *references):
        ids = torch.zeros(rows, cols, 3)
        ids[..., 1] = torch.arange(row0, row0 + rows)[:, None]
        ids[..., 2] = torch.arange(col0, col0 + cols)
        parts.append(ids.reshape(-1, 3))
        row0, col0 = row0 + rows, col0 + cols
    return torch.cat(parts)


@runtime_checkable
class LatentCodec(Protocol):
    """Images to latents of mean 0 and standard deviation 1, and back. No noise."""

    def encode_latents(self, images_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, c, H / f, W / f)."""
        ...

    def decode_latents(self, latents_Bchw: Tensor) -> Tensor:
        """(B, c, H / f, W / f) -> (B, 3, H, W) in [-1, 1]."""
        ...

    def state_dict(self) -> dict[str, Any]: ...


class KLCodec(nn.Module):
    """diffusers' AutoencoderKL as a codec: the posterior's mode, FLUX's shift and scale."""

    autoencoder: Any

    def __init__(self, autoencoder: Any) -> None:
        """An AutoencoderKL, or what stands for one that is not loaded yet."""
        super().__init__()
        self.autoencoder = autoencoder

    def encode_latents(self, images_BCHW: Tensor) -> Tensor:
        config, weight = self.autoencoder.config, next(self.autoencoder.parameters())
        mode = self.autoencoder.encode(images_BCHW.to(weight.dtype)).latent_dist.mode()
        return (mode.float() - (config.shift_factor or 0.0)) * config.scaling_factor

    def decode_latents(self, latents_Bchw: Tensor) -> Tensor:
        config, weight = self.autoencoder.config, next(self.autoencoder.parameters())
        latents = latents_Bchw.float() / config.scaling_factor + (config.shift_factor or 0.0)
        return self.autoencoder.decode(latents.to(weight.dtype)).sample.float()
