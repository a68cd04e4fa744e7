"""FLUX.2 Klein (kind "flux2-klein"): what its checkpoint must hold, what identifies it, loading."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.backbones.flux2_config import Flux2KleinConfig
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
_BYTES = {"bf16": 2, "fp32": 4}
_UNUSED = ("bn.num_batches_tracked", "lm_head.weight")
"""Tensors that a checkpoint may hold or lack: nothing reads them."""
_TOKENIZER = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json")
_TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True)
class Found:
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
        found = inspect(config)
        kind = "distilled, 4 steps" if found.is_distilled else "base"
        return (
            f"{found.folder}: FLUX.2 Klein ({kind}), {found.num_double} + {found.num_single} blocks"
        )

    def weights(name: str) -> Callable[[], str]:
        def check() -> str:
            inspect(config)
            count, size = check_weights(locate(config.base, FIELD), name)
            return f"{count} tensors, {size / 2**30:.1f} GiB"

        return check

    rows: dict[str, Callable[[], str]] = {"pipeline": layout}
    return rows | {name: weights(name) for name in PARTS}


def verify(config: Flux2KleinConfig) -> Found:
    """All checks at once. UserError for the first that fails."""
    found = inspect(config)
    for name in PARTS:
        check_weights(found.folder, name)
    return found


def fingerprint(config: Flux2KleinConfig) -> str:
    """Hash of weights, tokeniser, schedule and settings; loads no model."""
    found = inspect(config)
    folder = found.folder
    files = [file for name in PARTS for file in weight_files(folder / name, FIELD)]
    files += [folder / name / "config.json" for name in PARTS]
    files += [folder / "scheduler" / "scheduler_config.json"]
    tokenizer = (folder / "tokenizer" / name for name in (*_TOKENIZER, _TEMPLATE))
    files += [file for file in tokenizer if file.is_file()]
    return digest_files(files, config.result_settings(), f"distilled {found.is_distilled}")


def inspect(config: Flux2KleinConfig) -> Found:
    """The checkpoint's JSON, checked against the settings. UserError for another pipeline, missing
    parts, and sizes or layers that do not fit."""
    folder = locate(config.base, FIELD)
    require_class(folder, "Flux2KleinPipeline", FIELD)
    about = {name: _part(folder / name, wanted) for name, wanted in PARTS.items()}
    _check_scheduler(folder / "scheduler")
    _check_tokenizer(folder / "tokenizer")
    transformer, vae, text = (about[name] for name in PARTS)
    found = Found(
        folder=folder,
        is_distilled=bool(read_json(folder / "model_index.json", FIELD).get("is_distilled")),
        num_double=transformer["num_layers"],
        num_single=transformer["num_single_layers"],
        token_pixels=2 ** len(vae["block_out_channels"]),
    )
    _check_widths(config, folder, transformer, vae, text)
    _check_sizes(config, found)
    _check_blocks(config, found)
    return found


def _part(folder: Path, wanted: str) -> dict[str, Any]:
    require_class(folder, wanted, FIELD)
    return read_json(folder / "config.json", FIELD)


def _check_scheduler(folder: Path) -> None:
    path = folder / "scheduler_config.json"
    about = read_json(path, FIELD)
    if about.get("_class_name") != SCHEDULER:
        raise UserError(f"{FIELD}: {path} is a {about.get('_class_name')}, expected {SCHEDULER}")
    for name in ("stochastic_sampling", "invert_sigmas"):
        if about.get(name):
            raise UserError(f"{FIELD}: {path} sets {name}; sampling here is plain Euler steps")


def _check_tokenizer(folder: Path) -> None:
    if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
        raise UserError(
            f"{FIELD}: {folder} holds neither tokenizer.json nor vocab.json; download it again "
            "with `focusdpo fetch` and this preset"
        )
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


def _check_sizes(config: Flux2KleinConfig, found: Found) -> None:
    for name, sides in (
        ("image_size", config.image_size),
        ("reference_size", (config.reference_size,)),
    ):
        if any(side % found.token_pixels for side in sides):
            raise UserError(
                f"models.backbone.{name} {' x '.join(map(str, sides))}: this model's tokens are "
                f"{found.token_pixels} pixels wide, so sides are multiples of {found.token_pixels}"
            )


def _check_blocks(config: Flux2KleinConfig, found: Found) -> None:
    known = [f"double.{i}" for i in range(found.num_double)]
    known += [f"single.{i}" for i in range(found.num_single)]
    if unknown := [block for block in config.blocks if block not in known]:
        raise UserError(
            f"models.backbone.blocks: no block {unknown[0]!r} in this model; it has double.0 to "
            f"double.{found.num_double - 1} and single.0 to single.{found.num_single - 1}"
        )


def require_memory(config: Flux2KleinConfig, device: str) -> None:
    """UserError when a GPU's free memory cannot hold the weights that stay on it."""
    import torch

    if torch.device(device).type != "cuda":
        return
    needed = 0
    for name in PARTS:
        if name == "text_encoder" and config.offload:
            continue
        width = _BYTES[config.vae_dtype if name == "vae" else config.dtype]
        headers = read_headers(weight_files(locate(config.base, FIELD) / name, FIELD), FIELD)
        needed += width * sum(prod(about.shape) for about in headers.values())
    free, _ = torch.cuda.mem_get_info(device)
    if needed > free:
        raise UserError(
            f"models.backbone: {needed / 2**30:.1f} GiB of weights, and {device} has "
            f"{free / 2**30:.1f} GiB free. Set models.backbone.offload to true, take the 4B "
            "checkpoint, or a larger GPU"
        )


def check_weights(folder: Path, name: str) -> tuple[int, int]:
    """Number of tensors and bytes of a part. UserError for missing shards, a pickle, a file that
    was cut off, and tensors that are missing, unexpected or of another shape."""
    files = weight_files(folder / name, FIELD)
    found = read_headers(files, FIELD)
    wanted = {
        tensor: tuple(value.shape)
        for tensor, value in _empty(folder / name, name).state_dict().items()
        if tensor not in _UNUSED
    }
    known = {tensor: about for tensor, about in found.items() if tensor not in _UNUSED}
    require_tensors(known, wanted, FIELD, f"{PARTS[name]} in {folder / name}")
    return len(found), sum(file.stat().st_size for file in files)


def _empty(folder: Path, name: str) -> nn.Module:
    """The model without memory for its weights."""
    import diffusers
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    with torch.device("meta"):
        if name == "text_encoder":
            return Qwen3ForCausalLM(Qwen3Config.from_pretrained(folder))
        model: nn.Module = getattr(diffusers, PARTS[name]).from_config(
            read_json(folder / "config.json", FIELD)
        )
        return model


def build(config: Flux2KleinConfig, device: str) -> Flux2KleinBackbone:
    """The backbone on `device`, frozen, in evaluation mode. UserError, before a weight is read, for
    a checkpoint that is incomplete or another model's and for a device with too little memory."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    from focusdpo.model.backbones.flux import SamplingConfig
    from focusdpo.model.backbones.flux2_backbone import Flux2KleinBackbone, middle_blocks

    found = verify(config)
    require_memory(config, device)
    folder, steps = found.folder, config.steps or (4 if found.is_distilled else 50)
    transformer, autoencoder = _load_models(config, folder, device)
    return Flux2KleinBackbone(
        transformer,
        autoencoder,
        _load_prompts(config, folder, device),
        FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        image_size=config.image_size,
        reference_size=(config.reference_size,) * 2,
        default_blocks=config.blocks or middle_blocks(found.num_double),
        token_pixels=found.token_pixels,
        sampling=SamplingConfig(
            steps=steps,
            guidance=1.0 if found.is_distilled else config.guidance,
            strength=config.strength,
        ),
        fingerprint=fingerprint(config),
    )


def _load_models(
    config: Flux2KleinConfig, folder: Path, device: str
) -> tuple[nn.Module, nn.Module]:
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel

    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
    transformer: nn.Module = Flux2Transformer2DModel.from_pretrained(
        folder / "transformer", dtype=torch_dtype(config.dtype), **options
    )
    autoencoder: nn.Module = AutoencoderKLFlux2.from_pretrained(
        folder / "vae", dtype=torch_dtype(config.vae_dtype), **options
    )
    for module in (transformer, autoencoder):
        module.to(device).eval().requires_grad_(False)
    return transformer, autoencoder


def _load_prompts(config: Flux2KleinConfig, folder: Path, device: str) -> QwenPrompts:
    from transformers import Qwen2TokenizerFast, Qwen3ForCausalLM

    from focusdpo.model.backbones.flux2_backbone import QwenPrompts

    whole: Any = Qwen3ForCausalLM.from_pretrained(
        folder / "text_encoder",
        dtype=torch_dtype(config.dtype),
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


def torch_dtype(name: str) -> Any:
    """torch's type of that name in the settings."""
    import torch

    return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]
