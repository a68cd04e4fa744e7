"""A real FluxBackbone of a few thousand random weights: 64 x 64 pixels, 8 x 8 tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import Tensor, nn

from focusdpo.model.backbone import Prompts
from focusdpo.model.backbones.flux import FluxBackbone

WORDS = ("<pad>", "a", "and", "on", "grass", "cat", "dog", "car")


class WordPrompts(nn.Module):
    """Up to 8 words, one vector each."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(len(WORDS), 16)

    def forward(self, prompts: Sequence[str]) -> Prompts:
        rows = [[WORDS.index(w) if w in WORDS else 0 for w in p.split()] for p in prompts]
        embeds_BTD: Tensor = self.words(torch.tensor([(row + [0] * 8)[:8] for row in rows]))
        return Prompts(embeds_BTD, embeds_BTD.mean(1))


def tiny_backbone(
    seed: int = 0, num_heads: int = 2, image_size: tuple[int, int] = (64, 64)
) -> FluxBackbone:
    """Random weights that depend on `seed` alone; `num_heads` heads of width 12."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=12,
            num_attention_heads=num_heads,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            guidance_embeds=False,
            axes_dims_rope=(4, 4, 4),
        )
        autoencoder = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 8, 8),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=64,
            scaling_factor=4.0,
            shift_factor=0.0,
            mid_block_add_attention=False,
        )
        prompts = WordPrompts()
    for module in (transformer, autoencoder, prompts):
        module.eval().requires_grad_(False)
    return FluxBackbone(
        transformer,
        autoencoder,
        prompts,
        image_size=image_size,
        reference_size=(32, 32),
        default_blocks=("double.0",),
    )
