"""Settings of the backbones of the FLUX family, and what their checkpoints have in common. Imports
no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.strict import StrictModel

MULTIPLE = 16
"""Pixels of a token's side: the autoencoder's factor of 8 times the 2 x 2 packing."""


class FluxUnoConfig(StrictModel):
    """FLUX.1 with UNO's LoRA (arXiv 2504.02160) merged: the reference policy of a training run."""

    kind: Literal["flux-uno"] = Field("flux-uno", description="which backbone this is")
    base: str = Field(
        "black-forest-labs/FLUX.1-dev",
        description="FLUX.1 in diffusers' layout: a folder or a hub id (dev or schnell)",
    )
    uno: str | None = Field(
        "bytedance-research/UNO",
        description="UNO's dit_lora.safetensors: a file, a folder or a hub id; null: plain FLUX",
    )
    image_size: tuple[int, int] = Field(
        (512, 512), description="height and width of painted images, pixels, multiples of 16"
    )
    reference_sizes: tuple[int, ...] = Field(
        (512, 320),
        min_length=1,
        description="long side of references, pixels: with one reference, with two, ...; the last "
        "also for more (UNO: 512, then 320)",
    )
    steps: int = Field(25, ge=1, description="Euler steps of sampling")
    guidance: float = Field(
        4.0, ge=0, description="embedded guidance when sampling; a checkpoint without it has none"
    )
    train_guidance: float = Field(
        1.0, ge=0, description="embedded guidance in training passes (UNO trains with 1)"
    )
    shift_tokens: int = Field(
        0,
        ge=0,
        description="image tokens that the schedule's shift is computed for; 0: those there are, "
        "as diffusers does. UNO's released sampler passes a wrong number, 16 at 512 x 512",
    )
    strength: float = Field(
        1.0, gt=0, le=1, description="share of the steps that a repaint goes through"
    )
    max_text_tokens: int = Field(
        512, ge=1, le=512, description="T5 tokens of a prompt, padded (schnell was made with 256)"
    )
    dtype: Literal["bf16", "fp32"] = Field(
        "bf16", description="of the transformer and the text encoders"
    )
    vae_dtype: Literal["bf16", "fp32"] = Field(
        "fp32", description="of the autoencoder; UNO encodes and decodes in float32"
    )
    quantise: Literal["none", "8bit", "4bit"] = Field(
        "none",
        description="bitsandbytes weights of the transformer, after UNO was merged (QLoRA): needs "
        "a GPU, and room for the merged weights (24 GB) in the temporary folder",
    )
    offload: bool = Field(
        False,
        description="keep text encoders and autoencoder on the CPU, and bring them to the device "
        "only to encode or decode",
    )
    prompt_cache_mib: int = Field(
        2048, ge=0, description="prompt embeddings kept in main memory (4 MiB each in bf16)"
    )
    prompt_cache: str | None = Field(
        None, description="folder that also keeps prompt embeddings from run to run"
    )
    blocks: tuple[str, ...] = Field(
        (),
        description='blocks that token features come from, e.g. "double.6", where training names '
        "none; empty: the middle third of the double blocks",
    )

    @field_validator("image_size", "reference_sizes")
    @classmethod
    def _whole_tokens(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if any(size <= 0 or size % MULTIPLE for size in sizes):
            raise ValueError(f"{list(sizes)}: sizes are positive multiples of {MULTIPLE} pixels")
        return sizes

    def reference_side(self, count: int) -> int:
        """Long side in pixels of each of `count` references."""
        return self.reference_sizes[min(max(count, 1), len(self.reference_sizes)) - 1]

    def result_settings(self) -> str:
        """Those fields that change what is painted or learned, as JSON."""
        places = {"base", "uno", "offload", "prompt_cache", "prompt_cache_mib"}
        return self.model_dump_json(exclude=places)


class Flux2KleinConfig(StrictModel):
    """FLUX.2 Klein: one transformer that takes a list of references as it is; the reference policy
    of a training run is the checkpoint itself."""

    kind: Literal["flux2-klein"] = Field("flux2-klein", description="which backbone this is")
    base: str = Field(
        "black-forest-labs/FLUX.2-klein-base-4B",
        description="a Flux2KleinPipeline in diffusers' layout: a folder or a hub id. Its authors "
        "advise the base checkpoints for training; FLUX.2-klein-4B is distilled to 4 steps",
    )
    image_size: tuple[int, int] = Field(
        (512, 512), description="height and width of painted images, pixels, whole tokens (16)"
    )
    reference_size: int = Field(
        512, gt=0, description="long side that references are brought to, whole tokens"
    )
    steps: int | None = Field(
        None, ge=1, description="Euler steps; null: 4 for a distilled checkpoint, 50 for a base one"
    )
    guidance: float = Field(
        4.0,
        ge=1,
        description="scale on (prompt) - (empty prompt), both with references; distilled "
        "checkpoints go without",
    )
    strength: float = Field(
        1.0, gt=0, le=1, description="share of the steps that a repaint goes through"
    )
    text_tokens: int = Field(
        512,
        ge=16,
        description="tokens of a prompt with its chat template, padded; the model attends to the "
        "padding too, so fewer change what it paints",
    )
    text_layers: tuple[int, ...] = Field(
        (9, 18, 27), min_length=1, description="layers of the text encoder that are read"
    )
    dtype: Literal["bf16", "fp32"] = Field(
        "bf16", description="of the transformer and the text encoder"
    )
    vae_dtype: Literal["bf16", "fp32"] = Field("fp32", description="of the autoencoder")
    quantise: Literal["none", "8bit", "4bit"] = Field(
        "none", description="bitsandbytes weights of the transformer (QLoRA): needs a GPU"
    )
    offload: bool = Field(
        False,
        description="the text encoder waits on the CPU and comes to the device only to encode",
    )
    prompt_cache_mib: int = Field(
        1024, ge=0, description="prompt embeddings kept in main memory (7.5 MiB each for 4B)"
    )
    blocks: tuple[str, ...] = Field(
        (),
        description='blocks that token features come from, e.g. "double.2", where training names '
        "none; empty: the middle third of the double blocks",
    )

    @field_validator("image_size")
    @classmethod
    def _positive(cls, size: tuple[int, int]) -> tuple[int, int]:
        if min(size) <= 0:
            raise ValueError(f"{list(size)}: height and width are positive")
        return size

    def result_settings(self) -> str:
        """Those fields that change what is painted or learned, as JSON."""
        plain = {"quantise"} if self.quantise == "none" else set()
        return self.model_dump_json(exclude=plain | {"base", "offload", "prompt_cache_mib"})


def check_quantise(quantise: str) -> str:
    """A row of `focusdpo doctor`. UserError without bitsandbytes or a GPU."""
    import importlib.util

    field = f"models.backbone.quantise: {quantise}"
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"{field} needs bitsandbytes: pip install 'bitsandbytes>=0.45', or set it to none"
        )
    import torch

    if not torch.cuda.is_available():
        raise UserError(f"{field} needs a GPU, and torch sees none; set it to none")
    return f"{quantise} by bitsandbytes"


def middle_blocks(num_double: int) -> tuple[str, ...]:
    """The middle third of the double blocks, at least one: a reference's parts are best told apart
    there."""
    first = num_double // 3
    return tuple(f"double.{i}" for i in range(first, max(first + 1, 2 * num_double // 3)))


def check_blocks(blocks: Iterable[str], transformer: Mapping[str, Any]) -> None:
    """UserError for a block that a transformer with this config.json does not have."""
    counts = {"double": transformer["num_layers"], "single": transformer["num_single_layers"]}
    for block in blocks:
        kind, _, index = block.partition(".")
        if not index.isdigit() or int(index) >= counts.get(kind, 0):
            raise UserError(
                f"models.backbone.blocks: no block {block!r} in this model; it has double.0 to "
                f"double.{counts['double'] - 1} and single.0 to single.{counts['single'] - 1}"
            )


def check_sides(sides: Mapping[str, Iterable[int]], vae: Mapping[str, Any]) -> int:
    """Pixels of a token's side with this autoencoder's config.json. UserError that names the
    setting whose sides are no whole tokens."""
    pixels: int = 2 ** len(vae["block_out_channels"])
    for name, lengths in sides.items():
        for length in lengths:
            if length % pixels:
                raise UserError(
                    f"models.backbone.{name}: {length} is no multiple of {pixels} pixels, a token "
                    "of this model"
                )
    return pixels
