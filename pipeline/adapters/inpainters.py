"""A diffusers pipeline's folder: whether its models are whole. Headers and JSON alone are read;
torch is imported only to learn which tensors the models want.

Models that were made to fill a hole read words alone. Disruptions without references go to them;
the swap mode, which paints from another subject's reference, goes to the generator's backbone.
`TextInpainter` is that division of labour.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.adapters.inpainter_config import (
    BackboneInpainterConfig,
    FillConfig,
    FluxFillConfig,
    InpainterConfig,
    SdxlInpaintConfig,
)
from focusdpo.pipeline.parts import Inpainter
from focusdpo.store.checkpoints import (
    digest_files,
    locate,
    read_headers,
    read_json,
    require_class,
    require_tensors,
    weight_files,
)

if TYPE_CHECKING:
    from focusdpo.pipeline.adapters.fill_inpainter import FillInpainter

_VARIANT = re.compile(r"\.(\w+)(-\d{5}-of-\d{5})?\.safetensors$")
_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")
_SHARED = ("position_ids", "encoder.embed_tokens.weight")
"""A buffer that is no longer stored, and the second name of T5's one embedding."""


def part_files(folder: Path, field: str, variant: str | None = None) -> list[Path]:
    """The weight files of a model's folder: those of a variant ("fp16": *.fp16.safetensors), or
    those with plain names. UserError where there are none, with the other names that are there."""
    files = weight_files(folder, field)
    names = [_VARIANT.search(file.name) for file in files]
    variants = [None if name is None else name.group(1) for name in names]
    wanted = [file for file, found in zip(files, variants, strict=True) if found == variant]
    if not wanted:
        kind = "plain *.safetensors" if variant is None else f"*.{variant}.safetensors"
        raise UserError(
            f"{field}: {folder} holds no {kind}, but {files[0].name}; set variant to what is there "
            "(null: plain names), or download the other files"
        )
    return wanted


def check_part(folder: Path, wanted: str, field: str, variant: str | None = None) -> str:
    """A model's class and tensors in a line. UserError for another class, missing files, a pickle,
    a file that was cut off, and tensors that are missing, unexpected or of another shape."""
    require_class(folder, wanted, field)
    files = part_files(folder, field, variant)
    found = read_headers(files, field)
    shapes = _shapes(folder, wanted, field)
    is_encoder = wanted in _ENCODERS
    names, expected = (_plain(found), _plain(shapes)) if is_encoder else (dict(found), shapes)
    what = f"the {wanted} that {folder}/config.json describes"
    require_tensors(names, expected, field, what, exact=not is_encoder)
    weights = sum(prod(about.shape) for about in found.values())
    return f"{wanted}, {weights / 1e6:,.1f} M weights in {len(files)} files"


def folder_digest(
    folder: Path, parts: Mapping[str, str], settings: str, field: str, variant: str | None = None
) -> str:
    """Hash of the weights of `parts`, of all configs and tokenisers, and of the settings."""
    files = [file for name in parts for file in part_files(folder / name, field, variant)]
    small = sorted(
        file
        for pattern in ("*/config.json", "scheduler/*.json", "tokenizer*/*")
        for file in folder.glob(pattern)
        if file.is_file()
    )
    texts = [digest_files([f], f.relative_to(folder).as_posix()) for f in small]
    return digest_files(files, settings, *texts)


def weight_bytes(
    folder: Path, parts: Mapping[str, str], width: int, field: str, variant: str | None = None
) -> int:
    """Bytes of the weights of `parts` when each takes `width`."""
    return width * sum(
        prod(about.shape)
        for name in parts
        for about in read_headers(part_files(folder / name, field, variant), field).values()
    )


def _plain(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Without what differs between versions of transformers, CLIP's prefix among it."""
    return {
        name.removeprefix("text_model."): value
        for name, value in tensors.items()
        if not name.endswith(_SHARED)
    }


def _shapes(folder: Path, kind: str, field: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's tensors by its config, without memory for weights."""
    import diffusers
    import torch
    import transformers

    about = read_json(folder / "config.json", field)
    try:
        with torch.device("meta"):
            if kind in _ENCODERS:
                model_class = getattr(transformers, kind)
                model = model_class(model_class.config_class.from_dict(about))
            else:
                model = getattr(diffusers, kind).from_config(about)
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"{field}: {folder}/config.json describes no {kind}: {error}") from error
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


__all__ = [
    "BackboneInpainterConfig",
    "FluxFillConfig",
    "SdxlInpaintConfig",
    "build",
    "checks",
    "fingerprint",
    "sources",
]

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
    from focusdpo.pipeline.adapters.fill_inpainter import TextInpainter

    folder = locate(config.source, FIELD)
    _require_memory(config, folder, device)
    return TextInpainter(_load(config, folder, device), painter)


def fingerprint(config: InpainterConfig) -> str:
    """Hash of the fill model's weights and settings, without the painter's; loads no model."""
    if isinstance(config, BackboneInpainterConfig):
        return "backbone"
    folder = locate(config.source, FIELD)
    return folder_digest(folder, _models(config), config.result_settings(), FIELD, _variant(config))


def sources(config: InpainterConfig) -> list[tuple[str, str, list[str] | None]]:
    """What `focusdpo fetch` downloads."""
    if isinstance(config, BackboneInpainterConfig):
        return []
    small = ["model_index.json", "scheduler/*", "tokenizer/*", "tokenizer_2/*", "*/*.json"]
    end = f".{config.variant}" if isinstance(config, SdxlInpaintConfig) and config.variant else ""
    names = [f"{name}/{stem}" for name in _models(config) for stem in _stems(name)]
    weights = [f"{name}{kind}" for name in names for kind in (f"{end}.safetensors", f"{end}-*")]
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


def _stems(name: str) -> tuple[str, ...]:
    return ("model",) if name.startswith("text_encoder") else ("diffusion_pytorch_model",)


def _load(config: FillConfig, folder: Path, device: str) -> FillInpainter:
    import diffusers
    import torch

    from focusdpo.pipeline.adapters.fill_inpainter import FillInpainter

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


def _require_memory(config: FillConfig, folder: Path, device: str) -> None:
    """UserError when a GPU's free memory cannot hold the weights."""
    import torch

    if torch.device(device).type != "cuda":
        return
    parts = _models(config)
    if config.offload:
        parts = dict([next(iter(parts.items()))])
    needed = weight_bytes(folder, parts, _BYTES[config.dtype], FIELD, _variant(config))
    free, _ = torch.cuda.mem_get_info(device)
    if needed > free:
        raise UserError(
            f"models.inpainter: {needed / 2**30:.1f} GiB of weights, and {device} has "
            f"{free / 2**30:.1f} GiB free. Set models.inpainter.offload to true, or "
            "models.inpainter.kind to backbone"
        )
