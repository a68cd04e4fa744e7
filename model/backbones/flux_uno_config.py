"""Settings of the FLUX.1 + UNO backbone. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

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
