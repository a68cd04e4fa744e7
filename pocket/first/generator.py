"""The pocket generator: a small FluxTransformer2DModel with references, and its prompt encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.backbone import Prompts, tell_prompt
from focusdpo.model.backbones.flux import FluxBackbone, SamplingConfig
from focusdpo.model.tokens import LatentCodec
from focusdpo.pocket import weightfiles
from focusdpo.pocket.crops import crop_subjects
from focusdpo.pocket.first.place import WEIGHTS
from focusdpo.pocket.first.vocabulary import LENGTH, PromptEncoder, read, tokenize, words
from focusdpo.pocket.first.world import SCENE_SIZE
from focusdpo.pocket.models.autoencoder import load_autoencoder

REFERENCE_SIZE = 32
REFERENCE_SUBJECT = 26
"""Longer side of a subject in a framed reference: about what it has in a scene of two, so that the
model has to move it and not to scale it."""
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
SAMPLING = SamplingConfig(steps=16, guidance=1.0, shift=3.0)
"""Shifted towards noise, where places, shapes and colours are settled. One pass a step, without
classifier-free guidance, as FLUX.1-dev samples."""


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
    """The trained generator as a backbone, float32, on the CPU, in evaluation mode; without
    `sampling` with the settings stored beside the weights.

    Raises UserError where weights are absent, broken or made for another vocabulary.
    """
    if sampling is None:
        settings = weightfiles.read_settings("generator", folder or WEIGHTS)
        sampling = SamplingConfig.model_validate(settings.get("sampling", SAMPLING.model_dump()))
    return as_backbone(load_model(folder), load_autoencoder(folder or WEIGHTS), sampling)


def load_model(folder: Path | None = None) -> nn.ModuleDict:
    """What `build_generator` builds, with trained weights; errors as in `load_generator`."""
    folder = folder or WEIGHTS
    settings = weightfiles.read_settings("generator", folder)
    if settings.get("words") != list(words()):
        raise UserError(
            f"{weightfiles.settings_path('generator', folder)}: made for another vocabulary; train"
            " it again with `focusdpo pocket train generator`"
        )
    model = build_generator(settings["transformer"])
    weightfiles.load_weights("generator", model, folder)
    return model


def as_backbone(
    model: nn.ModuleDict, autoencoder: LatentCodec, sampling: SamplingConfig | None = None
) -> FluxBackbone:
    """A backbone of what `build_generator` built."""
    model.eval().requires_grad_(False)
    encoder = model["prompts"]

    def encode(prompts: Sequence[str]) -> Prompts:
        for prompt in prompts:
            ids, unknown = read(prompt)
            tell_prompt("the generator", prompt, len(ids), LENGTH, unknown)
        embeds, pooled = encoder(tokenize(prompts).to(next(encoder.parameters()).device))
        return Prompts(embeds, pooled)

    return FluxBackbone(
        model["transformer"],
        autoencoder,
        encode,
        image_size=(SCENE_SIZE, SCENE_SIZE),
        reference_size=(REFERENCE_SIZE, REFERENCE_SIZE),
        default_blocks=DEFAULT_BLOCKS,
        frame=frame_references,
        sampling=sampling or SAMPLING,
    )


def frame_references(images_BCHW: Tensor, masks_BHW: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures in [-1, 1] and masks in {0, 1} of any one size -> REFERENCE_SIZE: the masked subject
    alone, on white and centred, its longer side REFERENCE_SUBJECT, wherever it stood."""
    margin = (REFERENCE_SIZE / REFERENCE_SUBJECT - 1) / 2
    both = torch.cat([images_BCHW / 2 + 0.5, torch.zeros_like(images_BCHW[:, :1])], 1)
    # Twice the size, then averaged: cropping alone would skip pixels of larger pictures.
    framed = F.avg_pool2d(crop_subjects(both, masks_BHW > 0.5, 2 * REFERENCE_SIZE, margin), 2)
    return framed[:, :3] * 2 - 1, (framed[:, 3] < 0.5).float()
