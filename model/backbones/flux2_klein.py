"""FLUX.2 Klein (kind "flux2-klein"): what its checkpoint must hold, what identifies it, loading."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.backbones.flux_config import (
    Flux2KleinConfig,
    check_blocks,
    check_quantise,
    check_sides,
    middle_blocks,
)
from focusdpo.model.backbones.footprint import (
    KLEIN,
    Footprint,
    block_activations,
    block_flops,
    covered_numbers,
    decoder_bytes,
    lent_bytes,
    lora_per_rank,
    rows_bytes,
    weight_bytes,
)
from focusdpo.store.checkpoints import (
    TensorInfo,
    check_part,
    digest_files,
    locate,
    read_headers,
    read_json,
    require_class,
    require_files,
    require_memory,
    weight_files,
)

if TYPE_CHECKING:
    from torch import nn

    from focusdpo.model.backbones.flux2_backbone import Flux2KleinBackbone, QwenPrompts
    from focusdpo.model.backbones.offload import Deferred

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
_KEPT = (
    "x_embedder", "context_embedder", "time_guidance_embed", "norm_out", "proj_out",
    "double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation",
)  # fmt: skip
"""Layers that all tokens or all blocks pass, never quantised."""
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

    rows = {"pipeline": layout} | {name: partial(weights, name) for name in PARTS}
    if config.quantise != "none":
        rows["quantise"] = lambda: check_quantise(config.quantise)
    return rows


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
    advice = "Set models.backbone.offload to true, quantise to 4bit, or take a larger GPU"
    require_memory(footprint(config).device, device, "models.backbone", advice)
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
        is_distilled=checkpoint.is_distilled,
    )


def footprint(config: Flux2KleinConfig, references: int = 2) -> Footprint:
    """What it takes of a machine, with so many references."""
    from focusdpo.model.backbones.flux2_backbone import lora_targets

    folder = locate(config.base, FIELD)
    header = {name: read_headers(weight_files(folder / name, FIELD), FIELD) for name in PARTS}
    about = read_json(folder / "transformer" / "config.json", FIELD)
    counts = about["num_layers"], about["num_single_layers"]
    pixels = check_sides({}, read_json(folder / "vae" / "config.json", FIELD))
    text = _read_layers(config, folder, header["text_encoder"])
    vae = weight_bytes(header["vae"], config.vae_dtype)
    whole = weight_bytes(header["transformer"], config.dtype)
    image = (prod(config.image_size) + references * config.reference_size**2) // pixels**2
    width = about["num_attention_heads"] * about["attention_head_dim"]
    targets = lora_targets(counts[1])
    distilled = bool(read_json(folder / "model_index.json", FIELD).get("is_distilled"))
    both = 1 if distilled else 2  # with guidance
    acts = block_activations(
        image + config.text_tokens,
        width,
        counts,
        KLEIN,
        len(config.blocks or middle_blocks(counts[0])),
    )
    return Footprint(
        device=weight_bytes(header["transformer"], config.dtype, config.quantise)
        + vae
        + (0 if config.offload else text),
        host=max(whole, weight_bytes(header["text_encoder"], config.dtype)),
        scratch=0,
        lora=lora_per_rank(header["transformer"], targets),
        fixed=False,
        decoding=lent_bytes(
            decoder_bytes(prod(config.image_size), config.vae_dtype), 0, text, config.offload
        ),
        flops=block_flops(header["transformer"], image, config.text_tokens, width, sum(counts)),
        rows=rows_bytes(4 * width),
        passes=both * (config.steps or (4 if distilled else 50)),
        **acts | {"painting": both * acts["painting"]},
        **covered_numbers(header["transformer"], targets),
    )


def _read_layers(config: Flux2KleinConfig, folder: Path, header: Mapping[str, TensorInfo]) -> float:
    """Bytes of the text encoder without the layers above the last one that is read."""
    read = max(config.text_layers) + 1

    def stays(name: str) -> bool:
        layer = re.search(r"layers\.(\d+)\.", name)
        return "lm_head" not in name and (layer is None or int(layer[1]) < read)

    kept = {name: about for name, about in header.items() if stays(name)}
    return weight_bytes(kept, config.dtype)


def _load_models(config: Flux2KleinConfig, folder: Path, device: str) -> tuple[nn.Module, Deferred]:
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel

    from focusdpo.model.backbones.offload import DTYPES, Deferred, in_few_bits

    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
    few = {"dtype": DTYPES[config.dtype]}
    if config.quantise != "none":
        few = in_few_bits(config.quantise, config.dtype, device, kept=_KEPT)
    transformer: nn.Module = Flux2Transformer2DModel.from_pretrained(
        folder / "transformer", **few, **options
    )
    if config.quantise == "none":  # else it is there, and may not be moved
        transformer.to(device)
    transformer.eval().requires_grad_(False)

    def autoencoder() -> nn.Module:
        model: Any = AutoencoderKLFlux2.from_pretrained(
            folder / "vae", dtype=DTYPES[config.vae_dtype], **options
        )
        return cast("nn.Module", model.to(device))

    return transformer, Deferred(autoencoder)


def _load_prompts(config: Flux2KleinConfig, folder: Path, device: str) -> QwenPrompts:
    from transformers import Qwen2TokenizerFast, Qwen3ForCausalLM

    from focusdpo.model.backbones.flux2_backbone import QwenPrompts
    from focusdpo.model.backbones.offload import DTYPES, Deferred

    def encoder() -> nn.Module:
        whole: Any = Qwen3ForCausalLM.from_pretrained(
            folder / "text_encoder",
            dtype=DTYPES[config.dtype],
            use_safetensors=True,
            local_files_only=True,
        )
        read = whole.model
        # Layers above the last one that is read, and the word head, would only take memory. One
        # more layer stays: the state behind the very last one is normalised.
        read.layers = read.layers[: max(config.text_layers) + 1]
        read.config.num_hidden_layers = len(read.layers)
        return cast("nn.Module", read.to("cpu" if config.offload else device))

    return QwenPrompts(
        Deferred(encoder),
        Qwen2TokenizerFast.from_pretrained(folder / "tokenizer", local_files_only=True),
        device=device,
        layers=config.text_layers,
        max_tokens=config.text_tokens,
        offload=config.offload,
        cache_mib=config.prompt_cache_mib,
    )
