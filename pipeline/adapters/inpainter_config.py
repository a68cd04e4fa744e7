"""Settings of the inpainters of the disrupt stage. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from focusdpo.data_schemas.strict import StrictModel


class BackboneInpainterConfig(StrictModel):
    """Masked repainting by the generator's own weights: nothing more to download, and what is
    repainted has the generator's own style."""

    kind: Literal["backbone"] = Field("backbone", description="which inpainter this is")


class FluxFillConfig(StrictModel):
    """FLUX.1 Fill: it repaints from words; swaps, which need references, go to the backbone."""

    kind: Literal["flux-fill"] = Field("flux-fill", description="which inpainter this is")
    source: str = Field(
        "black-forest-labs/FLUX.1-Fill-dev",
        description="a FluxFillPipeline in diffusers' layout: a folder or a hub id",
    )
    steps: int = Field(28, ge=1, description="Euler steps")
    guidance: float = Field(30.0, ge=0, description="embedded guidance (its authors: 30)")
    text_tokens: int = Field(512, ge=1, le=512, description="T5 tokens of a prompt, padded")
    dtype: Literal["bf16", "fp32"] = Field("bf16", description="of all weights")
    batch: int = Field(2, ge=1, description="images in one pass; none depends on it")
    offload: bool = Field(
        False, description="models wait on the CPU and come to a GPU one after another"
    )

    def result_settings(self) -> str:
        """Those fields that change what is painted, as JSON."""
        return self.model_dump_json(exclude={"source", "batch", "offload"})


class SdxlInpaintConfig(StrictModel):
    """SDXL inpainting: a UNet made for it (9 channels), or plain SDXL (4 channels), whose latents
    outside the mask are put back after each step. Swaps go to the backbone."""

    kind: Literal["sdxl-inpaint"] = Field("sdxl-inpaint", description="which inpainter this is")
    source: str = Field(
        "diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
        description="an SDXL pipeline in diffusers' layout: a folder or a hub id",
    )
    variant: str | None = Field(
        "fp16",
        description="which of the files: fp16 reads *.fp16.safetensors; null: the plain names",
    )
    steps: int = Field(30, ge=1, description="steps of the whole schedule")
    strength: float = Field(
        0.99, gt=0, le=1, description="share of the steps that are taken (its authors: below 1)"
    )
    guidance: float = Field(8.0, ge=1, description="classifier-free guidance; 1: none")
    negative_prompt: str | None = Field(None, description="what guidance leads away from")
    dtype: Literal["fp16", "bf16", "fp32"] = Field("fp16", description="of all weights")
    batch: int = Field(4, ge=1, description="images in one pass; none depends on it")
    offload: bool = Field(
        False, description="models wait on the CPU and come to a GPU one after another"
    )

    def result_settings(self) -> str:
        """Those fields that change what is painted, as JSON."""
        return self.model_dump_json(exclude={"source", "variant", "batch", "offload"})


FillConfig = FluxFillConfig | SdxlInpaintConfig
InpainterConfig = BackboneInpainterConfig | FillConfig
