"""FLUX.1 + UNO: what its checkpoints must hold, what identifies them, how they are loaded.

The base is a folder in diffusers' layout (FLUX.1-dev or schnell), UNO its own LoRA file. UNO is
merged while loading, so that the reference policy of training is UNO and the only LoRA ever on the
transformer is the policy.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.backbones.flux_config import (
    MULTIPLE,
    FluxUnoConfig,
    check_blocks,
    check_quantise,
    check_sides,
    middle_blocks,
)
from focusdpo.model.backbones.footprint import (
    FLUX,
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
from focusdpo.model.backbones.uno_lora import FILE, check_uno, fuse_uno, uno_file, uno_targets
from focusdpo.store.checkpoints import (
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
    from focusdpo.model.backbones.flux_uno_backbone import FluxPrompts, FluxUnoBackbone

BASE, UNO = "models.backbone.base", "models.backbone.uno"
MODELS = {
    "transformer": "FluxTransformer2DModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "T5EncoderModel",
}
TOKENISERS = {
    "tokenizer": (("vocab.json", "merges.txt"), ("tokenizer.json",)),
    "tokenizer_2": (("spiece.model",), ("tokenizer.json",)),
}
"""Files of which one set must be there."""


def checks(config: FluxUnoConfig) -> dict[str, Callable[[], str]]:
    """Rows of `focusdpo doctor`; each tells what was found or raises UserError."""
    rows: dict[str, Callable[[], str]] = {"pipeline": lambda: _check_pipeline(config)}
    rows |= {name: partial(_check_model, config, name) for name in MODELS}
    rows["tokenizers"] = lambda: _check_tokenisers(config)
    if config.uno is not None:
        rows["uno"] = lambda: _check_uno(config)
    if config.quantise != "none":
        rows["quantise"] = lambda: check_quantise(config.quantise)
    return rows


def _check_pipeline(config: FluxUnoConfig) -> str:
    base = locate(config.base, BASE)
    require_class(base, "FluxPipeline", BASE)
    index = read_json(base / "model_index.json", BASE)
    for name, wanted in MODELS.items():
        named = (index.get(name) or [None, None])[1]
        if named != wanted:
            raise UserError(f"{BASE}: {base}/model_index.json: {name} is {named}, not {wanted}")
    require_class(base / "scheduler", "FlowMatchEulerDiscreteScheduler", BASE)
    about = read_json(base / "transformer" / "config.json", BASE)
    kind = "guidance-distilled (dev)" if about.get("guidance_embeds") else "no guidance (schnell)"
    return f"{base}: FluxPipeline, {kind}"


def _check_model(config: FluxUnoConfig, name: str) -> str:
    """A model's class, and that its weights are those its config describes."""
    folder = locate(config.base, BASE) / name
    line = check_part(folder, MODELS[name], BASE)
    about = read_json(folder / "config.json", BASE)
    if name == "vae":
        sides = {"image_size": config.image_size, "reference_sizes": config.reference_sizes}
        check_sides(sides, about)
    if name == "transformer":
        check_blocks(config.blocks, about)
    return line


def _check_tokenisers(config: FluxUnoConfig) -> str:
    base = locate(config.base, BASE)
    for name, sets in TOKENISERS.items():
        require_files(base / name, sets, BASE)
    return "CLIP's and T5's are there"


def _check_uno(config: FluxUnoConfig) -> str:
    assert config.uno is not None
    file = uno_file(config.uno, UNO)
    transformer = read_json(locate(config.base, BASE) / "transformer" / "config.json", BASE)
    rank = check_uno(file, transformer, UNO)
    layers = transformer["num_layers"], transformer["num_single_layers"]
    return f"{file}: rank {rank}, {layers[0]} double and {layers[1]} single blocks"


def footprint(config: FluxUnoConfig, references: int = 2) -> Footprint:
    """What it takes of a machine, with so many references."""
    base = locate(config.base, BASE)
    header = {name: read_headers(weight_files(base / name, BASE), BASE) for name in MODELS}
    sizes = {name: weight_bytes(header[name], config.dtype) for name in header}
    sizes["vae"] = weight_bytes(header["vae"], config.vae_dtype)
    resident = weight_bytes(header["transformer"], config.dtype, config.quantise)
    waits = sizes["vae"] + sizes["text_encoder"] + sizes["text_encoder_2"]
    about = read_json(base / "transformer" / "config.json", BASE)
    counts = about["num_layers"], about["num_single_layers"]
    side = config.reference_side(references) // MULTIPLE
    image = prod(config.image_size) // MULTIPLE**2 + references * side**2
    width = about["num_attention_heads"] * about["attention_head_dim"]
    merged = config.quantise != "none" and config.uno is not None
    targets = uno_targets(*counts)
    return Footprint(
        device=resident + (0 if config.offload else waits),
        host=max(sizes["transformer"], config.prompt_cache_mib * 2**20 * config.offload + waits),
        scratch=sizes["transformer"] if merged else 0,
        lora=lora_per_rank(header["transformer"], targets),
        fixed=False,
        decoding=lent_bytes(
            decoder_bytes(4 * prod(config.image_size), config.vae_dtype),
            sizes["vae"],
            waits - sizes["vae"],
            config.offload,
        ),
        flops=block_flops(header["transformer"], image, config.max_text_tokens, width, sum(counts)),
        passes=config.steps,
        rows=rows_bytes(5 * width),  # a single block's output: attention and feed-forward
        **block_activations(
            image + config.max_text_tokens,
            width,
            counts,
            FLUX,
            len(config.blocks or middle_blocks(counts[0])),
        ),
        **covered_numbers(header["transformer"], targets),
    )


log = logging.getLogger(__name__)

_KEPT = ("x_embedder", "context_embedder", "time_text_embed", "norm_out")
"""Layers at the ends, never quantised (by 4 bits either): small, and all tokens pass them."""


def sources(config: FluxUnoConfig) -> list[tuple[str, str, list[str] | None]]:
    """What `focusdpo fetch` downloads; the single-file weights at FLUX.1's root (24 GB more) are
    left there."""
    folders = [f"{name}/*" for name in (*MODELS, *TOKENISERS, "scheduler")]
    sources: list[tuple[str, str, list[str] | None]] = [
        (BASE, config.base, ["model_index.json", *folders])
    ]
    if config.uno is not None:
        sources.append((UNO, config.uno, [FILE]))
    return sources


def fingerprint(config: FluxUnoConfig) -> str:
    """Hash of all weights and of the settings that change results."""
    base = locate(config.base, BASE)
    files = [f for name in MODELS for f in weight_files(base / name, BASE)]
    if config.uno is not None:
        files.append(uno_file(config.uno, UNO))
    return digest_files(files, config.result_settings(), *_small_files(base))


def build(config: FluxUnoConfig, device: str) -> FluxUnoBackbone:
    """The backbone, checked, loaded and with UNO merged; nothing of it is trainable. UserError for
    whatever `checks` finds and for a device with too little memory."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler

    from focusdpo.model.backbones.flux_uno_backbone import FluxUnoBackbone, LentCodec
    from focusdpo.model.backbones.offload import DTYPES, Deferred

    for check in checks(config).values():
        check()
    base = locate(config.base, BASE)
    advice = "Set models.backbone.offload to true, quantise to 4bit, or take a larger GPU"
    require_memory(footprint(config).device, device, "models.backbone", advice)
    options: dict[str, Any] = {"dtype": DTYPES[config.vae_dtype], "local_files_only": True}
    autoencoder = Deferred(lambda: AutoencoderKL.from_pretrained(base / "vae", **options))
    channels = read_json(base / "vae" / "config.json", BASE)["block_out_channels"]
    transformer = _transformer(config, base, device)
    transformer.eval().requires_grad_(False)
    return FluxUnoBackbone(
        transformer,
        LentCodec(autoencoder, device, config.offload),
        2 ** len(channels),
        _prompts(config, base, device),
        FlowMatchEulerDiscreteScheduler.from_pretrained(base / "scheduler", local_files_only=True),
        config,
        fingerprint(config),
    )


def _transformer(config: FluxUnoConfig, base: Path, device: str) -> Any:
    """The transformer on the device with UNO merged, quantised afterwards where that is asked."""
    from diffusers import FluxTransformer2DModel

    from focusdpo.model.backbones.offload import DTYPES

    dtype, folder = DTYPES[config.dtype], base / "transformer"
    if config.quantise != "none" and config.uno is None:
        return _quantised(config, folder, device)
    options = {"dtype": dtype, "local_files_only": True, "use_safetensors": True}
    transformer = FluxTransformer2DModel.from_pretrained(folder, **options)
    if config.quantise == "none":
        transformer.to(device)
    if config.uno is not None:
        layers = fuse_uno(transformer, uno_file(config.uno, UNO))
        log.info("flux-uno: UNO's LoRA merged into %d layers", layers)
    if config.quantise == "none":
        return transformer
    # diffusers quantises while it reads files: what was merged goes through a folder.
    with tempfile.TemporaryDirectory(prefix="flux-uno-") as merged:
        transformer.save_pretrained(merged)
        del transformer
        return _quantised(config, Path(merged), device)


def _quantised(config: FluxUnoConfig, folder: Path, device: str) -> Any:
    from diffusers import FluxTransformer2DModel

    from focusdpo.model.backbones.offload import in_few_bits

    options = in_few_bits(config.quantise, config.dtype, device, kept=_KEPT)
    return FluxTransformer2DModel.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, **options
    )


def _prompts(config: FluxUnoConfig, base: Path, device: str) -> FluxPrompts:
    from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

    from focusdpo.model.backbones.flux_uno_backbone import FluxPrompts
    from focusdpo.model.backbones.offload import DTYPES, Deferred

    options = {"dtype": DTYPES[config.dtype], "local_files_only": True, "use_safetensors": True}
    clip = Deferred(lambda: CLIPTextModel.from_pretrained(base / "text_encoder", **options))
    t5 = Deferred(lambda: T5EncoderModel.from_pretrained(base / "text_encoder_2", **options))
    files = [f for n in ("text_encoder", "text_encoder_2") for f in weight_files(base / n, BASE)]
    settings = (config.dtype, str(config.max_text_tokens), *_small_files(base))
    return FluxPrompts(
        clip,
        AutoTokenizer.from_pretrained(base / "tokenizer", local_files_only=True),
        t5,
        AutoTokenizer.from_pretrained(base / "tokenizer_2", local_files_only=True),
        device=device,
        max_tokens=config.max_text_tokens,
        offload=config.offload,
        fingerprint=digest_files(files, *settings),
        cache_mib=config.prompt_cache_mib,
        folder=Path(config.prompt_cache).expanduser() if config.prompt_cache else None,
    )


def _small_files(base: Path) -> list[str]:
    """Configs, schedule and tokenisers as text: small, and each changes results."""
    names = [f"{name}/config.json" for name in MODELS] + ["scheduler/scheduler_config.json"]
    files = [base / name for name in names]
    for name in TOKENISERS:
        files += sorted(f for f in (base / name).glob("*") if f.is_file())
    return [digest_files([file], file.name) for file in files if file.is_file()]
