"""FLUX.2 Klein (kind "flux2-klein"): what its checkpoint must hold, what identifies it, loading."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.backbones.flux_config import (
    Flux2KleinConfig,
    check_blocks,
    check_sides,
    middle_blocks,
    weight_bytes,
)
from focusdpo.store.checkpoints import (
    check_part,
    digest_files,
    locate,
    read_json,
    require_class,
    require_files,
    require_memory,
    weight_files,
)

if TYPE_CHECKING:
    from torch import nn

    from focusdpo.model.backbones.flux2_backbone import Flux2KleinBackbone, QwenPrompts

FIELD = "models.backbone.base"
PARTS = {
    "transformer": "Flux2Transformer2DModel",
    "vae": "AutoencoderKLFlux2",
    "text_encoder": "Qwen3ForCausalLM",
}
"""Folder -> the class that its config names."""
SCHEDULER = "FlowMatchEulerDiscreteScheduler"
_UNUSED = ("bn.num_batches_tracked", "lm_head.weight")
"""Tensors that a checkpoint may hold or lack: nothing reads them."""
_TOKENIZER = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json")
_TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint's JSON says."""

    folder: Path
    is_distilled: bool
    num_double: int
    num_single: int
    token_pixels: int


def sources(config: Flux2KleinConfig) -> list[tuple[str, str, list[str] | None]]:
    """What `focusdpo fetch` downloads: the folders alone, since the public repositories hold the
    transformer a second time in one large file."""
    folders = (*PARTS, "tokenizer", "scheduler")
    return [(FIELD, config.base, ["model_index.json", *(f"{name}/*" for name in folders)])]


def checks(config: Flux2KleinConfig) -> dict[str, Callable[[], str]]:
    """Rows of `focusdpo doctor`, without loading weights."""

    def layout() -> str:
        checkpoint = inspect(config)
        kind = "distilled, 4 steps" if checkpoint.is_distilled else "base"
        blocks = f"{checkpoint.num_double} + {checkpoint.num_single} blocks"
        return f"{checkpoint.folder}: FLUX.2 Klein ({kind}), {blocks}"

    def weights(name: str) -> str:
        return check_part(inspect(config).folder / name, PARTS[name], FIELD, unread=_UNUSED)

    return {"pipeline": layout} | {name: partial(weights, name) for name in PARTS}


def fingerprint(config: Flux2KleinConfig) -> str:
    """Hash of weights, tokeniser, schedule and settings; loads no model."""
    checkpoint = inspect(config)
    folder = checkpoint.folder
    files = [file for name in PARTS for file in weight_files(folder / name, FIELD)]
    files += [folder / name / "config.json" for name in PARTS]
    files += [folder / "scheduler" / "scheduler_config.json"]
    tokenizer = (folder / "tokenizer" / name for name in (*_TOKENIZER, _TEMPLATE))
    files += [file for file in tokenizer if file.is_file()]
    return digest_files(files, config.result_settings(), f"distilled {checkpoint.is_distilled}")


def inspect(config: Flux2KleinConfig) -> Checkpoint:
    """The checkpoint's JSON, checked against the settings. UserError for another pipeline, missing
    parts, and sizes or layers that do not fit."""
    folder = locate(config.base, FIELD)
    require_class(folder, "Flux2KleinPipeline", FIELD)
    about = {name: _part(folder / name, wanted) for name, wanted in PARTS.items()}
    require_class(folder / "scheduler", SCHEDULER, FIELD)
    schedule = read_json(folder / "scheduler" / "scheduler_config.json", FIELD)
    for name in ("stochastic_sampling", "invert_sigmas"):
        if schedule.get(name):
            raise UserError(f"{FIELD}: {folder}/scheduler sets {name}; steps are plain Euler here")
    _check_tokenizer(folder / "tokenizer")
    transformer, vae, text = (about[name] for name in PARTS)
    _check_widths(config, folder, transformer, vae, text)
    check_blocks(config.blocks, transformer)
    sides = {"image_size": config.image_size, "reference_size": (config.reference_size,)}
    return Checkpoint(
        folder=folder,
        is_distilled=bool(read_json(folder / "model_index.json", FIELD).get("is_distilled")),
        num_double=transformer["num_layers"],
        num_single=transformer["num_single_layers"],
        token_pixels=check_sides(sides, vae),
    )


def _part(folder: Path, wanted: str) -> dict[str, Any]:
    require_class(folder, wanted, FIELD)
    return read_json(folder / "config.json", FIELD)


def _check_tokenizer(folder: Path) -> None:
    require_files(folder, [("tokenizer.json",), ("vocab.json",)], FIELD)
    settings = read_json(folder / "tokenizer_config.json", FIELD)
    if not settings.get("chat_template") and not (folder / _TEMPLATE).is_file():
        raise UserError(
            f"{FIELD}: {folder} holds no chat template ({_TEMPLATE}), which prompts are written in;"
            " download it again with `focusdpo fetch` and this preset"
        )


def _check_widths(
    config: Flux2KleinConfig, folder: Path, transformer: Any, vae: Any, text: Any
) -> None:
    width = len(config.text_layers) * text["hidden_size"]
    if width != transformer["joint_attention_dim"]:
        raise UserError(
            f"{FIELD}: {folder}: the transformer reads text of width "
            f"{transformer['joint_attention_dim']}, {len(config.text_layers)} layers of this text "
            f"encoder give {width}; check models.backbone.text_layers and the text_encoder folder"
        )
    if not 0 <= min(config.text_layers) <= max(config.text_layers) <= text["num_hidden_layers"]:
        raise UserError(
            f"models.backbone.text_layers {list(config.text_layers)}: the text encoder has layers 0"
            f" to {text['num_hidden_layers']}"
        )
    if transformer["in_channels"] != 4 * vae["latent_channels"]:
        raise UserError(
            f"{FIELD}: {folder}: the transformer reads {transformer['in_channels']} channels, the "
            f"autoencoder gives 4 x {vae['latent_channels']}; these are parts of two models"
        )


def build(config: Flux2KleinConfig, device: str) -> Flux2KleinBackbone:
    """The backbone on `device`, frozen, in evaluation mode. UserError, before a weight is read, for
    a checkpoint that is incomplete or another model's and for a device with too little memory."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    from focusdpo.model.backbones.flux import SamplingConfig
    from focusdpo.model.backbones.flux2_backbone import Flux2KleinBackbone

    for check in checks(config).values():
        check()
    checkpoint = inspect(config)
    _require_memory(config, checkpoint.folder, device)
    folder, steps = checkpoint.folder, config.steps or (4 if checkpoint.is_distilled else 50)
    transformer, autoencoder = _load_models(config, folder, device)
    return Flux2KleinBackbone(
        transformer,
        autoencoder,
        _load_prompts(config, folder, device),
        FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        image_size=config.image_size,
        reference_size=(config.reference_size,) * 2,
        default_blocks=config.blocks or middle_blocks(checkpoint.num_double),
        token_pixels=checkpoint.token_pixels,
        sampling=SamplingConfig(
            steps=steps,
            guidance=1.0 if checkpoint.is_distilled else config.guidance,
            strength=config.strength,
        ),
        fingerprint=fingerprint(config),
        lends_prompts=config.offload,
    )


def _require_memory(config: Flux2KleinConfig, folder: Path, device: str) -> None:
    """UserError when a GPU's free memory cannot hold the weights that stay on it."""
    kinds = {"transformer": config.dtype, "vae": config.vae_dtype}
    if not config.offload:
        kinds["text_encoder"] = config.dtype
    needed = weight_bytes(folder, kinds, FIELD)
    advice = "Set models.backbone.offload to true, take the 4B checkpoint, or a larger GPU"
    require_memory(needed, device, "models.backbone", advice)


def _load_models(
    config: Flux2KleinConfig, folder: Path, device: str
) -> tuple[nn.Module, nn.Module]:
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel

    from focusdpo.model.backbones.offload import DTYPES

    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
    transformer: nn.Module = Flux2Transformer2DModel.from_pretrained(
        folder / "transformer", dtype=DTYPES[config.dtype], **options
    )
    autoencoder: nn.Module = AutoencoderKLFlux2.from_pretrained(
        folder / "vae", dtype=DTYPES[config.vae_dtype], **options
    )
    for module in (transformer, autoencoder):
        module.to(device).eval().requires_grad_(False)
    return transformer, autoencoder


def _load_prompts(config: Flux2KleinConfig, folder: Path, device: str) -> QwenPrompts:
    from transformers import Qwen2TokenizerFast, Qwen3ForCausalLM

    from focusdpo.model.backbones.flux2_backbone import QwenPrompts
    from focusdpo.model.backbones.offload import DTYPES

    whole: Any = Qwen3ForCausalLM.from_pretrained(
        folder / "text_encoder",
        dtype=DTYPES[config.dtype],
        use_safetensors=True,
        local_files_only=True,
    )
    encoder = whole.model.eval().requires_grad_(False)
    # Layers above the last one that is read, and the word head, would only take memory. One more
    # layer stays: the state behind the very last one is normalised.
    encoder.layers = encoder.layers[: max(config.text_layers) + 1]
    encoder.config.num_hidden_layers = len(encoder.layers)
    return QwenPrompts(
        encoder,
        Qwen2TokenizerFast.from_pretrained(folder / "tokenizer", local_files_only=True),
        device=device,
        layers=config.text_layers,
        max_tokens=config.text_tokens,
        offload=config.offload,
        cache_mib=config.prompt_cache_mib,
    )
