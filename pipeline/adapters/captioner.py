"""Words for an instance: its class name, or what a small vision-language model says of it.

What a model says goes through `describe.without_appearance`, which keeps no word of colour,
pattern or material, as the stage does with every captioner.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.describe import ClassNameCaptioner
from focusdpo.store.checkpoints import (
    digest_files,
    locate,
    read_headers,
    read_json,
    weight_files,
)

if TYPE_CHECKING:
    from focusdpo.pipeline.adapters.vlm_captioner import VlmCaptioner

VERSION = 1
FIELD = "models.captioner.source"
PATTERNS = ["*.json", "*.jinja", "*.safetensors", "merges.txt", "tokenizer.model"]
PROMPT = (
    "Complete with one short phrase, without colours, patterns or materials, what the {class_name} "
    "does or how it is placed. Start with: a {class_name}"
)


class ClassNameConfig(BaseModel):
    """An instance is called by its class name: no model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["class-name"] = "class-name"


class VlmConfig(BaseModel):
    """A vision-language model of transformers' image-text-to-text classes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["vlm"] = "vlm"
    source: str = Field(
        "HuggingFaceTB/SmolVLM-256M-Instruct",
        description="folder or hub id (Apache-2.0; -500M-Instruct says more)",
    )
    prompt: str = Field(
        PROMPT, min_length=1, description="what is asked; {class_name} stands for the word"
    )
    margin: float = Field(
        0.1, ge=0, le=1, description="white border of an instance crop, a share of its longer side"
    )
    size: int = Field(
        512, ge=16, description="side in pixels of the crop that is handed to the processor"
    )
    split: bool = Field(
        False, description="whether processors that can also look at tiles of the crop do so"
    )
    max_tokens: int = Field(24, ge=1, description="longest answer in tokens")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of weights and activations"
    )
    batch: int = Field(16, ge=1, description="instances in one call of the model")


def checks(config: ClassNameConfig | VlmConfig) -> dict[str, Callable[[], str]]:
    """Rows of `focusdpo doctor`."""
    if isinstance(config, ClassNameConfig):
        return {config.kind: lambda: "the class name; no model"}

    def whole() -> str:
        from focusdpo.pipeline.adapters.vlm_captioner import require_whole

        folder, files = _look(config)
        name = require_whole(folder)
        return f"{name}, {sum(file.stat().st_size for file in files) / 1e6:.0f} MB"

    return {config.kind: whole}


def sources(config: ClassNameConfig | VlmConfig) -> list[tuple[str, str, list[str] | None]]:
    """What `focusdpo fetch` downloads."""
    return [] if isinstance(config, ClassNameConfig) else [(FIELD, config.source, PATTERNS)]


def fingerprint(config: ClassNameConfig | VlmConfig) -> str:
    """Hash of weights, words, crop and dtype. UserError for absent weights."""
    if isinstance(config, ClassNameConfig):
        return ClassNameCaptioner.fingerprint
    folder, files = _look(config)
    texts = sorted({*folder.glob("*.json"), *folder.glob("*.jinja"), *folder.glob("*.txt")})
    settings = config.model_dump_json(exclude={"source", "batch"})
    return digest_files([*files, *texts], f"{config.kind}-{VERSION}", settings)


def build(config: ClassNameConfig | VlmConfig, device: str) -> ClassNameCaptioner | VlmCaptioner:
    """The captioner on `device`. UserError for absent or wrong weights."""
    if isinstance(config, ClassNameConfig):
        return ClassNameCaptioner()
    from focusdpo.pipeline.adapters.vlm_captioner import load_captioner, require_whole

    folder, _ = _look(config)
    require_whole(folder)
    return load_captioner(folder, config, device, fingerprint(config))


def _look(config: VlmConfig) -> tuple[Path, list[Path]]:
    """Folder and weight files. UserError unless weights, processor and tokenizer are there."""
    try:
        config.prompt.format(class_name="cat")
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"models.captioner.prompt: only {{class_name}} can be filled in ({error!r})"
        ) from error
    folder = locate(config.source, FIELD)
    read_json(folder / "config.json", FIELD)
    files = weight_files(folder, FIELD)
    read_headers(files, FIELD)
    for names in (("processor_config.json", "preprocessor_config.json"), ("tokenizer.json",)):
        if not any((folder / name).is_file() for name in names):
            raise UserError(
                f"{FIELD}: {folder} lacks {' or '.join(names)}; download the folder again"
            )
    return folder, files
