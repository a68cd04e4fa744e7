"""The pocket generator: a small FluxTransformer2DModel with references, and its prompt encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.backbone import Prompts
from focusdpo.model.backbones.flux import FluxBackbone, SamplingConfig
from focusdpo.model.codec import LatentCodec
from focusdpo.pocket.autoencoder import load_autoencoder
from focusdpo.pocket.recipes.common import WEIGHTS, load_weights
from focusdpo.pocket.vocabulary import PromptEncoder, tokenize, words
from focusdpo.pocket.world import SCENE_SIZE

REFERENCE_SIZE = 32
TEXT_WIDTH = 96
ARCHITECTURE: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 1,
    "num_single_layers": 4,
    "attention_head_dim": 48,
    "num_attention_heads": 4,
    "joint_attention_dim": TEXT_WIDTH,
    "pooled_projection_dim": TEXT_WIDTH,
    "guidance_embeds": False,
    "axes_dims_rope": [16, 16, 16],
}
DEFAULT_BLOCKS = ("single.0", "single.1")


def build_generator(config: dict[str, Any] | None = None) -> nn.ModuleDict:
    """{transformer, prompts} with random weights."""
    from diffusers import FluxTransformer2DModel

    transformer = FluxTransformer2DModel(**(config or ARCHITECTURE))
    width = int(transformer.config.joint_attention_dim)
    return nn.ModuleDict(
        {"transformer": transformer, "prompts": PromptEncoder(len(words()), width)}
    )


def load_generator(
    folder: Path | None = None, sampling: SamplingConfig | None = None
) -> FluxBackbone:
    """The trained generator as a backbone, float32, on the CPU, in evaluation mode.

    Raises UserError where the weights are absent or made for another vocabulary.
    """
    stem = (folder or WEIGHTS) / "generator"
    if not stem.with_suffix(".safetensors").exists():
        raise UserError(
            f"{stem}.safetensors: no pocket generator here; train one with"
            " `focusdpo pocket train generator`"
        )
    state, config = load_weights(stem)
    if config["words"] != list(words()):
        raise UserError(
            f"{stem}.json: made for another vocabulary; train it again with"
            " `focusdpo pocket train generator`"
        )
    model = build_generator(config["transformer"])
    model.load_state_dict(state)
    return as_backbone(model, load_autoencoder(folder), sampling)


def as_backbone(
    model: nn.ModuleDict, autoencoder: LatentCodec, sampling: SamplingConfig | None = None
) -> FluxBackbone:
    """A backbone of what `build_generator` built."""
    model.eval().requires_grad_(False)
    encoder = model["prompts"]

    def encode(prompts: Sequence[str]) -> Prompts:
        embeds, pooled = encoder(tokenize(prompts).to(next(encoder.parameters()).device))
        return Prompts(embeds, pooled)

    return FluxBackbone(
        model["transformer"],
        autoencoder,
        encode,
        image_size=(SCENE_SIZE, SCENE_SIZE),
        reference_size=(REFERENCE_SIZE, REFERENCE_SIZE),
        default_blocks=DEFAULT_BLOCKS,
        sampling=sampling,
    )
