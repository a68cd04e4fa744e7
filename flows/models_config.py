"""Which checkpoints play which role: the `models` section of a run. Imports no torch.

Each kind of part is registered once, by its settings in the module that has its `checks`,
`sources`, `fingerprint` and `build`. docs/add_a_backbone.md adds one from outside.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from focusdpo.data_schemas.registration import OfKind, Registry
from focusdpo.pipeline.adapters.captioner import ClassNameConfig
from focusdpo.pipeline.adapters.clip_scorer import ClipConfig
from focusdpo.pipeline.adapters.dino import DinoConfig, Dinov2Config
from focusdpo.pipeline.adapters.inpainters import BackboneInpainterConfig
from focusdpo.pipeline.adapters.segmenters.grounding_sam_hf import GroundingSamHfConfig

PARTS: dict[str, Registry[type[BaseModel]]] = {
    role: Registry(role, BaseModel, kinds)
    for role, kinds in {
        "backbone": {
            "flux-uno": "focusdpo.model.backbones.flux_uno:FluxUnoConfig",
            "sdxl-ip-adapter": "focusdpo.model.backbones.sdxl_ip_adapter:SdxlIpAdapterConfig",
            "flux2-klein": "focusdpo.model.backbones.flux2_klein:Flux2KleinConfig",
        },
        "inpainter": {
            "backbone": "focusdpo.pipeline.adapters.inpainters:BackboneInpainterConfig",
            "flux-fill": "focusdpo.pipeline.adapters.inpainters:FluxFillConfig",
            "sdxl-inpaint": "focusdpo.pipeline.adapters.inpainters:SdxlInpaintConfig",
        },
        "segmenter": {
            "grounding-sam-hf": "focusdpo.pipeline.adapters.segmenters.grounding_sam_hf:"
            "GroundingSamHfConfig",
            "grounding-sam": "focusdpo.pipeline.adapters.segmenters.grounding_sam:"
            "GroundingSamConfig",
        },
        "identity": {
            "dino": "focusdpo.pipeline.adapters.dino:DinoConfig",
            "dinov2": "focusdpo.pipeline.adapters.dino:Dinov2Config",
        },
        "clip": {"clip": "focusdpo.pipeline.adapters.clip_scorer:ClipConfig"},
        "captioner": {
            "class-name": "focusdpo.pipeline.adapters.captioner:ClassNameConfig",
            "vlm": "focusdpo.pipeline.adapters.captioner:VlmConfig",
        },
        "safety": {
            "image-classifier": "focusdpo.pipeline.adapters.safety_filter:ImageClassifierConfig",
        },
    }.items()
}
"""Role -> kind -> the class of its settings."""

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
    backbone: Annotated[Any, OfKind(PARTS["backbone"])] = Field(
        description="the generator that is trained"
    )
    inpainter: Annotated[Any, OfKind(PARTS["inpainter"])] = Field(
        BackboneInpainterConfig(), description="repaints subjects from words, for losers"
    )
    segmenter: Annotated[Any, OfKind(PARTS["segmenter"])] = Field(
        GroundingSamHfConfig(), description="finds instances, for the dataset"
    )
    identity: Annotated[Any, OfKind(PARTS["identity"])] = Field(
        DinoConfig(), description="tells individuals apart, for the dataset"
    )
    clip: Annotated[Any, OfKind(PARTS["clip"])] = Field(
        ClipConfig(), description="compares pictures with words"
    )
    captioner: Annotated[Any, OfKind(PARTS["captioner"])] = Field(
        ClassNameConfig(), description="what an instance is called when it is repainted"
    )
    safety: Annotated[Any, OfKind(PARTS["safety"], optional=True)] = Field(
        None, description="refuses unsafe candidates, so that no pair shows one; null: none does"
    )
    judge_segmenter: Annotated[Any, OfKind(PARTS["segmenter"])] = Field(
        GroundingSamHfConfig(detector="IDEA-Research/grounding-dino-base"),
        description="finds instances in evaluations; best not the one that made the dataset",
    )
    judge_identity: Annotated[Any, OfKind(PARTS["identity"])] = Field(
        Dinov2Config(), description="tells individuals apart in evaluations"
    )


Family = str | ModelsConfig
"""Which models do the work: an embedded suite by name, or checkpoints."""
