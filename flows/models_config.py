"""Which checkpoints play which role: the `models` section of a run. Imports no torch.

A new backbone or part costs its module, its config, and a line in a union and in `MODULES`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from focusdpo.model.backbones.flux_config import Flux2KleinConfig, FluxUnoConfig
from focusdpo.model.backbones.sdxl_config import SdxlIpAdapterConfig
from focusdpo.pipeline.adapters.captioner import ClassNameConfig, VlmConfig
from focusdpo.pipeline.adapters.clip_scorer import ClipConfig
from focusdpo.pipeline.adapters.dino import DinoConfig, Dinov2Config
from focusdpo.pipeline.adapters.inpainters import (
    BackboneInpainterConfig,
    FluxFillConfig,
    SdxlInpaintConfig,
)
from focusdpo.pipeline.adapters.segmenters.grounding_sam import GroundingSamConfig
from focusdpo.pipeline.adapters.segmenters.grounding_sam_hf import GroundingSamHfConfig

BackboneConfig = Annotated[
    FluxUnoConfig | SdxlIpAdapterConfig | Flux2KleinConfig, Field(discriminator="kind")
]
InpainterConfig = Annotated[
    BackboneInpainterConfig | FluxFillConfig | SdxlInpaintConfig, Field(discriminator="kind")
]
SegmenterConfig = Annotated[GroundingSamHfConfig | GroundingSamConfig, Field(discriminator="kind")]
IdentityConfig = Annotated[DinoConfig | Dinov2Config, Field(discriminator="kind")]
CaptionerConfig = Annotated[ClassNameConfig | VlmConfig, Field(discriminator="kind")]

MODULES = {
    "FluxUnoConfig": "focusdpo.model.backbones.flux_uno",
    "SdxlIpAdapterConfig": "focusdpo.model.backbones.sdxl_ip_adapter",
    "Flux2KleinConfig": "focusdpo.model.backbones.flux2_klein",
    "BackboneInpainterConfig": "focusdpo.pipeline.adapters.inpainters",
    "FluxFillConfig": "focusdpo.pipeline.adapters.inpainters",
    "SdxlInpaintConfig": "focusdpo.pipeline.adapters.inpainters",
    "GroundingSamHfConfig": "focusdpo.pipeline.adapters.segmenters.grounding_sam_hf",
    "GroundingSamConfig": "focusdpo.pipeline.adapters.segmenters.grounding_sam",
    "DinoConfig": "focusdpo.pipeline.adapters.dino",
    "Dinov2Config": "focusdpo.pipeline.adapters.dino",
    "ClipConfig": "focusdpo.pipeline.adapters.clip_scorer",
    "ClassNameConfig": "focusdpo.pipeline.adapters.captioner",
    "VlmConfig": "focusdpo.pipeline.adapters.captioner",
}
"""Config -> the module with its `checks`, `sources`, `fingerprint` and `build`."""

BACKGROUNDS = (
    "a wooden table",
    "a sandy beach",
    "a city street",
    "a green meadow",
    "a snowy path",
    "a stone floor",
    "a red carpet",
    "a kitchen counter",
    "a mossy rock",
    "a rooftop at sunset",
)


class ModelsConfig(BaseModel):
    """Checkpoints and their settings, a section per role."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str = Field(
        "auto", description="where models run: cpu, cuda, cuda:1; auto: the first GPU, else cpu"
    )
    batch: int = Field(4, ge=1, description="images that the backbone paints at once")
    backgrounds: tuple[str, ...] = Field(
        BACKGROUNDS, min_length=1, description="places that prompts name, after 'on'"
    )
    backbone: BackboneConfig = Field(description="the generator that is trained")
    inpainter: InpainterConfig = Field(
        BackboneInpainterConfig(), description="repaints subjects from words, for losers"
    )
    segmenter: SegmenterConfig = Field(
        GroundingSamHfConfig(), description="finds instances, for the dataset"
    )
    identity: IdentityConfig = Field(
        DinoConfig(), description="tells individuals apart, for the dataset"
    )
    clip: ClipConfig = Field(ClipConfig(), description="compares pictures with words")
    captioner: CaptionerConfig = Field(
        ClassNameConfig(), description="what an instance is called when it is repainted"
    )
    judge_segmenter: SegmenterConfig = Field(
        GroundingSamHfConfig(detector="IDEA-Research/grounding-dino-base"),
        description="finds instances in evaluations; best not the one that made the dataset",
    )
    judge_identity: IdentityConfig = Field(
        Dinov2Config(), description="tells individuals apart in evaluations"
    )


Family = str | ModelsConfig
"""Which models do the work: an embedded suite by name, or checkpoints."""
