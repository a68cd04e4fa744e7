"""Grounding DINO, SAM and SAM 2 as transformers' classes, behind the protocols of the segmenter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from focusdpo.pipeline.adapters.segmenters.detections import require_bert_tokens
from focusdpo.pipeline.adapters.segmenters.grounded_segmenter import (
    MaskModel,
    PaddedView,
    SquareView,
    View,
)
from focusdpo.store.checkpoints import (
    load_whole,
    read_headers,
    read_json,
    weight_files,
)


class TransformersDetector:
    """A `Detector`."""

    def __init__(self, model: Any, tokenizer: Any, device: str = "cpu") -> None:
        self.model, self.tokenizer = model.to(device), tokenizer
        self._device = device

    def offsets(self, caption: str) -> list[tuple[int, int]]:
        """First character and the one after the last of each token; (0, 0): special."""
        encoded = self.tokenizer(caption, return_offsets_mapping=True)
        return [(int(first), int(last)) for first, last in encoded["offset_mapping"]]

    def detect(self, pixels_B3hw: Tensor, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Logits (B, Q, 256) and boxes (B, Q, 4) as shares."""
        text = self.tokenizer(
            list(captions), padding=True, return_tensors="pt", return_token_type_ids=True
        ).to(self._device)
        out = self.model(
            pixel_values=pixels_B3hw,
            input_ids=text["input_ids"],
            token_type_ids=text["token_type_ids"],
            attention_mask=text["attention_mask"],
        )
        return out.logits, out.pred_boxes


class TransformersSam:
    """A `MaskModel` on SamModel."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.view = self._view()

    def _view(self) -> View:
        return PaddedView(self.model.config.vision_config.image_size)

    def encode(self, pixels_B3SS: Tensor) -> list[Any]:
        """An embedding (1, C, g, g) per image."""
        return list(self.model.get_image_embeddings(pixels_B3SS).float().split(1))

    def propose(self, known: Any, corners_N4: Tensor, multimask: bool) -> tuple[Tensor, Tensor]:
        """Mask logits (N, K, 4 g, 4 g), SAM 2: of its finest level, and predicted IoU (N, K)."""
        return self._decode(known, multimask, input_boxes=corners_N4[None])

    def propose_at(
        self, known: Any, points_N2: Tensor, labels_N: Tensor, multimask: bool
    ) -> tuple[Tensor, Tensor]:
        """The same, (1, K, ...) and (1, K), for all points."""
        # Images, objects of an image, points of an object: one, one and N.
        prompts = {"input_points": points_N2[None, None], "input_labels": labels_N[None, None]}
        return self._decode(known, multimask, **prompts)

    def _decode(self, known: Any, multimask: bool, **prompts: Tensor) -> tuple[Tensor, Tensor]:
        out = self.model(image_embeddings=known, multimask_output=multimask, **prompts)
        return out.pred_masks[0], out.iou_scores[0]


class TransformersSam2(TransformersSam):
    """A `MaskModel` on Sam2Model."""

    def _view(self) -> View:
        # The image sizes of SAM 2 are square; its prompt encoder knows the side.
        return SquareView(self.model.config.prompt_encoder_config.image_size)

    def encode(self, pixels_B3SS: Tensor) -> list[Any]:
        """Three levels of features (1, C, h, w) per image."""
        levels = [level.float().split(1) for level in self.model.get_image_embeddings(pixels_B3SS)]
        return [list(features) for features in zip(*levels, strict=True)]


def load_detector(folder: Path, field: str) -> tuple[nn.Module, Any]:
    """Grounding DINO and its tokenizer, frozen, in float32. UserError for tensors that are missing,
    not expected or of another shape."""
    from transformers import AutoTokenizer, GroundingDinoForObjectDetection

    model = _load(GroundingDinoForObjectDetection, folder, field)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    require_bert_tokens(tokenizer, folder, field)
    return model, tokenizer


TWICE = {
    "prompt_encoder.shared_embedding.positional_embedding": "shared_image_embedding"
    ".positional_embedding"
}
"""SAM 2's prompts and pictures share a table of positions: transformers 4 wrote it once where it
saved from a CPU, and transformers 5 reads both names."""


def look_at_detector(folder: Path, field: str) -> int:
    """How many tensors a detector's files hold, all of them the model's; on torch's meta device.
    UserError as `load_detector`."""
    from transformers import GroundingDinoForObjectDetection

    return _look(GroundingDinoForObjectDetection, folder, field)


def look_at_sam(folder: Path, field: str) -> int:
    """The same of SAM or SAM 2."""
    cls, settings = _sam_class(folder, field)
    return _look(cls, folder, field, **settings)


def load_sam(folder: Path, field: str, device: str) -> MaskModel:
    """SAM or SAM 2 by the folder's settings, frozen, in float32. UserError as `load_detector`."""
    cls, settings = _sam_class(folder, field)
    kind = TransformersSam2 if settings else TransformersSam
    return kind(_load(cls, folder, field, **settings).to(device))


def _sam_class(folder: Path, field: str) -> tuple[Any, dict[str, Any]]:
    from transformers import Sam2Config, Sam2Model, SamModel

    about = read_json(folder / "config.json", field)
    if about.get("model_type") == "sam":
        return SamModel, {}
    # Folders of the video model hold the image model's settings among their own.
    parts = ("vision_config", "prompt_encoder_config", "mask_decoder_config")
    config = Sam2Config(**{name: about[name] for name in parts if name in about})
    return Sam2Model, {"config": config, "copies": TWICE}


def _look(cls: Any, folder: Path, field: str, **settings: Any) -> int:
    read_headers(weight_files(folder, field), field)  # what is absent, cut off or a pickle
    return len(load_whole(cls, folder, field, device_map="meta", **settings).state_dict())


def _load(cls: Any, folder: Path, field: str, **settings: Any) -> nn.Module:
    model: nn.Module = load_whole(cls, folder, field, dtype=torch.float32, **settings)
    return model.eval().requires_grad_(False)
