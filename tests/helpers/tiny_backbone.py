"""A backbone: the real transformer class with random weights, an autoencoder of block means."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from focusdpo.model.backbone import FeatureConfig, Prediction, Prompts, References

WORDS = ("a", "and", "on", "grass", "cat", "dog", "car")


def _pack(images_BCHW: Tensor) -> Tensor:
    """(B, 3, H, W) -> tokens of 8 x 8 pixels, (B, N, 12): means of 4 x 4 blocks."""
    cells = F.avg_pool2d(images_BCHW, 4)
    return F.pixel_unshuffle(cells, 2).flatten(2).transpose(1, 2)


class TinyBackbone:
    """64 x 64 pixels, 8 x 8 tokens; references 32 x 32, 4 x 4 tokens."""

    image_size = (64, 64)
    grid = (8, 8)
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "proj_mlp")

    def __init__(self, seed: int = 0) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.transformer = FluxTransformer2DModel(
                patch_size=1,
                in_channels=12,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=12,
                num_attention_heads=2,
                joint_attention_dim=16,
                pooled_projection_dim=16,
                guidance_embeds=False,
                axes_dims_rope=(4, 4, 4),
            )
            # proj_out starts at zero in diffusers: without this nothing would depend on anything.
            nn.init.normal_(self.transformer.proj_out.weight, std=0.1)
            self._words = nn.Embedding(len(WORDS), 16)
        self.transformer.eval().requires_grad_(False)
        self._words.requires_grad_(False)
        self.seed = seed

    @property
    def fingerprint(self) -> str:
        weights = [t.numpy().tobytes() for _, t in sorted(self.transformer.state_dict().items())]
        return hashlib.blake2b(b"".join(weights), digest_size=8).hexdigest()

    def encode_images(self, images_BCHW: Tensor) -> Tensor:
        return _pack(images_BCHW)

    def encode_references(self, images: Sequence[Tensor], masks: Sequence[Tensor]) -> References:
        tokens = tuple(_pack(F.avg_pool2d(image, 2)) for image in images)
        small = tuple((F.avg_pool2d(m.unsqueeze(1), 16).flatten(1) >= 0.5).float() for m in masks)
        return References(tokens, small, ((4, 4),) * len(tokens))

    def encode_prompts(self, prompts: Sequence[str]) -> Prompts:
        ids = torch.tensor([([WORDS.index(w) for w in p.split()] + [0] * 8)[:8] for p in prompts])
        embeds_BTD = self._words(ids)
        return Prompts(embeds_BTD, embeds_BTD.mean(1))

    def predict(
        self,
        noisy_BNC: Tensor,
        sigma_B: Tensor,
        prompts: Prompts,
        references: References,
        capture: FeatureConfig | None = None,
    ) -> Prediction:
        ids, corner = [_ids(self.grid, 0)], self.grid[0]
        for grid in references.grids:
            ids.append(_ids(grid, corner))
            corner += grid[0]
        caught: list[Tensor] = []
        hook = None
        if capture is not None:
            norm = self.transformer.transformer_blocks[0].attn.norm_k
            hook = norm.register_forward_hook(lambda _m, _i, out: caught.append(out.detach()))
        try:
            velocity = self.transformer(
                hidden_states=torch.cat([noisy_BNC, *references.tokens], dim=1),
                encoder_hidden_states=prompts.embeds_BTD,
                pooled_projections=prompts.pooled_BD,
                timestep=sigma_B,
                img_ids=torch.cat(ids),
                txt_ids=torch.zeros(prompts.embeds_BTD.shape[1], 3),
            ).sample[:, : noisy_BNC.shape[1]]
        finally:
            if hook is not None:
                hook.remove()
        if not caught:
            return Prediction(velocity)
        sizes = [noisy_BNC.shape[1], *(t.shape[1] for t in references.tokens)]
        target, *rest = caught[0].flatten(2).split(sizes, dim=1)
        return Prediction(velocity, (target,), (tuple(rest),))

    def decode(self, latents_BNC: Tensor) -> Tensor:
        raise NotImplementedError

    def generate(self, *args: Any, **kwargs: Any) -> Tensor:
        raise NotImplementedError

    def inpaint(self, *args: Any, **kwargs: Any) -> Tensor:
        raise NotImplementedError


def _ids(grid: tuple[int, int], corner: int) -> Tensor:
    rows, columns = torch.meshgrid(*(torch.arange(corner, corner + s) for s in grid), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1).float()
