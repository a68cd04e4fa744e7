"""What the disrupt stage repaints with (kinds "backbone", "flux-fill", "sdxl-inpaint").

Models that were made to fill a hole read words alone. Disruptions without references go to them;
the swap mode, which paints from another subject's reference, goes to the generator's backbone.
`TextInpainter` is that division of labour.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focusdpo.data_schemas.checkpoints import locate, read_json, require_class
from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.adapters import diffusers_folder
from focusdpo.pipeline.adapters.inpainter_config import (
    BackboneInpainterConfig,
    FillConfig,
    FluxFillConfig,
    InpainterConfig,
    SdxlInpaintConfig,
)
from focusdpo.pipeline.parts import Inpainter

if TYPE_CHECKING:
    from focusdpo.pipeline.adapters.fill_inpainter import FillInpainter

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
    return diffusers_folder.folder_digest(
        folder, _models(config), config.result_settings(), FIELD, _variant(config)
    )


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
        return lambda: diffusers_folder.check_part(
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
    needed = diffusers_folder.weight_bytes(
        folder, parts, _BYTES[config.dtype], FIELD, _variant(config)
    )
    free, _ = torch.cuda.mem_get_info(device)
    if needed > free:
        raise UserError(
            f"models.inpainter: {needed / 2**30:.1f} GiB of weights, and {device} has "
            f"{free / 2**30:.1f} GiB free. Set models.inpainter.offload to true, or "
            "models.inpainter.kind to backbone"
        )
