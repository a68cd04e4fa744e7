"""Settings of the FLUX.2 Klein backbone. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from focusdpo.data_schemas.strict import StrictModel


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
        512, gt=0, description="side of the square that references are brought to, whole tokens"
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
        return self.model_dump_json(exclude={"base", "offload", "prompt_cache_mib"})
