"""Between pictures and normalised latents."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


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

    def __init__(self, autoencoder: nn.Module) -> None:
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
