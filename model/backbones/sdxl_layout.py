"""What the files of SDXL's parts and of IP-Adapter-Plus hold, from configs alone. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from focusdpo.data_schemas.checkpoints import TensorInfo
from focusdpo.data_schemas.errors import UserError

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
    found: list[int] = []
    for i, kind in enumerate(unet["down_block_types"]):
        if "CrossAttn" in kind:
            found += [widths[i]] * layers[i] * depth[i]
    for i, kind in enumerate(unet["up_block_types"]):
        if "CrossAttn" in kind:
            at = levels - 1 - i
            found += [widths[at]] * (layers[at] + 1) * depth[at]
    if "CrossAttn" in (unet.get("mid_block_type") or "UNetMidBlock2DCrossAttn"):
        found += [widths[-1]] * depth[-1]
    return found


def image_keys(unet: Mapping[str, Any]) -> Shapes:
    """`ip_adapter.*` of a file for this UNet: keys and values per cross-attention, odd numbers."""
    inner = unet["cross_attention_dim"]
    return {
        f"ip_adapter.{2 * i + 1}.to_{kind}_ip.weight": (width, inner)
        for i, width in enumerate(cross_attention_widths(unet))
        for kind in ("k", "v")
    }


def plus_resampler(
    found: Mapping[str, TensorInfo], outside: int, inside: int, path: Path, field: str
) -> tuple[Shapes, int]:
    """`image_proj.*` of IP-Adapter-Plus and how many image tokens it makes, from the sizes of its
    learned queries; `inside` is CLIP's width, `outside` the UNet's.

    UserError for the other IP-Adapters and for one of another CLIP or another UNet."""
    names = {name.removeprefix("image_proj.") for name in found}
    if "latents" not in names:
        other = "the IP-Adapter without Plus" if "proj.weight" in names else "no IP-Adapter-Plus"
        if "perceiver_resampler.proj_in.weight" in names or "proj.0.weight" in names:
            other = "a face IP-Adapter"
        raise UserError(
            f"{field}: {path} is {other}; ip-adapter-plus_sdxl_vit-h.safetensors is expected"
        )
    _, queries, wide = found["image_proj.latents"].shape
    reads = found.get("image_proj.proj_in.weight")
    if reads is not None and reads.shape[1] != inside:
        raise UserError(
            f"{field}: {path} reads {reads.shape[1]} channels, the image encoder gives {inside}; "
            "IP-Adapter-Plus vit-h belongs to models/image_encoder (ViT-H, 1280)"
        )
    writes = found.get("image_proj.proj_out.weight")
    if writes is not None and writes.shape[0] != outside:
        raise UserError(
            f"{field}: {path} writes {writes.shape[0]} channels, the UNet reads {outside}: it is "
            "an adapter for another base (768: Stable Diffusion 1.5)"
        )
    first = found.get("image_proj.layers.0.0.to_q.weight")
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


def clip_layers(
    found: Mapping[str, TensorInfo], config: Mapping[str, Any], tower: str
) -> tuple[dict[str, TensorInfo], Shapes]:
    """What is found of a CLIP tower ("text_model" or "vision_model", which files write before its
    names or leave out), and what its config promises of its layers."""
    wide, deep = config["hidden_size"], config["intermediate_size"]
    plain = {name.removeprefix(f"{tower}."): about for name, about in found.items()}
    shapes: Shapes = {}
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layers.{i}"
        for part in ("q", "k", "v", "out"):
            shapes[f"{layer}.self_attn.{part}_proj.weight"] = (wide, wide)
            shapes[f"{layer}.self_attn.{part}_proj.bias"] = (wide,)
        for norm in ("layer_norm1", "layer_norm2"):
            shapes[f"{layer}.{norm}.weight"] = shapes[f"{layer}.{norm}.bias"] = (wide,)
        shapes[f"{layer}.mlp.fc1.weight"] = (deep, wide)
        shapes[f"{layer}.mlp.fc2.weight"] = (wide, deep)
        shapes[f"{layer}.mlp.fc1.bias"] = (deep,)
        shapes[f"{layer}.mlp.fc2.bias"] = (wide,)
    if tower == "text_model":
        shapes["embeddings.token_embedding.weight"] = (config["vocab_size"], wide)
        shapes["final_layer_norm.weight"] = (wide,)
    else:
        patch = config["patch_size"]
        shapes["embeddings.patch_embedding.weight"] = (wide, 3, patch, patch)
        shapes["pre_layrnorm.weight"] = (wide,)
    return plain, shapes


def millions(found: Mapping[str, TensorInfo]) -> str:
    """How many weights there are."""
    return f"{sum(prod(tensor.shape) for tensor in found.values()) / 1e6:.1f} M weights"
