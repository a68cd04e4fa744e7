"""The loaded CLIP: images and words to unit vectors. Imports torch and open_clip."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image as Pillow
from torchvision.transforms import Compose, Normalize

from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.adapters.preprocess import read_image
from focusdpo.pipeline.adapters.streaming import DTYPES, Looker, Stream
from focusdpo.pipeline.parts import Image, Vectors
from focusdpo.pipeline.stage import chunks

if TYPE_CHECKING:
    from focusdpo.pipeline.adapters.clip import ClipConfig


class ClipEncoder:
    """Fits pipeline.parts.TextImageEncoder."""

    def __init__(
        self,
        model: Any,
        preprocess: Compose,
        tokenizer: Any,
        config: ClipConfig,
        device: str,
        fingerprint: str,
    ) -> None:
        self.model, self.fingerprint, self.batch = model, fingerprint, config.batch
        self._tokenizer = tokenizer
        scale, normalise = _halves(preprocess)
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
            lambda image: np.asarray(scale(Pillow.fromarray(read_image(image))).convert("RGB")),
            config.batch,
        )

    def embed_images(self, images: Sequence[Image | Path]) -> Vectors:
        """(B, D), unit length: whole pictures or picture files. UserError for a file that is no
        picture."""
        return self.stream.run(images)

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """(B, D), unit length. Words beyond the model's context (OpenAI's: 75) are not read."""
        found = []
        with torch.inference_mode():
            for part in chunks(list(texts), self.batch):
                tokens = self._tokenizer(list(part)).to(self.looker.device)
                vectors = F.normalize(self.model.encode_text(tokens).float(), dim=-1)
                found.append(vectors.cpu().numpy())
        return np.concatenate(found) if found else np.zeros((0, 0), dtype=np.float32)


def load_encoder(folder: Path, config: ClipConfig, device: str, fingerprint: str) -> ClipEncoder:
    """The encoder of a folder in open_clip's layout; UserError when its weights do not fit."""
    name = f"local-dir:{folder}"
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(name, precision="fp32")
    except RuntimeError as error:
        raise UserError(f"models.clip.source: {folder} cannot be loaded: {error}") from error
    model = model.to(device=device, dtype=DTYPES[config.dtype]).eval().requires_grad_(False)
    tokenizer = open_clip.get_tokenizer(name)
    return ClipEncoder(model, preprocess, tokenizer, config, device, fingerprint)


def expected_shapes(about: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all tensors of the architecture that a `model_cfg` describes."""
    settings = deepcopy(about)
    custom = settings.pop("custom_text", False) or "hf_model_name" in settings["text_cfg"]
    # Made directly: open_clip's factory would warn that no weights are loaded.
    model_class = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    try:
        with torch.device("meta"):
            model = model_class(**settings)
    except (TypeError, KeyError) as error:
        raise UserError(
            f"models.clip.source: its model_cfg is not one of open_clip's CLIP ({error})"
        ) from error
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _halves(preprocess: Compose) -> tuple[Compose, Normalize]:
    """open_clip's transform apart: what it does to the picture, and the normalisation, which is
    done on the device. A test holds that both together are bit-equal to the whole."""
    *scale, _, normalise = preprocess.transforms
    if not isinstance(normalise, Normalize):
        raise RuntimeError(f"open_clip's transform ends in {normalise}, not in Normalize")
    return Compose(scale), normalise


def _side(model: Any) -> int:
    size = model.visual.image_size
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise UserError(f"models.clip.source: looks at {width} x {height} px; squares are expected")
    return int(height)
