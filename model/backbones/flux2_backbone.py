"""FLUX.2 Klein's model: references as further tokens with a time axis of their own.

Source of the semantics: diffusers' Flux2KleinPipeline (Apache-2.0), which the tests compare with.
Letters: B images, T text tokens, R references with n_r tokens each, N target tokens, C channels of
a packed latent token, H x W pixels, h x w latents of c channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from focusdpo.model.backbone import FeatureConfig, Grid, Prediction, Prompts, References
from focusdpo.model.backbones.flux import FluxBackbone, SamplingConfig
from focusdpo.model.features import capture_features, unwrap
from focusdpo.model.tokens import PATCH

REFERENCE_TIME = 10
"""References stand at times 10, 20, ...; the target at 0."""
_DOUBLE_TARGETS = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
    "ff.linear_in",
    "ff.linear_out",
)


class Flux2Codec(nn.Module):
    """AutoencoderKLFlux2: the posterior's mode, normalised per channel of a 2 x 2 patch by the
    running statistics of its batch norm."""

    autoencoder: Any

    def __init__(self, autoencoder: nn.Module) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def encode_latents(self, images_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, c, h, w), float32."""
        weight = next(self.autoencoder.parameters())
        mode = self.autoencoder.encode(images_BCHW.to(weight.dtype)).latent_dist.mode()
        mean, std = self._statistics()
        return F.pixel_shuffle((F.pixel_unshuffle(mode.float(), PATCH) - mean) / std, PATCH)

    def decode_latents(self, latents_Bchw: Tensor) -> Tensor:
        """(B, c, h, w) -> (B, 3, H, W) in [-1, 1], float32."""
        weight = next(self.autoencoder.parameters())
        mean, std = self._statistics()
        latents = F.pixel_shuffle(F.pixel_unshuffle(latents_Bchw, PATCH) * std + mean, PATCH)
        pictures: Tensor = self.autoencoder.decode(latents.to(weight.dtype)).sample
        return pictures.float()

    def _statistics(self) -> tuple[Tensor, Tensor]:
        norm = self.autoencoder.bn
        variance = norm.running_var.float() + self.autoencoder.config.batch_norm_eps
        return norm.running_mean.float().view(1, -1, 1, 1), variance.sqrt().view(1, -1, 1, 1)


class Flux2KleinBackbone(FluxBackbone):
    """Fits the `Backbone` protocol with diffusers' Flux2Transformer2DModel.

    `inpaint` is masked sampling. Flux2KleinInpaintPipeline also shows the picture itself as the
    first reference: that would tell the model the very subject that a disruption takes away."""

    def __init__(
        self,
        transformer: nn.Module,
        autoencoder: nn.Module,
        encode_prompts: Callable[[Sequence[str]], Prompts],
        scheduler: Any,
        *,
        image_size: tuple[int, int],
        reference_size: tuple[int, int],
        default_blocks: tuple[str, ...],
        token_pixels: int,
        sampling: SamplingConfig,
        fingerprint: str,
    ) -> None:
        super().__init__(
            transformer,
            Flux2Codec(autoencoder),
            encode_prompts,
            image_size=image_size,
            reference_size=reference_size,
            default_blocks=default_blocks,
            token_pixels=token_pixels,
            sampling=sampling,
        )
        self.fingerprint = fingerprint
        self.lora_targets = lora_targets(len(unwrap(transformer).single_transformer_blocks))
        self.dtype = next(transformer.parameters()).dtype
        self._scheduler = scheduler

    def predict(
        self,
        noisy_BNC: Tensor,
        sigma_B: Tensor,
        prompts: Prompts,
        references: References,
        capture: FeatureConfig | None = None,
    ) -> Prediction:
        """Velocity for noisy latents, float32; with `capture`, features from the same pass."""
        count = noisy_BNC.shape[1]
        tokens = torch.cat([noisy_BNC, *references.tokens], 1)
        core = unwrap(self.transformer)
        with capture_features(core, capture, self.default_blocks, tokens.shape[1]) as features:
            output = self.transformer(
                hidden_states=tokens.to(self.dtype),
                encoder_hidden_states=prompts.embeds_BTD.to(self.dtype),
                timestep=sigma_B,
                img_ids=image_ids(self.grid, references.grids).to(tokens.device),
                txt_ids=text_ids(prompts.embeds_BTD.shape[1]).to(tokens.device),
                guidance=None,
                return_dict=False,
            )[0]
        parts = [f.split([count, *(t.shape[1] for t in references.tokens)], 1) for f in features]
        return Prediction(
            output_BNC=output[:, :count].float(),
            target_features=tuple(part[0] for part in parts),
            reference_features=tuple(tuple(part[1:]) for part in parts),
        )

    def sigmas(self, strength: float) -> Tensor:
        """Noise levels of the checkpoint's schedule for this image size, down to 0; with a strength
        below 1 its last steps alone, as many as Flux2KleinInpaintPipeline takes."""
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        steps = self.sampling.steps
        self._scheduler.set_timesteps(
            sigmas=np.linspace(1.0, 1 / steps, steps),
            mu=compute_empirical_mu(self.grid[0] * self.grid[1], steps),
        )
        skipped = int(max(steps - min(steps * strength, steps), 0))
        levels: Tensor = self._scheduler.sigmas[skipped:]
        return levels

    @torch.no_grad()
    def _sample(
        self,
        latents: Tensor,
        sigmas: Tensor,
        prompts: Sequence[str],
        references: References,
        after_step: Callable[[Tensor, Tensor], Tensor] = lambda latents, sigma: latents,
    ) -> Tensor:
        """Euler steps; guidance leaves out the prompt alone, not the references."""
        scale = self.sampling.guidance
        given = self.encode_prompts(prompts)
        empty = self.encode_prompts([""] * len(prompts)) if scale > 1 else given
        for sigma, following in pairwise(sigmas):
            level = sigma.expand(len(latents)).to(latents.device)
            velocity = self.predict(latents, level, given, references).output_BNC
            if scale > 1:
                free = self.predict(latents, level, empty, references).output_BNC
                velocity = free + scale * (velocity - free)
            latents = after_step(latents + (following - sigma) * velocity, following)
        return latents


def lora_targets(num_single: int) -> tuple[str, ...]:
    """Attention and feed-forward layers. A single block's output is named in full: in the double
    blocks the same suffix is a list of modules."""
    singles = (f"single_transformer_blocks.{i}.attn.to_out" for i in range(num_single))
    return (*_DOUBLE_TARGETS, "to_qkv_mlp_proj", *singles)


def middle_blocks(num_double: int) -> tuple[str, ...]:
    """The middle third of the double blocks, at least one."""
    first = num_double // 3
    return tuple(f"double.{i}" for i in range(first, max(first + 1, 2 * num_double // 3)))


@lru_cache(maxsize=32)
def text_ids(length: int) -> Tensor:
    """(T, 4): text tokens differ in the last axis."""
    return torch.cartesian_prod(*(torch.arange(n) for n in (1, 1, 1, length)))


@lru_cache(maxsize=32)
def image_ids(target: Grid, references: tuple[Grid, ...]) -> Tensor:
    """(N + sum n_r, 4) position ids (time, row, column, 0): every picture starts at row and column
    0; the target has time 0, the references 10, 20, ..."""
    parts = []
    for index, (rows, cols) in enumerate((target, *references)):
        time = torch.tensor([REFERENCE_TIME * index])
        axes = (time, torch.arange(rows), torch.arange(cols), torch.zeros(1, dtype=torch.long))
        parts.append(torch.cartesian_prod(*axes))
    return torch.cat(parts)
