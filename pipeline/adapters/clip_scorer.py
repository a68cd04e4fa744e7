"""CLIP-I and CLIP-T through open_clip, with the checkpoint's own preprocessing.

The default is OpenAI's ViT-B/32 (arXiv 2103.00020) as the field's tables use it (method.md 4.2):
raw cosine, no prefix before a prompt. A checkpoint is a folder in open_clip's layout:
open_clip_config.json and open_clip_model.safetensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.strict import StrictModel
from focusdpo.pipeline.adapters import preprocess
from focusdpo.pipeline.parts import Image, Vectors
from focusdpo.pipeline.stage import chunks
from focusdpo.store.checkpoints import (
    digest_files,
    locate,
    read_header,
    read_json,
    require_tensors,
    weight_files,
)

if TYPE_CHECKING:
    from torchvision.transforms import Compose, Normalize

VERSION = 1
FIELD = "models.clip.source"
CONFIG = "open_clip_config.json"
NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
PATTERNS = [CONFIG, *NAMES, "tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt"]


class ClipConfig(StrictModel):
    """CLIP."""

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
    import open_clip

    from focusdpo.pipeline.adapters.streaming import DTYPES

    weights = look(config)
    require_whole(weights)
    name = f"local-dir:{weights.folder}"
    try:
        model, _, transform = open_clip.create_model_and_transforms(name, precision="fp32")
    except RuntimeError as error:
        raise UserError(f"{FIELD}: {weights.folder} cannot be loaded: {error}") from error
    model = model.to(device=device, dtype=DTYPES[config.dtype]).eval().requires_grad_(False)
    tokenizer = open_clip.get_tokenizer(name)
    return ClipEncoder(model, transform, tokenizer, config, device, fingerprint(config))


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
    header = read_header(weights.file, FIELD)
    require_tensors(header, expected_shapes(weights.about), FIELD, f"CLIP as {CONFIG} describes it")


class ClipEncoder:
    """Fits pipeline.parts.TextImageEncoder."""

    def __init__(
        self,
        model: Any,
        transform: Compose,
        tokenizer: Any,
        config: ClipConfig,
        device: str,
        fingerprint: str,
    ) -> None:
        from PIL import Image as Pillow

        from focusdpo.pipeline.adapters.streaming import Looker, Stream

        self.model, self.fingerprint, self.batch = model, fingerprint, config.batch
        self._tokenizer = tokenizer
        scale, normalise = _halves(transform)
        self.looker = Looker(
            model.encode_image,
            normalise.mean,
            normalise.std,
            _side(model),
            device=device,
            dtype=config.dtype,
        )
        self.stream: Stream[Image | Path] = Stream(
            self.looker,
            lambda image: np.asarray(
                scale(Pillow.fromarray(preprocess.read_image(image))).convert("RGB")
            ),
            config.batch,
        )

    def embed_images(self, images: Sequence[Image | Path]) -> Vectors:
        """(B, D), unit length: whole pictures or picture files. UserError for a file that is no
        picture."""
        return self.stream.run(images)

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """(B, D), unit length. Words beyond the model's context (OpenAI's: 75) are not read."""
        import torch
        import torch.nn.functional as F

        parts = []
        with torch.inference_mode():
            for part in chunks(list(texts), self.batch):
                tokens = self._tokenizer(list(part)).to(self.looker.device)
                vectors = F.normalize(self.model.encode_text(tokens).float(), dim=-1)
                parts.append(vectors.cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, 0), dtype=np.float32)


def expected_shapes(about: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all tensors of the architecture that a `model_cfg` describes."""
    import open_clip
    import torch

    settings = deepcopy(about)
    custom = settings.pop("custom_text", False) or "hf_model_name" in settings["text_cfg"]
    # Made directly: open_clip's factory would warn that no weights are loaded.
    model_class = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    try:
        with torch.device("meta"):
            model = model_class(**settings)
    except (TypeError, KeyError) as error:
        raise UserError(
            f"{FIELD}: its model_cfg is not one of open_clip's CLIP ({error})"
        ) from error
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _halves(transform: Compose) -> tuple[Compose, Normalize]:
    """open_clip's transform apart: what it does to the picture, and the normalisation, which is
    done on the device. A test holds that both together are bit-equal to the whole."""
    from torchvision.transforms import Compose, Normalize

    *scale, _, normalise = transform.transforms
    if not isinstance(normalise, Normalize):
        raise RuntimeError(f"open_clip's transform ends in {normalise}, not in Normalize")
    return Compose(scale), normalise


def _side(model: Any) -> int:
    size = model.visual.image_size
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise UserError(f"{FIELD}: looks at {width} x {height} px; squares are expected")
    return int(height)
