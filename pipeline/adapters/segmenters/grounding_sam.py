"""Grounding DINO and SAM from the packages groundingdino-py and segment-anything, with their own
checkpoint files.

groundingdino-py is an optional extra: pip install "focusdpo[groundingdino]". `grounding_sam_hf`
does the same with transformers' classes and needs no extra.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.strict import StrictModel
from focusdpo.pipeline.adapters.segmenters.detections import DetectionConfig, tokenizer_files
from focusdpo.store.checkpoints import digest_files, locate, read_json

if TYPE_CHECKING:
    from focusdpo.pipeline.adapters.segmenters.grounded_segmenter import GroundedSegmenter

TEXT_FILES = ["config.json", "tokenizer*.json", "vocab.txt", "special_tokens_map.json"]
_ROLE = "models.segmenter"
TAKES_POINTS = True
"""What `build` gives is a `parts.PointSegmenter` too. Said here, where nothing is loaded."""


class GroundingSamConfig(StrictModel):
    """The original checkpoints. Their architecture is read off the shapes of their tensors."""

    kind: Literal["grounding-sam"] = "grounding-sam"
    detector: str = Field(
        "ShilongLiu/GroundingDINO",
        description="folder, hub id or file of Grounding DINO's checkpoint (.pth or .safetensors)",
    )
    detector_file: str = Field(
        "groundingdino_swint_ogc.pth",
        description="which file of that folder; groundingdino_swinb_cogcoor.pth is the larger one",
    )
    text_encoder: str = Field(
        "google-bert/bert-base-uncased",
        description="folder or hub id of BERT's config.json and tokenizer; its weights are not"
        " read: they lie in Grounding DINO's checkpoint",
    )
    sam: str = Field(
        "ybelkada/segment-anything",
        description="folder, hub id or file of SAM's checkpoint (.pth or .safetensors)",
    )
    sam_file: str = Field(
        "checkpoints/sam_vit_h_4b8939.pth", description="which file of that folder"
    )
    sam_type: Literal["vit_b", "vit_l", "vit_h"] | None = Field(
        None, description="the SAM that the file must hold; none: whatever it holds"
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


def sources(config: GroundingSamConfig) -> list[tuple[str, str, list[str] | None]]:
    """(field, source, file patterns) of what has to be downloaded."""
    return [
        (f"{_ROLE}.detector", config.detector, [config.detector_file]),
        (f"{_ROLE}.text_encoder", config.text_encoder, TEXT_FILES),
        (f"{_ROLE}.sam", config.sam, [config.sam_file]),
    ]


def checks(config: GroundingSamConfig) -> dict[str, Callable[[], str]]:
    """Rows of the health table; each says what was found or raises UserError."""

    def package() -> str:
        from importlib.metadata import version

        from focusdpo.pipeline.adapters.segmenters import original_grounding_dino as dino

        dino.package()
        return f"groundingdino-py {version('groundingdino-py')}"

    def text_encoder() -> str:
        return f"BERT's settings and tokenizer in {text_folder(config)}"

    def detector() -> str:
        from focusdpo.pipeline.adapters.segmenters import original_grounding_dino as dino

        file = detector_path(config)
        sizes = dino.check_grounding_dino(file, text_folder(config), f"{_ROLE}.detector")
        return f"{file.name}: {sizes.described()}"

    def sam() -> str:
        from focusdpo.pipeline.adapters.segmenters.original_sam import check_sam

        file = sam_path(config)
        return f"{file.name}: {check_sam(file, f'{_ROLE}.sam', config.sam_type).described()}"

    return {
        "segmenter: package groundingdino": package,
        "segmenter: text encoder": text_encoder,
        "segmenter: Grounding DINO": detector,
        "segmenter: SAM": sam,
    }


def fingerprint(config: GroundingSamConfig) -> str:
    """Hash of the weights, the tokenizer and all settings that change a result."""
    folder = text_folder(config)
    text = [folder / "config.json", *tokenizer_files(folder, f"{_ROLE}.text_encoder")]
    settings = config.model_dump_json(include={"kind", "detection", "dtype"})
    return digest_files([detector_path(config), sam_path(config), *text], settings)


def build(config: GroundingSamConfig, device: str) -> GroundedSegmenter:
    """Both models, loaded, frozen, on `device`.

    Files .pth are read with torch.load(weights_only=True), which runs no code of the file.
    UserError for a missing package and for files that hold anything but these models.
    """
    import torch

    from focusdpo.pipeline.adapters.segmenters import original_grounding_dino as dino
    from focusdpo.pipeline.adapters.segmenters import original_sam as sam
    from focusdpo.pipeline.adapters.segmenters.grounded_segmenter import GroundedSegmenter

    detector = dino.load_grounding_dino(
        detector_path(config), text_folder(config), f"{_ROLE}.detector"
    )
    mask_model = sam.load_sam(sam_path(config), f"{_ROLE}.sam", config.sam_type)
    return GroundedSegmenter(
        dino.PackageDetector(detector.to(device)),
        sam.PackageSam(mask_model.to(device)),
        config.detection,
        fingerprint=fingerprint(config),
        device=device,
        dtype=getattr(torch, config.dtype),
        batch=config.batch,
        mask_batch=config.mask_batch,
    )


def detector_path(config: GroundingSamConfig) -> Path:
    """Grounding DINO's file."""
    return _file(config.detector, config.detector_file, f"{_ROLE}.detector")


def sam_path(config: GroundingSamConfig) -> Path:
    """SAM's file."""
    return _file(config.sam, config.sam_file, f"{_ROLE}.sam")


def text_folder(config: GroundingSamConfig) -> Path:
    """The folder of BERT's config.json and tokenizer. UserError when they are not there."""
    field = f"{_ROLE}.text_encoder"
    folder = locate(config.text_encoder, field)
    kind = read_json(folder / "config.json", field).get("model_type")
    if kind != "bert":
        raise UserError(f"{field}: {folder} holds a model of type {kind!r}, expected 'bert'")
    tokenizer_files(folder, field)
    return folder


def _file(source: str, name: str, field: str) -> Path:
    """A checkpoint file: the source itself, or its file `name`."""
    path = locate(source, field)
    if path.is_file():
        return path
    if (path / name).is_file():
        return path / name
    raise UserError(
        f"{field}: {path} holds no {name}; download it with `focusdpo fetch` and this preset, or "
        f"set {field}_file to the file you have"
    )
