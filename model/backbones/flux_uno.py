"""FLUX.1 + UNO: what its checkpoints must hold, what identifies them, how they are loaded.

The base is a folder in diffusers' layout (FLUX.1-dev or schnell), UNO its own LoRA file. UNO is
merged while loading, so that the reference policy of training is UNO and the only LoRA ever on the
transformer is the policy.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.backbones.flux_uno_config import FluxUnoConfig
from focusdpo.model.backbones.uno_lora import FILE, check_uno, fuse_uno, uno_file
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
_BYTES = {"bf16": 2, "fp32": 4, "8bit": 1.05, "4bit": 0.55}
"""Per weight; bitsandbytes keeps scales and the unquantised norms beside its 1 or 0.5."""


def checks(config: FluxUnoConfig) -> dict[str, Callable[[], str]]:
    """Rows of `focusdpo doctor`; each tells what was found or raises UserError."""
    rows: dict[str, Callable[[], str]] = {"pipeline": lambda: _check_pipeline(config)}
    for name in MODELS:
        rows[name] = lambda name=name: _check_model(config, name)  # type: ignore[misc]
    rows["tokenizers"] = lambda: _check_tokenisers(config)
    if config.uno is not None:
        rows["uno"] = lambda: _check_uno(config)
    if config.quantise != "none":
        rows["quantise"] = lambda: _check_quantise(config)
    rows["memory"] = lambda: f"{_device_bytes(config) / 2**30:.1f} GiB of weights on the device"
    return rows


def _check_pipeline(config: FluxUnoConfig) -> str:
    base = locate(config.base, BASE)
    require_class(base, "FluxPipeline", BASE)
    index = read_json(base / "model_index.json", BASE)
    for name, wanted in MODELS.items():
        found = (index.get(name) or [None, None])[1]
        if found != wanted:
            raise UserError(f"{BASE}: {base}/model_index.json: {name} is {found}, not {wanted}")
    schedule = read_json(base / "scheduler" / "scheduler_config.json", BASE)
    if schedule.get("_class_name") != "FlowMatchEulerDiscreteScheduler":
        raise UserError(
            f"{BASE}: {base}/scheduler holds {schedule.get('_class_name')}, expected "
            "FlowMatchEulerDiscreteScheduler"
        )
    about = read_json(base / "transformer" / "config.json", BASE)
    kind = "guidance-distilled (dev)" if about.get("guidance_embeds") else "no guidance (schnell)"
    return f"{base}: FluxPipeline, {kind}"


def _check_model(config: FluxUnoConfig, name: str) -> str:
    """A model's class, and that its weights are those its config describes."""
    folder = locate(config.base, BASE) / name
    require_class(folder, MODELS[name], BASE)
    files = weight_files(folder, BASE)
    found = read_headers(files, BASE)
    wanted = _shapes(name, folder)
    if name.startswith("text_encoder"):
        found, wanted = _plain_names(found), _plain_names(wanted)
    what = f"the {MODELS[name]} that {folder}/config.json describes"
    require_tensors(found, wanted, BASE, what, exact=not name.startswith("text_encoder"))
    if name == "vae":
        _check_sizes(config, read_json(folder / "config.json", BASE))
    if name == "transformer" and config.blocks:
        _check_blocks(config, read_json(folder / "config.json", BASE))
    weights = sum(math.prod(about.shape) for about in found.values())
    return f"{MODELS[name]}, {weights / 1e6:,.0f} M weights in {len(files)} files"


def _plain_names(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Without what differs between versions of transformers: CLIP's prefix, buffers that are no
    longer stored, and the second name of T5's one embedding."""
    dropped = ("position_ids", "encoder.embed_tokens.weight")
    return {
        name.removeprefix("text_model."): value
        for name, value in tensors.items()
        if not name.endswith(dropped)
    }


def _shapes(name: str, folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's tensors by its config, without weights."""
    import diffusers
    import torch
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    about = read_json(folder / "config.json", BASE)
    try:
        with torch.device("meta"):
            model: nn.Module
            if name.startswith("text_encoder"):
                kind = getattr(transformers, MODELS[name])
                model = kind(kind.config_class.from_dict(about))
            else:
                model = getattr(diffusers, MODELS[name]).from_config(about)
    except (TypeError, ValueError, KeyError, StrictDataclassError) as error:
        raise UserError(f"{BASE}: {folder}/config.json describes no model: {error}") from error
    state: Mapping[str, torch.Tensor] = model.state_dict()
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def _check_sizes(config: FluxUnoConfig, vae: Mapping[str, Any]) -> None:
    pixels = 2 ** len(vae["block_out_channels"])
    for size in (*config.image_size, *config.reference_sizes):
        if size % pixels:
            raise UserError(
                f"models.backbone.image_size, reference_sizes: {size} is no multiple of {pixels} "
                "pixels, one token of this base"
            )


def _check_blocks(config: FluxUnoConfig, transformer: Mapping[str, Any]) -> None:
    counts = {"double": transformer["num_layers"], "single": transformer["num_single_layers"]}
    for block in config.blocks:
        kind, _, index = block.partition(".")
        if not index.isdigit() or int(index) >= counts.get(kind, 0):
            raise UserError(
                f"models.backbone.blocks: no block {block!r}; this base has double.0 to double."
                f"{counts['double'] - 1} and single.0 to single.{counts['single'] - 1}"
            )


def _check_tokenisers(config: FluxUnoConfig) -> str:
    base = locate(config.base, BASE)
    for name, sets in TOKENISERS.items():
        if not any(all((base / name / file).is_file() for file in files) for files in sets):
            wanted = " or ".join(" + ".join(files) for files in sets)
            raise UserError(f"{BASE}: {base / name} lacks {wanted}; download the folder again")
    return "CLIP's and T5's are there"


def _check_uno(config: FluxUnoConfig) -> str:
    assert config.uno is not None
    file = uno_file(config.uno, UNO)
    transformer = read_json(locate(config.base, BASE) / "transformer" / "config.json", BASE)
    rank = check_uno(file, transformer, UNO)
    layers = transformer["num_layers"], transformer["num_single_layers"]
    return f"{file}: rank {rank}, {layers[0]} double and {layers[1]} single blocks"


def _check_quantise(config: FluxUnoConfig) -> str:
    import importlib.util

    field = f"models.backbone.quantise: {config.quantise}"
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"{field} needs bitsandbytes: pip install 'bitsandbytes>=0.45', or set it to none"
        )
    import torch

    if not torch.cuda.is_available():
        raise UserError(f"{field} needs a GPU, and torch sees none; set it to none")
    return f"{config.quantise} by bitsandbytes"


def _device_bytes(config: FluxUnoConfig) -> float:
    """What the weights take on the device."""
    base, needed = locate(config.base, BASE), 0.0
    for name in MODELS:
        kind: str = config.vae_dtype if name == "vae" else config.dtype
        if name == "transformer":
            kind = kind if config.quantise == "none" else config.quantise
        elif config.offload:
            continue
        found = read_headers(weight_files(base / name, BASE), BASE)
        needed += _BYTES[kind] * sum(math.prod(about.shape) for about in found.values())
    return needed


def require_memory(config: FluxUnoConfig, device: str) -> None:
    """UserError when a GPU's free memory cannot hold the weights."""
    import torch

    if torch.device(device).type != "cuda":
        return
    needed, (free, _) = _device_bytes(config), torch.cuda.mem_get_info(device)
    if needed > free:
        raise UserError(
            f"models.backbone: {needed / 2**30:.1f} GiB of weights, and {device} has "
            f"{free / 2**30:.1f} GiB free. Set models.backbone.offload to true, "
            "models.backbone.quantise to 4bit, or take a larger GPU"
        )


log = logging.getLogger(__name__)

_KEPT = ("x_embedder", "context_embedder", "time_text_embed", "norm_out")
"""Layers at the ends, never quantised (by 4 bits either): small, and all tokens pass them."""


def sources(config: FluxUnoConfig) -> list[tuple[str, str, list[str] | None]]:
    """What `focusdpo fetch` downloads; the single-file weights at FLUX.1's root (24 GB more) are
    left there."""
    folders = [f"{name}/*" for name in (*MODELS, *TOKENISERS, "scheduler")]
    found: list[tuple[str, str, list[str] | None]] = [
        (BASE, config.base, ["model_index.json", *folders])
    ]
    if config.uno is not None:
        found.append((UNO, config.uno, [FILE]))
    return found


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

    from focusdpo.model.backbones.flux_uno_backbone import DTYPES, FluxUnoBackbone, LentCodec

    for check in checks(config).values():
        check()
    base = locate(config.base, BASE)
    require_memory(config, device)
    autoencoder = AutoencoderKL.from_pretrained(
        base / "vae", dtype=DTYPES[config.vae_dtype], local_files_only=True
    )
    transformer = _transformer(config, base, device)
    for module in (transformer, autoencoder):
        module.eval().requires_grad_(False)
    return FluxUnoBackbone(
        transformer,
        LentCodec(autoencoder, device, config.offload),
        _prompts(config, base, device),
        FlowMatchEulerDiscreteScheduler.from_pretrained(base / "scheduler", local_files_only=True),
        config,
        fingerprint(config),
    )


def _transformer(config: FluxUnoConfig, base: Path, device: str) -> Any:
    """The transformer on the device with UNO merged, quantised afterwards where that is asked."""
    from diffusers import FluxTransformer2DModel

    from focusdpo.model.backbones.flux_uno_backbone import DTYPES

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
    import torch
    from diffusers import BitsAndBytesConfig, FluxTransformer2DModel

    from focusdpo.model.backbones.flux_uno_backbone import DTYPES

    dtype = DTYPES[config.dtype]
    options: dict[str, Any] = {"load_in_8bit": True}
    if config.quantise == "4bit":
        options = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": dtype,
        }
    how = BitsAndBytesConfig(llm_int8_skip_modules=list(_KEPT), **options)
    where = torch.device(device)
    index = torch.cuda.current_device() if where.index is None else where.index
    return FluxTransformer2DModel.from_pretrained(
        folder,
        quantization_config=how,
        dtype=dtype,
        device_map={"": index},
        local_files_only=True,
        use_safetensors=True,
    )


def _prompts(config: FluxUnoConfig, base: Path, device: str) -> FluxPrompts:
    from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

    from focusdpo.model.backbones.flux_uno_backbone import DTYPES, FluxPrompts

    options = {"dtype": DTYPES[config.dtype], "local_files_only": True, "use_safetensors": True}
    clip = CLIPTextModel.from_pretrained(base / "text_encoder", **options)
    t5 = T5EncoderModel.from_pretrained(base / "text_encoder_2", **options)
    for module in (clip, t5):
        module.eval().requires_grad_(False)
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
    found = [base / name for name in names]
    for name in TOKENISERS:
        found += sorted(f for f in (base / name).glob("*") if f.is_file())
    return [digest_files([file], file.name) for file in found if file.is_file()]
