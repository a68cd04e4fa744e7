"""A filter of unsafe pictures: any image classifier in transformers' layout, which says how sure it
is of the labels that count as unsafe.

The default is Falconsai/nsfw_image_detection, a ViT-B/16 of two labels, normal and nsfw. Pictures
are prepared as the checkpoint's own preprocessor_config.json says. Checks read headers and JSON
only; torch comes with loading.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.strict import StrictModel
from focusdpo.pipeline.parts import Image, Vectors
from focusdpo.pipeline.stage import chunks
from focusdpo.store.checkpoints import (
    digest_files,
    load_whole,
    locate,
    read_headers,
    read_json,
    weight_files,
)

VERSION = 1
FIELD = "models.safety.source"
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
PATTERNS = [CONFIG, PREPROCESSOR, "model*.safetensors*"]
CLASSIFIER = "ForImageClassification"


class ImageClassifierConfig(StrictModel):
    """An image classifier."""

    kind: Literal["image-classifier"] = "image-classifier"
    source: str = Field(
        "Falconsai/nsfw_image_detection",
        description="folder or hub id of an image classifier in transformers' layout",
    )
    unsafe: tuple[str, ...] = Field(
        ("nsfw",), min_length=1, description="its labels that count as unsafe, together"
    )
    threshold: float = Field(
        0.5, gt=0, le=1, description="a picture is refused when it is unsafe by so much or more"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of weights and activations"
    )
    batch: int = Field(64, ge=1, description="images in one forward pass")


@dataclass(frozen=True, slots=True)
class ClassifierWeights:
    """A checkpoint that was looked at."""

    folder: Path
    files: tuple[Path, ...]
    architecture: str
    unsafe: tuple[int, ...]
    """Places of the labels that count as unsafe."""
    labels: tuple[str, ...]


def checks(config: ImageClassifierConfig) -> dict[str, Callable[[], str]]:
    """Rows of `focusdpo doctor`."""

    def whole() -> str:
        weights = look(config)
        require_whole(weights)
        return (
            f"{weights.architecture} of {', '.join(weights.labels)}; refuses what is "
            f"{' or '.join(config.unsafe)} by {config.threshold:g} or more"
        )

    return {config.kind: whole}


def sources(config: ImageClassifierConfig) -> list[tuple[str, str, list[str] | None]]:
    """What `focusdpo fetch` downloads."""
    return [(FIELD, config.source, PATTERNS)]


def fingerprint(config: ImageClassifierConfig) -> str:
    """Hash of weights, labels, preprocessing, threshold and dtype. UserError for absent weights."""
    weights = look(config)
    return digest_files(
        [*weights.files, weights.folder / CONFIG, weights.folder / PREPROCESSOR],
        f"{config.kind}-{VERSION}",
        f"{sorted(weights.unsafe)} {config.threshold} {config.dtype}",
    )


def build(config: ImageClassifierConfig, device: str) -> ClassifierFilter:
    """The filter on `device`. UserError for absent or wrong weights."""
    import transformers

    from focusdpo.pipeline.adapters.streaming import DTYPES

    weights = look(config)
    require_whole(weights)
    dtype = DTYPES[config.dtype]
    model = load_whole(
        transformers.AutoModelForImageClassification, weights.folder, FIELD, dtype=dtype
    )
    processor = transformers.AutoImageProcessor.from_pretrained(
        weights.folder, local_files_only=True
    )
    model = model.to(device).eval().requires_grad_(False)
    return ClassifierFilter(model, processor, weights.unsafe, config, fingerprint(config))


def look(config: ImageClassifierConfig) -> ClassifierWeights:
    """The checkpoint's files and labels. UserError unless it is a classifier of one label a picture
    that knows the labels that count as unsafe."""
    folder = locate(config.source, FIELD)
    about = read_json(folder / CONFIG, FIELD)
    read_json(folder / PREPROCESSOR, FIELD)
    named = [name for name in about.get("architectures") or () if str(name).endswith(CLASSIFIER)]
    if not named:
        raise UserError(
            f"{FIELD}: {folder / CONFIG} names {about.get('architectures')}, expected a model "
            f"...{CLASSIFIER}"
        )
    if about.get("problem_type") == "multi_label_classification":
        raise UserError(f"{FIELD}: {folder} gives several labels to a picture; expected one")
    places = about.get("id2label")
    if not isinstance(places, dict) or not all(str(at).isdecimal() for at in places):
        raise UserError(f"{FIELD}: {folder / CONFIG} has no id2label, so its labels have no names")
    labels = {str(label): int(at) for at, label in places.items()}
    unknown = [label for label in config.unsafe if label not in labels]
    if unknown or len(labels) == len(set(config.unsafe)):
        raise UserError(
            f"models.safety.unsafe: {', '.join(config.unsafe)}; {folder} has the labels "
            f"{', '.join(labels)}: name some of them"
        )
    return ClassifierWeights(
        folder=folder,
        files=tuple(weight_files(folder, FIELD)),
        architecture=str(named[0]),
        unsafe=tuple(labels[label] for label in config.unsafe),
        labels=tuple(labels),
    )


def require_whole(weights: ClassifierWeights) -> None:
    """UserError unless the files hold as many numbers as the architecture that the config names,
    made on torch's meta device, without memory. Names are for loading to compare: transformers
    calls some tensors otherwise in files than in memory."""
    import torch
    from transformers import AutoConfig, AutoModelForImageClassification

    try:
        about = AutoConfig.from_pretrained(weights.folder, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForImageClassification.from_config(about)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{FIELD}: {weights.folder / CONFIG} describes no image classifier that transformers "
            f"knows ({error})"
        ) from error
    wanted = sum(tensor.numel() for tensor in model.state_dict().values())
    there = sum(math.prod(header.shape) for header in read_headers(weights.files, FIELD).values())
    if there != wanted:
        raise UserError(
            f"{FIELD}: {weights.folder} holds {there:,} numbers, {weights.architecture} as "
            f"{CONFIG} describes it has {wanted:,}; fetch the checkpoint again"
        )


class ClassifierFilter:
    """Fits pipeline.parts.SafetyFilter."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        unsafe: Sequence[int],
        config: ImageClassifierConfig,
        fingerprint: str,
    ) -> None:
        self.model, self.fingerprint, self.threshold = model, fingerprint, config.threshold
        self._processor, self._unsafe, self._batch = processor, list(unsafe), config.batch

    def unsafe(self, images: Sequence[Image]) -> Vectors:
        """(B,) in [0, 1]: how sure the classifier is of the labels that count as unsafe."""
        import torch

        parts = []
        with torch.inference_mode():
            for part in chunks(images, self._batch):
                ready = self._processor(images=list(part), return_tensors="pt")["pixel_values"]
                logits_BL = self.model(
                    pixel_values=ready.to(self.model.device, self.model.dtype)
                ).logits
                shares_BL = logits_BL.float().softmax(dim=-1)
                parts.append(shares_BL[:, self._unsafe].sum(dim=-1).cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)
