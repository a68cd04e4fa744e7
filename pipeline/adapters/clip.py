"""CLIP-I and CLIP-T through open_clip, with the checkpoint's own preprocessing.

The default is OpenAI's ViT-B/32 (arXiv 2103.00020) as the field's tables use it (method.md 4.2):
raw cosine, no prefix before a prompt. A checkpoint is a folder in open_clip's layout:
open_clip_config.json and open_clip_model.safetensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.adapters import preprocess
from focusdpo.store.checkpoints import (
    digest_files,
    locate,
    read_header,
    read_json,
    require_tensors,
    weight_files,
)

if TYPE_CHECKING:
    from focusdpo.pipeline.adapters.clip_encoder import ClipEncoder

VERSION = 1
FIELD = "models.clip.source"
CONFIG = "open_clip_config.json"
NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
PATTERNS = [CONFIG, *NAMES, "tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt"]


class ClipConfig(BaseModel):
    """CLIP."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["clip"] = "clip"
    source: str = Field(
        "timm/vit_base_patch32_clip_224.openai",
        description="folder or hub id in open_clip's layout",
    )
    quick_gelu: bool = Field(
        True,
        description="the activation that the checkpoint must ask for: true for OpenAI's weights, "
        "which with another one give other numbers and no error",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of weights and activations; float32 is what published numbers use"
    )
    batch: int = Field(64, ge=1, description="images or texts in one forward pass")


@dataclass(frozen=True, slots=True)
class ClipWeights:
    """A checkpoint that was looked at."""

    folder: Path
    file: Path
    about: dict[str, Any]
    """Its `model_cfg`."""
    tokenizer: tuple[Path, ...]
    """Files of its own tokenizer; none for OpenAI's, which comes with open_clip."""


def checks(config: ClipConfig) -> dict[str, Callable[[], str]]:
    """Rows of `focusdpo doctor`."""

    def whole() -> str:
        weights = look(config)
        require_whole(weights)
        vision = weights.about["vision_cfg"]
        return (
            f"{weights.file.name}, {vision.get('width', '?')} wide, "
            f"patch {vision.get('patch_size', '?')}, quick_gelu {config.quick_gelu}"
        )

    return {config.kind: whole}


def sources(config: ClipConfig) -> list[tuple[str, str, list[str] | None]]:
    """What `focusdpo fetch` downloads."""
    return [(FIELD, config.source, PATTERNS)]


def fingerprint(config: ClipConfig) -> str:
    """Hash of weights, architecture, preprocessing and dtype. UserError for absent weights."""
    weights = look(config)
    return digest_files(
        [weights.file, weights.folder / CONFIG, *weights.tokenizer],
        f"{config.kind}-{VERSION}",
        f"preprocess-{preprocess.VERSION}",
        config.dtype,
    )


def build(config: ClipConfig, device: str) -> ClipEncoder:
    """The encoder on `device`. UserError for absent or wrong weights."""
    from focusdpo.pipeline.adapters.clip_encoder import load_encoder

    weights = look(config)
    require_whole(weights)
    return load_encoder(weights.folder, config, device, fingerprint(config))


def look(config: ClipConfig) -> ClipWeights:
    """The checkpoint's files and architecture. UserError unless it is in open_clip's layout and
    asks for the expected activation."""
    folder = locate(config.source, FIELD)
    about = read_json(folder / CONFIG, FIELD).get("model_cfg")
    if not isinstance(about, dict) or not {"vision_cfg", "text_cfg"} <= about.keys():
        raise UserError(f"{FIELD}: {folder / CONFIG} has no model_cfg with vision_cfg and text_cfg")
    asked = bool(about.get("quick_gelu", False))
    if asked != config.quick_gelu:
        raise UserError(
            f"{FIELD}: {folder / CONFIG} says quick_gelu {asked}, models.clip.quick_gelu is "
            f"{config.quick_gelu}. OpenAI's weights need true; if the checkpoint is right, set "
            f"models.clip.quick_gelu={str(asked).lower()}"
        )
    files = [file for file in weight_files(folder, FIELD) if file.name in NAMES]
    if not files:
        raise UserError(f"{FIELD}: {folder} lacks {NAMES[0]}; is it in open_clip's layout?")
    named = about["text_cfg"].get("hf_tokenizer_name")
    tokenizer = tuple(sorted(folder.glob("tokenizer*"))) if named else ()
    if named and not tokenizer:
        raise UserError(
            f"{FIELD}: {folder} lacks tokenizer.json; put the files of {named}'s tokenizer there"
        )
    return ClipWeights(folder, files[0], about, tokenizer)


def require_whole(weights: ClipWeights) -> None:
    """UserError unless the file holds exactly the tensors of the architecture that the config
    names; made on torch's meta device, without memory."""
    from focusdpo.pipeline.adapters.clip_encoder import expected_shapes

    found = read_header(weights.file, FIELD)
    require_tensors(found, expected_shapes(weights.about), FIELD, f"CLIP as {CONFIG} describes it")
