"""The SDXL + IP-Adapter-Plus component: what its checkpoint must hold, its fingerprint, loading it.

Imports no torch before `build`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.backbones.flux_config import check_quantise
from focusdpo.model.backbones.footprint import (
    SDXL_PAINTING,
    Footprint,
    covered_numbers,
    decoder_bytes,
    lent_bytes,
    lora_per_rank,
    sdxl_flops,
    unet_activations,
    weight_bytes,
)
from focusdpo.model.backbones.sdxl_config import (
    ENCODER,
    KV_TARGETS,
    LORA_TARGETS,
    PLUS,
    SdxlIpAdapterConfig,
    check_scheduler,
)
from focusdpo.store.checkpoints import (
    TensorInfo,
    check_part,
    digest_files,
    locate,
    num_weights,
    part_files,
    part_patterns,
    read_header,
    read_headers,
    read_json,
    require_class,
    require_files,
    require_memory,
    require_tensors,
)

if TYPE_CHECKING:
    from torch import Tensor

    from focusdpo.model.backbones.sdxl_backbone import SdxlBackbone

Shapes = dict[str, tuple[int, ...]]

HEAD = 64
"""Width of a head of the resampler."""


def _each(value: Any, count: int) -> list[Any]:
    """A config entry that is given once or per level."""
    return list(value) if isinstance(value, list | tuple) else [value] * count


def cross_attention_widths(unet: Mapping[str, Any]) -> list[int]:
    """Width of each cross-attention of a UNet config, in the order in which IP-Adapter counts
    them: down, up, mid."""
    widths = list(unet["block_out_channels"])
    levels = len(widths)
    layers = _each(unet.get("layers_per_block", 2), levels)
    depth = _each(unet.get("transformer_layers_per_block", 1), levels)
    attentions: list[int] = []
    for i, kind in enumerate(unet["down_block_types"]):
        if "CrossAttn" in kind:
            attentions += [widths[i]] * layers[i] * depth[i]
    for i, kind in enumerate(unet["up_block_types"]):
        if "CrossAttn" in kind:
            at = levels - 1 - i
            attentions += [widths[at]] * (layers[at] + 1) * depth[at]
    if "CrossAttn" in (unet.get("mid_block_type") or "UNetMidBlock2DCrossAttn"):
        attentions += [widths[-1]] * depth[-1]
    return attentions


def image_keys(unet: Mapping[str, Any]) -> Shapes:
    """`ip_adapter.*` of a file for this UNet: keys and values per cross-attention, odd numbers."""
    inner = unet["cross_attention_dim"]
    return {
        f"ip_adapter.{2 * i + 1}.to_{kind}_ip.weight": (width, inner)
        for i, width in enumerate(cross_attention_widths(unet))
        for kind in ("k", "v")
    }


def plus_resampler(
    header: Mapping[str, TensorInfo], outside: int, inside: int, path: Path, field: str
) -> tuple[Shapes, int]:
    """`image_proj.*` of IP-Adapter-Plus and how many image tokens it makes, from the sizes of its
    learned queries; `inside` is CLIP's width, `outside` the UNet's.

    UserError for the other IP-Adapters and for one of another CLIP or another UNet."""
    names = {name.removeprefix("image_proj.") for name in header}
    if "latents" not in names:
        other = "the IP-Adapter without Plus" if "proj.weight" in names else "no IP-Adapter-Plus"
        if "perceiver_resampler.proj_in.weight" in names or "proj.0.weight" in names:
            other = "a face IP-Adapter"
        raise UserError(
            f"{field}: {path} is {other}; ip-adapter-plus_sdxl_vit-h.safetensors is expected"
        )
    _, queries, wide = header["image_proj.latents"].shape
    reads = header.get("image_proj.proj_in.weight")
    if reads is not None and reads.shape[1] != inside:
        raise UserError(
            f"{field}: {path} reads {reads.shape[1]} channels, the image encoder gives {inside}; "
            "IP-Adapter-Plus vit-h belongs to models/image_encoder (ViT-H, 1280)"
        )
    writes = header.get("image_proj.proj_out.weight")
    if writes is not None and writes.shape[0] != outside:
        raise UserError(
            f"{field}: {path} writes {writes.shape[0]} channels, the UNet reads {outside}: it is "
            "an adapter for another base (768: Stable Diffusion 1.5)"
        )
    first = header.get("image_proj.layers.0.0.to_q.weight")
    inner = first.shape[0] if first is not None else HEAD
    if inner % HEAD:
        raise UserError(f"{field}: {path}: its attention is {inner} wide, no multiple of {HEAD}")
    shapes: Shapes = {
        "latents": (1, queries, wide),
        "proj_in.weight": (wide, inside),
        "proj_in.bias": (wide,),
        "proj_out.weight": (outside, wide),
        "proj_out.bias": (outside,),
        "norm_out.weight": (outside,),
        "norm_out.bias": (outside,),
    }
    for i in range(4):  # diffusers builds no other depth
        layer = f"layers.{i}"
        for norm in ("0.norm1", "0.norm2", "1.0"):
            shapes |= {f"{layer}.{norm}.{part}": (wide,) for part in ("weight", "bias")}
        shapes[f"{layer}.0.to_q.weight"] = (inner, wide)
        shapes[f"{layer}.0.to_kv.weight"] = (2 * inner, wide)
        shapes[f"{layer}.0.to_out.weight"] = (wide, inner)
        shapes[f"{layer}.1.1.weight"] = (4 * wide, wide)
        shapes[f"{layer}.1.3.weight"] = (wide, 4 * wide)
    return {f"image_proj.{name}": shape for name, shape in shapes.items()}, queries


_BASE, _ADAPTER, _ENCODER = (
    f"models.backbone.{name}" for name in ("base", "adapter", "image_encoder")
)
_UNET = {"in_channels": 4, "out_channels": 4, "addition_embed_type": "text_time"}


def checks(config: SdxlIpAdapterConfig) -> dict[str, Callable[[], str]]:
    """Rows of `focusdpo doctor`: each says what was found, or raises UserError."""
    rows: dict[str, Callable[[SdxlIpAdapterConfig], str]] = {
        "SDXL UNet": _check_unet,
        "SDXL autoencoder": _check_autoencoder,
        "SDXL text encoders": _check_text,
        "SDXL scheduler": _check_schedule,
        "IP-Adapter-Plus": _check_adapter,
        "CLIP image encoder": _check_encoder,
    }
    if config.quantise != "none":
        rows["quantise"] = lambda config: check_quantise(config.quantise)
    return {name: partial(check, config) for name, check in rows.items()}


def fingerprint(config: SdxlIpAdapterConfig) -> str:
    """Hash of all weights, of the small files that say how they are used, and of the settings."""
    base, files = locate(config.base, _BASE), []
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        files += [base / part / "config.json", *part_files(base / part, _BASE, config.variant)]
    for part in ("tokenizer", "tokenizer_2", "scheduler"):
        files += sorted(file for file in (base / part).iterdir() if file.is_file())
    files.append(base / "model_index.json")
    encoder = encoder_folder(config)
    files += [adapter_path(config), encoder / "config.json", *part_files(encoder, _ENCODER)]
    return digest_files(files, config.result_settings())


def sources(config: SdxlIpAdapterConfig) -> list[tuple[str, str, list[str] | None]]:
    """What `focusdpo fetch` downloads: about 7 GB with variant fp16, 14 GB without; the adapter
    0.85 GB, its image encoder 2.5 GB."""
    parts = [
        "model_index.json",
        "*/config.json",
        "scheduler/*",
        "tokenizer*/*",
        *part_patterns("unet/diffusion_pytorch_model", config.variant),
        *part_patterns("vae/diffusion_pytorch_model", config.variant),
        *part_patterns("text_encoder*/model", config.variant),
    ]
    wanted: list[tuple[str, str, list[str] | None]] = [(_BASE, config.base, parts)]
    adapter = [config.adapter_file]
    if config.image_encoder is None:
        adapter += [f"{ENCODER}/config.json", f"{ENCODER}/*.safetensors"]
    else:
        wanted.append((_ENCODER, config.image_encoder, ["config.json", "*.safetensors"]))
    return [*wanted, (_ADAPTER, config.adapter, adapter)]


def build(config: SdxlIpAdapterConfig, device: str) -> SdxlBackbone:
    """The backbone on a device. UserError for checkpoints that `checks` finds wrong."""
    for check in checks(config).values():
        check()
    from focusdpo.model.backbones.sdxl_backbone import load

    files = adapter_path(config), encoder_folder(config)
    advice = "Set models.backbone.offload to true, quantise to 4bit, or take a larger GPU"
    require_memory(footprint(config).device, device, "models.backbone", advice)
    return load(config, device, fingerprint(config), *files)


def footprint(config: SdxlIpAdapterConfig, references: int = 2) -> Footprint:
    """What it takes of a machine; how many references there are hardly matters (counted of two)."""
    base = _base(config)
    parts = ("unet", "vae", "text_encoder", "text_encoder_2")
    header = {
        name: read_headers(part_files(base / name, _BASE, config.variant), _BASE) for name in parts
    }
    image = read_header(adapter_path(config), _ADAPTER)
    keys = {name: about for name, about in image.items() if name.startswith("ip_adapter.")}
    tower = read_headers(part_files(encoder_folder(config), _ENCODER), _ENCODER)
    seen = weight_bytes(tower, config.dtype) + weight_bytes(image, config.dtype)
    seen -= weight_bytes(keys, config.dtype)
    words = sum(weight_bytes(header[name], config.dtype) for name in parts[2:])
    vae = weight_bytes(header["vae"], config.vae_dtype)
    unet = weight_bytes(header["unet"], config.dtype, config.quantise)
    places = prod(config.image_size) / 64
    targets = [name for name in LORA_TARGETS if name not in KV_TARGETS]
    values = sum(sum(about.shape) for about in keys.values())
    trained = float(sum(prod(about.shape) for about in keys.values()))
    covered = covered_numbers(header["unet"], targets)
    covered["covered"] += trained
    covered["covered_block"] += 2 * max(prod(about.shape) for about in keys.values())
    kv = config.policy == "adapter_kv"
    both = 1 if config.guidance == 1 else 2
    return Footprint(
        device=unet
        + weight_bytes(keys, config.dtype)
        + (4 * trained if kv else 0)
        + (0 if config.offload else words + vae + seen),
        host=weight_bytes(header["unet"], config.dtype) + words + vae + seen,
        scratch=0,
        lora=trained if kv else lora_per_rank(header["unet"], targets) + values,
        fixed=kv,
        painting=both * SDXL_PAINTING * places,
        flops=sdxl_flops(places),
        passes=both * config.steps,
        decoding=lent_bytes(
            decoder_bytes(max(2**20, prod(config.image_size)), config.vae_dtype),
            vae,
            max(words, seen),
            config.offload,
        ),
        **unet_activations(places),
        **covered,
    )


def adapter_path(config: SdxlIpAdapterConfig) -> Path:
    """The adapter's safetensors file. UserError when it is not there."""
    source = locate(config.adapter, _ADAPTER)
    path = source if source.is_file() else source / config.adapter_file
    if path.is_file():
        return path
    pickle = path.with_suffix(".bin")
    if pickle.is_file():
        raise UserError(
            f"{_ADAPTER}: {pickle} is a pickle, which may run code when it is read; {path.name} is "
            f"expected: `hf download h94/IP-Adapter {PLUS}`"
        )
    raise UserError(
        f"{_ADAPTER}: {source} lacks {config.adapter_file}: "
        f"`hf download h94/IP-Adapter {PLUS} --local-dir DIR`"
    )


def encoder_folder(config: SdxlIpAdapterConfig) -> Path:
    """The folder of CLIP's vision tower. UserError when it is not there."""
    if config.image_encoder is not None:
        return locate(config.image_encoder, _ENCODER)
    folder = locate(config.adapter, _ADAPTER) / ENCODER
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{_ENCODER}: {folder} is not there; download the vision tower with "
            f"`hf download h94/IP-Adapter --include '{ENCODER}/*' --local-dir DIR`, or set "
            f"{_ENCODER} to its folder"
        )
    return folder


def _base(config: SdxlIpAdapterConfig) -> Path:
    base = locate(config.base, _BASE)
    if not (base / "model_index.json").is_file():
        raise UserError(
            f"{_BASE}: {base} has no model_index.json; a folder in diffusers' layout is expected "
            "(a single .safetensors file is converted with StableDiffusionXLPipeline."
            "from_single_file(...).save_pretrained(...))"
        )
    require_class(base, _PIPELINES, _BASE)
    return base


_PIPELINES = (
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
)


def unet_config(config: SdxlIpAdapterConfig) -> dict[str, Any]:
    """The UNet's config.json. UserError for another model than SDXL."""
    folder = _base(config) / "unet"
    require_class(folder, "UNet2DConditionModel", _BASE)
    about = read_json(folder / "config.json", _BASE)
    for name, wanted in _UNET.items():
        if about.get(name) != wanted:
            raise UserError(
                f"{_BASE}: {folder} has {name} {about.get(name)!r}, SDXL has {wanted!r}: it is "
                "another model (Stable Diffusion 1.5, an inpainting UNet, a refiner)"
            )
    multiple = 8 * 2 ** (len(about["block_out_channels"]) - 1)
    sides = (*config.image_size, config.reference_size)
    if any(side % multiple for side in sides):
        raise UserError(
            f"models.backbone.image_size {list(config.image_size)} and reference_size "
            f"{config.reference_size} must be multiples of {multiple} pixels for this UNet"
        )
    return about


def _check_unet(config: SdxlIpAdapterConfig) -> str:
    about, folder = unet_config(config), _base(config) / "unet"
    line = check_part(folder, "UNet2DConditionModel", _BASE, config.variant)
    return f"{line}, {len(cross_attention_widths(about))} attentions"


def _check_autoencoder(config: SdxlIpAdapterConfig) -> str:
    folder = _base(config) / "vae"
    about = read_json(folder / "config.json", _BASE)
    if len(about["block_out_channels"]) != 4 or about.get("latent_channels") != 4:
        raise UserError(f"{_BASE}: {folder} is not SDXL's autoencoder (factor 8, 4 channels)")
    if about.get("latents_mean") is not None:
        raise UserError(f"{_BASE}: {folder} shifts its latents (latents_mean), as SDXL does not")
    # Older files name the attention's matrices otherwise; diffusers renames them.
    return check_part(folder, "AutoencoderKL", _BASE, config.variant, unread=(".attentions.",))


def _check_text(config: SdxlIpAdapterConfig) -> str:
    widths, base = [], _base(config)
    classes = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
    for part, name in classes.items():
        check_part(base / part, name, _BASE, config.variant)
        widths.append(int(read_json(base / part / "config.json", _BASE)["hidden_size"]))
    for part in ("tokenizer", "tokenizer_2"):
        require_files(base / part, [("tokenizer.json",), ("vocab.json", "merges.txt")], _BASE)
    cross = unet_config(config)["cross_attention_dim"]
    if sum(widths) != cross:
        raise UserError(
            f"{_BASE}: the text encoders give {widths[0]} + {widths[1]} channels, the UNet reads "
            f"{cross}: parts of different models lie in this folder"
        )
    return f"{widths[0]} + {widths[1]} channels"


def _check_schedule(config: SdxlIpAdapterConfig) -> str:
    path = _base(config) / "scheduler" / "scheduler_config.json"
    return check_scheduler(read_json(path, _BASE), config.scheduler, f"{_BASE}: {path}")


def _check_adapter(config: SdxlIpAdapterConfig) -> str:
    path, about = adapter_path(config), unet_config(config)
    header = read_header(path, _ADAPTER)
    inside = _encoder_config(config)["hidden_size"]
    resampler, queries = plus_resampler(
        header, about["cross_attention_dim"], inside, path, _ADAPTER
    )
    wanted = resampler | image_keys(about)
    require_tensors(header, wanted, _ADAPTER, "IP-Adapter-Plus for this UNet")
    weights = f"{num_weights(header) / 1e6:.1f} M weights"
    return f"{queries} image tokens, {len(image_keys(about)) // 2} attentions, {weights}"


def _encoder_config(config: SdxlIpAdapterConfig) -> dict[str, Any]:
    folder = encoder_folder(config)
    require_class(folder, ("CLIPVisionModelWithProjection", "CLIPModel"), _ENCODER)
    about = read_json(folder / "config.json", _ENCODER)
    return dict(about.get("vision_config") or about)


def _check_encoder(config: SdxlIpAdapterConfig) -> str:
    about, folder = _encoder_config(config), encoder_folder(config)
    line = check_part(folder, "CLIPVisionModelWithProjection", _ENCODER, also=("CLIPModel",))
    return f"{line}, {about['hidden_size']} channels at {about['image_size']} pixels"


def save_ip_adapter(config: SdxlIpAdapterConfig, directory: Path, out: Path) -> Path:
    """Writes an adapter of the policy adapter_kv as an IP-Adapter file that diffusers loads: the
    start adapter's with the keys and values of a run's adapter folder in it:
    `pipeline.load_ip_adapter(folder, subfolder="", weight_name=out.name)` reads it.

    UserError for an adapter of another base, or of the policy lora."""
    from safetensors.torch import load_file, save

    from focusdpo.model.adapter import read_card, read_weights
    from focusdpo.store.local import write_whole

    directory = Path(directory)
    card = read_card(directory)
    if card.base_fingerprint != fingerprint(config):
        raise UserError(
            f"{directory}: trained on base {card.base_fingerprint}, this configuration is "
            f"{fingerprint(config)}; use the checkpoints and settings of the run"
        )
    trained = read_weights(directory, card)
    numbers = _numbers(config)
    tensors = load_file(adapter_path(config))
    for name, tensor in trained.items():
        place, _, kind = name.removesuffix(".0.weight").rpartition(".")
        number = numbers.get(place)
        if number is None or kind not in ("to_k_ip", "to_v_ip"):
            raise UserError(
                f"{directory}: {name} is no key or value of the image adapter; only adapters of "
                "models.backbone.policy adapter_kv become IP-Adapter files, a LoRA loads as it is"
            )
        old = tensors[f"ip_adapter.{number}.{kind}.weight"]
        tensors[f"ip_adapter.{number}.{kind}.weight"] = tensor.to(old.dtype).contiguous()
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, save(tensors))
    return out


def with_added_keys(config: SdxlIpAdapterConfig, added: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the start's IP-Adapter file, to whose keys and values something is added;
    `added`: module of the UNet -> (out, in). UserError for other modules."""
    from safetensors.torch import load_file

    numbers, tensors = _numbers(config), load_file(adapter_path(config))
    for name, value in added.items():
        place, _, kind = name.removesuffix(".0").rpartition(".")
        key = f"ip_adapter.{numbers.get(place)}.{kind}.weight"
        if key not in tensors:
            raise UserError(f"{name} is no key or value of the image adapter")
        tensors[key] = (tensors[key].float() + value.float()).to(tensors[key].dtype)
    return tensors


def _numbers(config: SdxlIpAdapterConfig) -> dict[str, int]:
    """Path of each cross-attention's processor -> its odd number in IP-Adapter files."""
    from accelerate import init_empty_weights
    from diffusers import UNet2DConditionModel

    with init_empty_weights():
        unet = UNet2DConditionModel.from_config(unet_config(config))
    names = [name for name in unet.attn_processors if not name.endswith("attn1.processor")]
    return {name: 2 * index + 1 for index, name in enumerate(names)}
