"""Inpainters of the disrupt stage: the generator's own backbone, or a model made to fill a hole.

The latter read words alone. Disruptions without references go to them; the swap mode, which paints
from another subject's reference, goes to the backbone. `TextInpainter` is that division of labour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image
from pydantic import Field

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.strict import StrictModel
from focusdpo.pipeline.adapters.checked import to_uint8
from focusdpo.pipeline.parts import Image, Inpainter, Mask, ReferenceImage, check_calls, guided
from focusdpo.store.checkpoints import (
    check_part,
    digest_files,
    locate,
    num_weights,
    part_files,
    part_patterns,
    read_headers,
    read_json,
    require_class,
    require_memory,
)


class BackboneInpainterConfig(StrictModel):
    """Masked repainting by the generator's own weights: nothing more to download, and what is
    repainted has the generator's own style."""

    kind: Literal["backbone"] = Field("backbone", description="which inpainter this is")


class FluxFillConfig(StrictModel):
    """FLUX.1 Fill: it repaints from words; swaps, which need references, go to the backbone."""

    kind: Literal["flux-fill"] = Field("flux-fill", description="which inpainter this is")
    source: str = Field(
        "black-forest-labs/FLUX.1-Fill-dev",
        description="a FluxFillPipeline in diffusers' layout: a folder or a hub id",
    )
    steps: int = Field(28, ge=1, description="Euler steps")
    guidance: float = Field(30.0, ge=0, description="embedded guidance (its authors: 30)")
    text_tokens: int = Field(512, ge=1, le=512, description="T5 tokens of a prompt, padded")
    dtype: Literal["bf16", "fp32"] = Field("bf16", description="of all weights")
    batch: int = Field(2, ge=1, description="images in one pass; none depends on it")
    offload: bool = Field(
        False, description="models wait on the CPU and come to a GPU one after another"
    )

    def result_settings(self) -> str:
        """Those fields that change what is painted, as JSON."""
        return self.model_dump_json(exclude={"source", "batch", "offload"})


class SdxlInpaintConfig(StrictModel):
    """SDXL inpainting: a UNet made for it (9 channels), or plain SDXL (4 channels), whose latents
    outside the mask are put back after each step. Swaps go to the backbone."""

    kind: Literal["sdxl-inpaint"] = Field("sdxl-inpaint", description="which inpainter this is")
    source: str = Field(
        "diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
        description="an SDXL pipeline in diffusers' layout: a folder or a hub id",
    )
    variant: str | None = Field(
        "fp16",
        description="which of the files: fp16 reads *.fp16.safetensors; null: the plain names",
    )
    steps: int = Field(30, ge=1, description="steps of the whole schedule")
    strength: float = Field(
        0.99, gt=0, le=1, description="share of the steps that are taken (its authors: below 1)"
    )
    guidance: float = Field(8.0, ge=1, description="classifier-free guidance; 1: none")
    negative_prompt: str | None = Field(None, description="what guidance leads away from")
    dtype: Literal["fp16", "bf16", "fp32"] = Field("fp16", description="of all weights")
    batch: int = Field(4, ge=1, description="images in one pass; none depends on it")
    offload: bool = Field(
        False, description="models wait on the CPU and come to a GPU one after another"
    )

    def result_settings(self) -> str:
        """Those fields that change what is painted, as JSON."""
        return self.model_dump_json(exclude={"source", "variant", "batch", "offload"})


FillConfig = FluxFillConfig | SdxlInpaintConfig
InpainterConfig = BackboneInpainterConfig | FillConfig


FIELD = "models.inpainter.source"
_TEXT = {"text_encoder": "CLIPTextModel"}
_FLUX = {
    "transformer": "FluxTransformer2DModel",
    "vae": "AutoencoderKL",
    **_TEXT,
    "text_encoder_2": "T5EncoderModel",
}
_SDXL = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    **_TEXT,
    "text_encoder_2": "CLIPTextModelWithProjection",
}
_PIPELINES = {
    "flux-fill": ("FluxFillPipeline",),
    "sdxl-inpaint": ("StableDiffusionXLInpaintPipeline", "StableDiffusionXLPipeline"),
}
_BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}


def build(config: InpainterConfig, device: str, painter: Inpainter) -> Inpainter:
    """The inpainter; `painter` is the generator's backbone, which kind "backbone" is and the others
    leave swaps to. UserError, before a weight is read, for whatever `checks` finds and for a device
    with too little memory."""
    if isinstance(config, BackboneInpainterConfig):
        return painter
    for check in checks(config).values():
        check()
    folder = locate(config.source, FIELD)
    advice = "Set models.inpainter.offload to true, or models.inpainter.kind to backbone"
    require_memory(device_bytes(config), device, "models.inpainter", advice)
    return TextInpainter(_load(config, folder, device), painter)


def fingerprint(config: InpainterConfig) -> str:
    """Hash of the fill model's weights and settings, without the painter's; loads no model."""
    if isinstance(config, BackboneInpainterConfig):
        return "backbone"
    folder = locate(config.source, FIELD)
    files = [
        f for name in _models(config) for f in part_files(folder / name, FIELD, _variant(config))
    ]
    small = sorted(
        file
        for pattern in ("*/config.json", "scheduler/*.json", "tokenizer*/*")
        for file in folder.glob(pattern)
        if file.is_file()
    )
    texts = [digest_files([file], file.relative_to(folder).as_posix()) for file in small]
    return digest_files(files, config.result_settings(), *texts)


def sources(config: InpainterConfig) -> list[tuple[str, str, list[str] | None]]:
    """What `focusdpo fetch` downloads."""
    if isinstance(config, BackboneInpainterConfig):
        return []
    small = ["model_index.json", "scheduler/*", "tokenizer/*", "tokenizer_2/*", "*/config.json"]
    variant = _variant(config)
    weights = [
        pattern
        for name in _models(config)
        for pattern in part_patterns(f"{name}/{_stem(name)}", variant)
    ]
    return [(FIELD, config.source, small + weights)]


def checks(config: InpainterConfig) -> dict[str, Callable[[], str]]:
    """Rows of `focusdpo doctor`; each tells what was found or raises UserError."""
    if isinstance(config, BackboneInpainterConfig):
        return {"inpainter": lambda: "the backbone's own masked repainting"}

    def part(name: str, wanted: str) -> Callable[[], str]:
        return lambda: check_part(
            locate(config.source, FIELD) / name, wanted, FIELD, _variant(config)
        )

    rows = {"pipeline": lambda: _check_pipeline(config)}
    return rows | {name: part(name, wanted) for name, wanted in _models(config).items()}


def _check_pipeline(config: FillConfig) -> str:
    """The pipeline's class, and that its main model reads a picture with a hole."""
    folder = locate(config.source, FIELD)
    kind = require_class(folder, _PIPELINES[config.kind], FIELD)
    vae = read_json(folder / "vae" / "config.json", FIELD)
    channels, factor = vae["latent_channels"], 2 ** (len(vae["block_out_channels"]) - 1)
    main = next(iter(_models(config)))
    reads = read_json(folder / main / "config.json", FIELD).get("in_channels")
    allowed: tuple[int, ...] = (2 * channels + 1, channels)
    if isinstance(config, FluxFillConfig):
        # Packed 2 x 2: latents, those of the picture with a hole, and the mask's pixels.
        allowed = (4 * (2 * channels + factor**2),)
    if reads not in allowed:
        raise UserError(
            f"{FIELD}: {folder / main} reads {reads} channels, a model for {config.kind} "
            f"{' or '.join(map(str, allowed))}: it was not made for inpainting"
        )
    for name in ("tokenizer", "tokenizer_2"):
        if not any((folder / name).glob("*")):
            raise UserError(f"{FIELD}: {folder / name} is absent; download the folder again")
    read_json(folder / "scheduler" / "scheduler_config.json", FIELD)
    return f"{folder}: {kind}, {reads} channels in"


def _models(config: FillConfig) -> dict[str, str]:
    return _FLUX if isinstance(config, FluxFillConfig) else _SDXL


def _variant(config: FillConfig) -> str | None:
    return config.variant if isinstance(config, SdxlInpaintConfig) else None


def _stem(name: str) -> str:
    return "model" if name.startswith("text_encoder") else "diffusion_pytorch_model"


def _load(config: FillConfig, folder: Path, device: str) -> FillInpainter:
    import diffusers
    import torch

    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[config.dtype]
    common: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "dtype": dtype}
    options: dict[str, Any] = {
        "num_inference_steps": config.steps,
        "guidance_scale": config.guidance,
    }
    pipeline: Any
    if isinstance(config, FluxFillConfig):
        pipeline = diffusers.FluxFillPipeline.from_pretrained(folder, **common)
        multiple = 2 * pipeline.vae_scale_factor
        options |= {"max_sequence_length": config.text_tokens}
    else:
        pipeline = diffusers.StableDiffusionXLInpaintPipeline.from_pretrained(
            folder, variant=config.variant, add_watermarker=False, **common
        )
        multiple = pipeline.vae_scale_factor
        options |= {"strength": config.strength, "negative_prompt": config.negative_prompt}
    for name in _models(config):
        getattr(pipeline, name).eval().requires_grad_(False)
    if config.offload and torch.device(device).type == "cuda":
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    return FillInpainter(
        pipeline, fingerprint(config), multiple=multiple, batch=config.batch, options=options
    )


def device_bytes(config: InpainterConfig) -> float:
    """What the weights take on the device; offloaded, the largest model alone."""
    if isinstance(config, BackboneInpainterConfig):
        return 0.0
    folder = locate(config.source, FIELD)
    parts = list(_models(config))[: 1 if config.offload else None]
    files = [file for name in parts for file in part_files(folder / name, FIELD, _variant(config))]
    return _BYTES[config.dtype] * num_weights(read_headers(files, FIELD))


class FillInpainter:
    """Fits pipeline.parts.Inpainter with a diffusers inpainting pipeline, from words alone.

    Each item's noise comes from its own seed, drawn on the CPU, so that no batch and no device
    matters beyond rounding. `multiple`: sides of pictures are multiples of so many pixels."""

    def __init__(
        self, pipeline: Any, fingerprint: str, *, multiple: int, batch: int, options: dict[str, Any]
    ) -> None:
        self.pipeline = pipeline
        self.fingerprint = fingerprint
        self._multiple, self._batch, self._options = multiple, batch, options

    def inpaint(
        self,
        images: Sequence[Image],
        masks: Sequence[Mask],
        prompts: Sequence[str],
        references: Sequence[Sequence[ReferenceImage]],
        seeds: Sequence[int],
        *,
        guidance: float | None = None,
    ) -> list[Image]:
        """Each image with its masked region repainted from its prompt, with the guidance of the
        model's own settings. UserError for references, which such a model cannot take, and for
        pictures whose sides it does not paint."""
        check_calls(prompts, references, seeds, images, masks)
        if any(references):
            raise UserError(
                "inpaint: a fill model reads words alone and takes no references; put a backbone's "
                "painter beside it (TextInpainter)"
            )
        for image, mask in zip(images, masks, strict=True):
            self._check_size(image, mask)
        painted: list[Image] = []
        for part in self._parts(images):
            painted += self._paint(images[part], masks[part], prompts[part], seeds[part])
        return painted

    def _paint(
        self,
        images: Sequence[Image],
        masks: Sequence[Mask],
        prompts: Sequence[str],
        seeds: Sequence[int],
    ) -> list[Image]:
        import torch

        height, width = images[0].shape[:2]
        painted = self.pipeline(
            prompt=list(prompts),
            image=[PIL.Image.fromarray(np.ascontiguousarray(image)) for image in images],
            mask_image=[PIL.Image.fromarray(mask.astype(np.uint8) * 255) for mask in masks],
            height=height,
            width=width,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np",
            **self._options,
        ).images
        return list(to_uint8(painted * 255))

    def _parts(self, images: Sequence[Image]) -> Iterator[slice]:
        """Runs of pictures of one size, at most a batch long."""
        at = 0
        for _, run in groupby(images, key=lambda image: image.shape):
            end = at + len(list(run))
            for start in range(at, end, self._batch):
                yield slice(start, min(start + self._batch, end))
            at = end

    def _check_size(self, image: Image, mask: Mask) -> None:
        height, width = image.shape[:2]
        if mask.shape != (height, width):
            raise UserError(
                f"inpaint: an image of {width} x {height} pixels with a mask of {mask.shape[1]} x "
                f"{mask.shape[0]}"
            )
        if height % self._multiple or width % self._multiple or not height or not width:
            raise UserError(
                f"inpaint: an image of {width} x {height} pixels; this model paints sides that are "
                f"multiples of {self._multiple}: choose models.backbone.image_size so"
            )


class TextInpainter:
    """Fits pipeline.parts.Inpainter: `fill` paints a call without references, `painter`, that of a
    backbone, one with references."""

    def __init__(self, fill: Inpainter, painter: Inpainter) -> None:
        self.fill, self.painter = fill, painter

    @property
    def fingerprint(self) -> str:
        """Of both: either may have painted."""
        return digest_files([], "text inpainter", self.fill.fingerprint, self.painter.fingerprint)

    def inpaint(
        self,
        images: Sequence[Image],
        masks: Sequence[Mask],
        prompts: Sequence[str],
        references: Sequence[Sequence[ReferenceImage]],
        seeds: Sequence[int],
        *,
        guidance: float | None = None,
    ) -> list[Image]:
        """Each image repainted. UserError for unequal numbers of references, and as of the two."""
        check_calls(prompts, references, seeds, images, masks)
        if any(references):
            return self.painter.inpaint(
                images, masks, prompts, references, seeds, **guided(guidance)
            )
        return self.fill.inpaint(images, masks, prompts, references, seeds)
