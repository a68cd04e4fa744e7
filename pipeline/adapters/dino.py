"""DINO and DINOv2 as identity encoders, with the official preprocessing (method.md 4.2).

The identity metric of DreamBench is DINO v1 ViT-S/16: Resize 256 bicubic, CenterCrop 224, ImageNet
normalisation, CLS token after the last LayerNorm. Instances are looked at on white.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from focusdpo.data_schemas.strict import StrictModel
from focusdpo.pipeline.adapters import dino_weights, preprocess
from focusdpo.pipeline.adapters.dino_weights import DinoWeights
from focusdpo.pipeline.parts import Image, Mask, Vectors
from focusdpo.store.checkpoints import digest_files

if TYPE_CHECKING:
    from focusdpo.pipeline.adapters.streaming import Looker

VERSION = 1
FIELD = "models.identity.source"
PATTERNS = ["config.json", "*.safetensors"]


class _Encoder(StrictModel):
    """What both generations share."""

    crop: preprocess.CropPolicy = Field(
        "official",
        description="what of an instance's square crop is looked at: official = Resize 256 and "
        "CenterCrop 224, which cuts 1/16 off each side; square = all of it scaled to 224",
    )
    margin: float = Field(
        0.1,
        ge=0,
        le=1,
        description="white border of an instance crop, a share of its longer side; official "
        "cuts nothing of the subject from 0.072 on",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="of weights and activations; float32 is what published numbers use",
    )
    batch: int = Field(64, ge=1, description="images in one forward pass")


class DinoConfig(_Encoder):
    """DINO v1."""

    kind: Literal["dino"] = "dino"
    source: str = Field(
        "timm/vit_small_patch16_224.dino",
        description="folder or hub id: timm's DINO, or transformers' ViTModel with safetensors "
        "(facebook/dino-vits16@refs/pr/1)",
    )


class Dinov2Config(_Encoder):
    """DINOv2, with or without registers."""

    kind: Literal["dinov2"] = "dinov2"
    source: str = Field(
        "facebook/dinov2-base", description="folder or hub id of transformers' Dinov2Model"
    )


def checks(config: DinoConfig | Dinov2Config) -> dict[str, Callable[[], str]]:
    """Rows of `focusdpo doctor`."""
    return {config.kind: lambda: _look(config).summary}


def sources(config: DinoConfig | Dinov2Config) -> list[tuple[str, str, list[str] | None]]:
    """What `focusdpo fetch` downloads."""
    return [(FIELD, config.source, PATTERNS)]


def fingerprint(config: DinoConfig | Dinov2Config) -> str:
    """Hash of weights, crop, preprocessing and dtype. UserError for absent or wrong weights."""
    weights = _look(config)
    return digest_files(
        [*weights.files, weights.folder / "config.json"],
        f"{config.kind}-{VERSION}",
        f"preprocess-{preprocess.VERSION}",
        f"{config.crop} {config.margin} {config.dtype}",
    )


def build(config: DinoConfig | Dinov2Config, device: str) -> DinoEncoder:
    """The encoder on `device`. UserError for absent or wrong weights."""
    from focusdpo.pipeline.adapters.streaming import DTYPES, Looker

    weights = _look(config)
    load = dino_weights.load_v1 if config.kind == "dino" else dino_weights.load_v2
    model = load(weights, DTYPES[config.dtype]).to(device).eval().requires_grad_(False)
    looker = Looker(
        # CLS after the last LayerNorm, in both generations.
        lambda images: model(pixel_values=images).last_hidden_state[:, 0],
        preprocess.IMAGENET_MEAN,
        preprocess.IMAGENET_STD,
        preprocess.SIDE,
        device=device,
        dtype=config.dtype,
    )
    return DinoEncoder(model, looker, config, fingerprint(config))


class DinoEncoder:
    """Fits pipeline.parts.IdentityEncoder; D is the model's width."""

    def __init__(
        self, model: Any, looker: Looker, config: DinoConfig | Dinov2Config, fingerprint: str
    ) -> None:
        from focusdpo.pipeline.adapters.streaming import Stream

        self.model, self.looker, self.batch = model, looker, config.batch
        self.fingerprint = fingerprint
        self._instances: Stream[tuple[Image, Mask]] = Stream(
            looker,
            lambda one: preprocess.instance(one[0], one[1], config.margin, config.crop),
            config.batch,
        )
        self.stream: Stream[Image | Path] = Stream(
            looker, lambda image: preprocess.official(preprocess.read_image(image)), config.batch
        )

    def embed(self, images: Sequence[Image], masks: Sequence[Mask]) -> Vectors:
        """(B, D), unit length: the masked subject of each image on white."""
        return self._instances.run(list(zip(images, masks, strict=True)))

    def embed_whole(self, images: Sequence[Image | Path]) -> Vectors:
        """(B, D), unit length: each whole picture, or picture file, under exactly the official
        protocol, as DreamBench's metrics look at it. Files are turned upright and to sRGB first;
        published scorers take the stored pixels, which for DreamBench's are the same. UserError
        for a file that is no picture."""
        return self.stream.run(images)


def _look(config: DinoConfig | Dinov2Config) -> DinoWeights:
    look = dino_weights.look_v1 if config.kind == "dino" else dino_weights.look_v2
    return look(config.source, FIELD)
