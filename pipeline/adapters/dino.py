"""DINO and DINOv2 as identity encoders, with the official preprocessing (method.md 4.2).

The identity metric of DreamBench is DINO v1 ViT-S/16: Resize 256 bicubic, CenterCrop 224, ImageNet
normalisation, CLS token after the last LayerNorm. Instances are looked at on white.

DINO v1 (arXiv 2104.14294) is public as transformers' ViTModel and as timm's safetensors, DINOv2
(arXiv 2304.07193) as transformers' Dinov2Model, with or without registers. All become the
transformers model. Checks read headers and JSON only; torch comes with loading.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.strict import StrictModel
from focusdpo.pipeline.adapters import preprocess
from focusdpo.pipeline.parts import Image, Mask, Vectors
from focusdpo.store.checkpoints import (
    TensorInfo,
    digest_files,
    load_whole,
    locate,
    read_headers,
    read_json,
    require_class,
    require_tensors,
    weight_files,
)

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
    load = load_v1 if config.kind == "dino" else load_v2
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
            lambda instance: preprocess.instance(
                instance[0], instance[1], config.margin, config.crop
            ),
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
    return look_v1(config.source, FIELD) if config.kind == "dino" else look_v2(config.source, FIELD)


HEAD = 64
"""Every published DINO has heads of 64 channels; timm's files do not tell their number."""
EPS = 1e-6
"""The LayerNorm epsilon of the official models. The config of transformers' DINO v1 says 1e-12,
which is not what was trained."""
V1_CLASS = "ViTModel"
V2_CLASSES = ("Dinov2Model", "Dinov2WithRegistersModel")
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class DinoWeights:
    """A checkpoint that was looked at."""

    folder: Path
    files: tuple[Path, ...]
    layout: Literal["transformers", "timm"]
    about: dict[str, Any]
    """Its config.json."""
    width: int
    depth: int
    patch: int

    @property
    def summary(self) -> str:
        """One line for people."""
        return f"{self.layout} layout, {self.depth} layers of {self.width}, patch {self.patch}"


def look_v1(source: str, field: str) -> DinoWeights:
    """A DINO v1 checkpoint in either layout. UserError for anything else."""
    folder = locate(source, field)
    about = read_json(folder / "config.json", field)
    files = tuple(weight_files(folder, field))
    if str(about.get("architecture", "")).startswith("vit_"):
        header = read_headers(files, field)
        width, depth, patch = _sizes_of_timm(header, about, field)
        require_tensors(header, timm_shapes(width, depth, patch), field, "timm's DINO")
        return DinoWeights(folder, files, "timm", about, width, depth, patch)
    require_class(folder, V1_CLASS, field)
    width, depth, patch = _sizes_of_config(about, field)
    if about.get("image_size", 224) != 224:
        raise UserError(
            f"{field}: {folder} is made for {about['image_size']} px; DINO v1 looks at 224 px"
        )
    # transformers' own pooler was never trained and is not used.
    header = {
        name: tensor
        for name, tensor in read_headers(files, field).items()
        if not name.startswith("pooler.")
    }
    shapes = _common_shapes(width, depth, patch, 224) | _v1_blocks(
        width, depth, about.get("intermediate_size", 4 * width)
    )
    require_tensors(header, shapes, field, f"DINO ({V1_CLASS} {width} x {depth})")
    return DinoWeights(folder, files, "transformers", about, width, depth, patch)


def look_v2(source: str, field: str) -> DinoWeights:
    """A DINOv2 checkpoint, with or without registers. UserError for anything else."""
    folder = locate(source, field)
    name = require_class(folder, V2_CLASSES, field)
    about = read_json(folder / "config.json", field)
    files = tuple(weight_files(folder, field))
    width, depth, patch = _sizes_of_config(about, field)
    shapes = _common_shapes(width, depth, patch, about.get("image_size", 224))
    shapes |= _v2_blocks(width, depth, about)
    if about.get("use_mask_token", True):
        shapes["embeddings.mask_token"] = (1, width)
    if name == V2_CLASSES[1]:
        shapes["embeddings.register_tokens"] = (1, about.get("num_register_tokens", 4), width)
    header = read_headers(files, field)
    require_tensors(header, shapes, field, f"DINOv2 ({name} {width} x {depth})")
    return DinoWeights(folder, files, "transformers", about, width, depth, patch)


def load_v1(weights: DinoWeights, dtype: Any) -> Any:
    """transformers' ViTModel with the official epsilon."""
    from safetensors.torch import load_file
    from transformers import ViTConfig, ViTModel

    if weights.layout == "transformers":
        config = ViTConfig.from_pretrained(weights.folder, layer_norm_eps=EPS)
        settings = {"config": config, "add_pooling_layer": False}
        return load_whole(ViTModel, weights.folder, FIELD, exact=False, dtype=dtype, **settings)
    config = ViTConfig(
        hidden_size=weights.width,
        num_hidden_layers=weights.depth,
        num_attention_heads=weights.width // HEAD,
        intermediate_size=4 * weights.width,
        patch_size=weights.patch,
        image_size=224,
        layer_norm_eps=EPS,
    )
    tensors: dict[str, Any] = {}
    for file in weights.files:
        tensors |= load_file(file)
    model = ViTModel._from_config(config, dtype=dtype, add_pooling_layer=False)
    model.load_state_dict(_from_timm(tensors), strict=True)
    return model


def load_v2(weights: DinoWeights, dtype: Any) -> Any:
    """transformers' Dinov2Model or Dinov2WithRegistersModel."""
    import transformers

    name = (weights.about.get("architectures") or V2_CLASSES)[0]
    return load_whole(getattr(transformers, name), weights.folder, FIELD, dtype=dtype)


def _sizes_of_config(about: dict[str, Any], field: str) -> tuple[int, int, int]:
    try:
        return about["hidden_size"], about["num_hidden_layers"], about["patch_size"]
    except KeyError as error:
        raise UserError(f"{field}: its config.json has no {error.args[0]}") from error


def _sizes_of_timm(
    header: dict[str, TensorInfo], about: dict[str, Any], field: str
) -> tuple[int, int, int]:
    kernel = header.get("patch_embed.proj.weight")
    if kernel is None or len(kernel.shape) != 4:
        raise UserError(
            f"{field}: no patch_embed.proj.weight in it; is {about['architecture']} a DINO?"
        )
    width, patch = kernel.shape[0], kernel.shape[-1]
    if width % HEAD:
        raise UserError(f"{field}: {width} channels are no whole heads of {HEAD}; not a DINO")
    depth = len({name.split(".")[1] for name in header if name.startswith("blocks.")})
    return width, depth, patch


def _linear(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _common_shapes(width: int, depth: int, patch: int, image: int) -> Shapes:
    shapes: Shapes = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.position_embeddings": (1, 1 + (image // patch) ** 2, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (width,),
    } | _norm("layernorm", width)
    for at in range(depth):
        attention = f"encoder.layer.{at}.attention"
        for name in ("attention.query", "attention.key", "attention.value", "output.dense"):
            shapes |= _linear(f"{attention}.{name}", width, width)
    return shapes


def _v1_blocks(width: int, depth: int, inner: int) -> Shapes:
    shapes: Shapes = {}
    for layer in (f"encoder.layer.{at}" for at in range(depth)):
        shapes |= _norm(f"{layer}.layernorm_before", width)
        shapes |= _norm(f"{layer}.layernorm_after", width)
        shapes |= _linear(f"{layer}.intermediate.dense", inner, width)
        shapes |= _linear(f"{layer}.output.dense", width, inner)
    return shapes


def _v2_blocks(width: int, depth: int, about: dict[str, Any]) -> Shapes:
    inner = int(width * about.get("mlp_ratio", 4))
    shapes: Shapes = {}
    for layer in (f"encoder.layer.{at}" for at in range(depth)):
        for name in ("norm1", "norm2"):
            shapes |= _norm(f"{layer}.{name}", width)
        shapes |= {f"{layer}.layer_scale{half}.lambda1": (width,) for half in (1, 2)}
        if about.get("use_swiglu_ffn"):
            gated = (int(inner * 2 / 3) + 7) // 8 * 8
            shapes |= _linear(f"{layer}.mlp.weights_in", 2 * gated, width)
            shapes |= _linear(f"{layer}.mlp.weights_out", width, gated)
        else:
            shapes |= _linear(f"{layer}.mlp.fc1", inner, width)
            shapes |= _linear(f"{layer}.mlp.fc2", width, inner)
    return shapes


def timm_shapes(width: int, depth: int, patch: int) -> Shapes:
    """Name -> shape of all tensors of a DINO v1 in timm's layout, for 224 px."""
    shapes: Shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + (224 // patch) ** 2, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
    } | _norm("norm", width)
    for block in (f"blocks.{at}" for at in range(depth)):
        shapes |= _norm(f"{block}.norm1", width) | _norm(f"{block}.norm2", width)
        shapes |= _linear(f"{block}.attn.qkv", 3 * width, width)
        shapes |= _linear(f"{block}.attn.proj", width, width)
        shapes |= _linear(f"{block}.mlp.fc1", 4 * width, width)
        shapes |= _linear(f"{block}.mlp.fc2", width, 4 * width)
    return shapes


_FROM_TIMM = (
    ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
    ("cls_token", "embeddings.cls_token"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("blocks.", "layers."),
    ("norm1", "layernorm_before"),
    ("norm2", "layernorm_after"),
    ("attn.proj", "attention.o_proj"),
)


def _from_timm(tensors: dict[str, Any]) -> dict[str, Any]:
    """timm's names and joint qkv -> the names of transformers' ViTModel."""
    renamed: dict[str, Any] = {}
    for name, tensor in tensors.items():
        for old, new in _FROM_TIMM:
            name = name.replace(old, new) if name.startswith(old) or f".{old}" in name else name
        if name.startswith("norm."):
            name = f"layer{name}"
        if ".attn.qkv." in name:
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                renamed[name.replace("attn.qkv", f"attention.{part}_proj")] = rows
        else:
            renamed[name] = tensor
    return renamed
