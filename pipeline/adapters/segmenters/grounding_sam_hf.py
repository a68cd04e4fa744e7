"""Grounding DINO and SAM or SAM 2 through transformers' classes, from folders that
`save_pretrained` wrote (safetensors)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.strict import StrictModel
from focusdpo.pipeline.adapters.segmenters.detections import DetectionConfig, tokenizer_files
from focusdpo.store.checkpoints import (
    digest_files,
    locate,
    read_json,
    require_class,
    weight_files,
)

if TYPE_CHECKING:
    from focusdpo.pipeline.adapters.segmenters.grounded_segmenter import GroundedSegmenter

DETECTOR_CLASS = "GroundingDinoForObjectDetection"
SAM_CLASSES = ("SamModel", "Sam2Model", "Sam2VideoModel")
"""SAM 2's published folders name the video model, whose image part is the same."""
FILES = ["*.json", "*.safetensors", "*.txt"]
TAKES_POINTS = True
"""What `build` gives is a `parts.PointSegmenter` too. Said here, where nothing is loaded."""
_DETECTOR, _SAM = "models.segmenter.detector", "models.segmenter.sam"


class GroundingSamHfConfig(StrictModel):
    """Folders or hub ids of the two models."""

    kind: Literal["grounding-sam-hf"] = "grounding-sam-hf"
    detector: str = Field(
        "IDEA-Research/grounding-dino-tiny",
        description="folder or hub id of Grounding DINO with its tokenizer; -base is the larger",
    )
    sam: str = Field(
        "facebook/sam-vit-huge", description="folder or hub id of SAM or SAM 2 (sam2.1-hiera-large)"
    )
    detection: DetectionConfig = Field(
        DetectionConfig(), description="which boxes become detections"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="bfloat16: the detector and SAM's image encoder run under autocast",
    )
    batch: int = Field(8, ge=1, description="images in one pass of the detector")
    mask_batch: int = Field(2, ge=1, description="images in one pass of SAM's image encoder")


def sources(config: GroundingSamHfConfig) -> list[tuple[str, str, list[str] | None]]:
    """(field, source, file patterns) of what has to be downloaded."""
    return [(_DETECTOR, config.detector, FILES), (_SAM, config.sam, FILES)]


def checks(config: GroundingSamHfConfig) -> dict[str, Callable[[], str]]:
    """Rows of the health table; each says what was found or raises UserError."""

    from focusdpo.pipeline.adapters.segmenters import transformers_sam as nets

    def detector() -> str:
        folder = detector_folder(config)
        return f"{DETECTOR_CLASS}, {nets.look_at_detector(folder, _DETECTOR)} tensors, in {folder}"

    def sam() -> str:
        folder = locate(config.sam, _SAM)
        name = require_class(folder, SAM_CLASSES, _SAM)
        return f"{name}, {nets.look_at_sam(folder, _SAM)} tensors, in {folder}"

    return {"segmenter: Grounding DINO": detector, "segmenter: SAM": sam}


def fingerprint(config: GroundingSamHfConfig) -> str:
    """Hash of the weights, the tokenizer and all settings that change a result."""
    detector, sam = detector_folder(config), locate(config.sam, _SAM)
    files = [
        detector / "config.json",
        *weight_files(detector, _DETECTOR),
        *tokenizer_files(detector, _DETECTOR),
        sam / "config.json",
        *weight_files(sam, _SAM),
    ]
    return digest_files(files, config.model_dump_json(include={"kind", "detection", "dtype"}))


def build(config: GroundingSamHfConfig, device: str) -> GroundedSegmenter:
    """Both models, loaded, frozen, on `device`. UserError for folders that do not hold just these
    models."""
    import torch

    from focusdpo.pipeline.adapters.segmenters import transformers_sam as nets
    from focusdpo.pipeline.adapters.segmenters.grounded_segmenter import GroundedSegmenter

    for check in checks(config).values():
        check()
    detector = nets.load_detector(detector_folder(config), _DETECTOR)
    return GroundedSegmenter(
        nets.TransformersDetector(*detector, device=device),
        nets.load_sam(locate(config.sam, _SAM), _SAM, device),
        config.detection,
        fingerprint=fingerprint(config),
        device=device,
        dtype=getattr(torch, config.dtype),
        batch=config.batch,
        mask_batch=config.mask_batch,
    )


def detector_folder(config: GroundingSamHfConfig) -> Path:
    """Grounding DINO's folder. UserError when it holds another model or no tokenizer."""
    folder = locate(config.detector, _DETECTOR)
    require_class(folder, DETECTOR_CLASS, _DETECTOR)
    text = read_json(folder / "config.json", _DETECTOR).get("text_config") or {}
    if text.get("model_type", "bert") != "bert":
        raise UserError(
            f"{_DETECTOR}: {folder} reads text with {text['model_type']!r}, expected 'bert'"
        )
    tokenizer_files(folder, _DETECTOR)
    return folder
