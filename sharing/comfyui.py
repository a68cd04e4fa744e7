"""An adapter for ComfyUI: the LoRA by the names that the models' authors gave their layers (Black
Forest Labs' for FLUX, Stability's for SDXL), the scale multiplied in, and a workflow beside it.

ComfyUI adds `lora_B lora_A` to the weight of the same name. Where the authors keep several of
diffusers' matrices in one (queries, keys and values; in a single block the feed-forward as well),
their LoRAs stand side by side: A's rows one below the other, B block-diagonal, ranks add up.

A Kronecker product of some of a matrix's rows is none of the whole, so that a LoKr keeps diffusers'
names, in LyCORIS' spelling (`lycoris_transformer_blocks_0_attn_to_q.lokr_w1`), by which ComfyUI
finds the rows itself. A DoRA is refused: ComfyUI divides by the lengths of the base's rows, a DoRA
by those of the changed ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.store.local import write_whole

if TYPE_CHECKING:
    from torch import Tensor

LORA = "comfyui_lora.safetensors"
IP_ADAPTER = "ip_adapter.safetensors"
WORKFLOW = "comfyui_workflow.json"
_BFL = "diffusion_model."


@dataclass(frozen=True, slots=True)
class _Slot:
    """One matrix of the authors', and diffusers' matrices that are its rows, in order."""

    name: str
    modules: tuple[str, ...]


_QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
_ADDED = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
_FLUX: dict[str, tuple[_Slot, ...]] = {
    "transformer_blocks": (
        _Slot("img_attn.qkv", _QKV),
        _Slot("img_attn.proj", ("attn.to_out.0",)),
        _Slot("txt_attn.qkv", _ADDED),
        _Slot("txt_attn.proj", ("attn.to_add_out",)),
        _Slot("img_mlp.0", ("ff.net.0.proj",)),
        _Slot("img_mlp.2", ("ff.net.2",)),
        _Slot("txt_mlp.0", ("ff_context.net.0.proj",)),
        _Slot("txt_mlp.2", ("ff_context.net.2",)),
        _Slot("img_mod.lin", ("norm1.linear",)),
        _Slot("txt_mod.lin", ("norm1_context.linear",)),
    ),
    "single_transformer_blocks": (
        _Slot("linear1", (*_QKV, "proj_mlp")),
        _Slot("linear2", ("proj_out",)),
        _Slot("modulation.lin", ("norm.linear",)),
    ),
}
_KLEIN: dict[str, tuple[_Slot, ...]] = {
    "transformer_blocks": (
        *_FLUX["transformer_blocks"][:4],
        _Slot("img_mlp.0", ("ff.linear_in",)),
        _Slot("img_mlp.2", ("ff.linear_out",)),
        _Slot("txt_mlp.0", ("ff_context.linear_in",)),
        _Slot("txt_mlp.2", ("ff_context.linear_out",)),
    ),
    "single_transformer_blocks": (
        _Slot("linear1", ("attn.to_qkv_mlp_proj",)),
        _Slot("linear2", ("attn.to_out",)),
    ),
}
_THEIRS = {"transformer_blocks": "double_blocks", "single_transformer_blocks": "single_blocks"}
_BLOCK = re.compile(r"((?:single_)?transformer_blocks)\.(\d+)\.(.+)")
_MLP = 4
"""FLUX.1's feed-forward is so many times as wide as its input."""


Pair = tuple["Tensor", "Tensor"]
"""A (r, in) and B (out, r) of a LoRA, its scale in B."""


def write_comfyui(directory: Path, folder: Path, backbone: Mapping[str, Any]) -> None:
    """Writes LoRA and workflow, for SDXL also an IP-Adapter file with what was learned of the image
    adapter. `backbone`: its settings in the run. UserError for an adapter of no LoRA, for layers
    that the authors' layout has no place for, and for the embedded world."""
    kind = str(backbone.get("kind", "pocket"))
    if kind not in ("flux-uno", "flux2-klein", "sdxl-ip-adapter"):
        raise UserError(
            f"{directory}: ComfyUI knows no model of kind {kind}; take layout diffusers"
        )
    if backbone.get("policy") == "adapter_kv":
        raise UserError(
            f"{directory}: no LoRA but an image adapter (policy adapter_kv); layout diffusers "
            "writes it as an IP-Adapter file, which ComfyUI's IP-Adapter nodes read as well"
        )
    from focusdpo.model.adapter import read_card

    form = read_card(directory).lora.kind
    if form == "dora":
        raise UserError(
            f"{directory}: a DoRA, which ComfyUI computes in another way (it divides by the "
            "lengths of the base's rows, not of the changed ones); take layout diffusers, or "
            "train with lora.kind lora or lokr"
        )
    if form == "lokr":
        _write_lokr(directory, folder, backbone)
    elif kind == "sdxl-ip-adapter":
        pairs = lora_pairs(directory)
        image = {name: pair for name, pair in pairs.items() if ".processor." in name}
        layers = 2
        if image:
            added = {name: up @ down for name, (down, up) in image.items()}
            layers = _write_image_adapter(directory, folder / IP_ADAPTER, backbone, added)
        plain = {name: pair for name, pair in pairs.items() if name not in image}
        _write(folder / LORA, sdxl_tensors(plain, layers))
    else:
        pairs = lora_pairs(directory)
        slots = _FLUX if kind == "flux-uno" else _KLEIN
        _write(folder / LORA, bfl_tensors(pairs, slots, directory))
    text = json.dumps(workflow(kind, has_image_adapter=(folder / IP_ADAPTER).is_file()), indent=1)
    write_whole(folder / WORKFLOW, (text + "\n").encode())


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save

    data = {name: tensor.contiguous() for name, tensor in sorted(tensors.items())}
    write_whole(path, save(data, {"format": "pt"}))


def _write_lokr(directory: Path, folder: Path, backbone: Mapping[str, Any]) -> None:
    """A LoKr in LyCORIS' layout, and what it adds to SDXL's image adapter as a file of its own."""
    factors = lokr_factors(directory)
    image = {
        name: module_factors for name, module_factors in factors.items() if ".processor." in name
    }
    if image:
        added = {name: _kronecker(module_factors) for name, module_factors in image.items()}
        _write_image_adapter(directory, folder / IP_ADAPTER, backbone, added)
    plain = {name: module_factors for name, module_factors in factors.items() if name not in image}
    _write(folder / LORA, lycoris_tensors(plain))


Factors = dict[str, "Tensor"]
"""`lokr_w1`, `lokr_w2` of a layer, each whole or as `_a` and `_b`; the scale in the first."""


def lokr_factors(directory: Path) -> dict[str, Factors]:
    """Module -> factors of a LoKr's folder."""
    from focusdpo.model.adapter import read_card, read_weights

    card = read_card(directory)
    scale = card.lora.alpha / card.lora.rank
    factors: dict[str, Factors] = {}
    for name, tensor in sorted(read_weights(directory, card).items()):
        module, _, factor = name.rpartition(".")
        first = factor in ("lokr_w1", "lokr_w1_a")
        factors.setdefault(module, {})[factor] = scale * tensor if first else tensor
    return factors


def lycoris_tensors(factors: Mapping[str, Factors]) -> dict[str, Tensor]:
    """A LoKr by LyCORIS' names. Its readers multiply alpha / rank again where a factor is in two
    parts: alpha is the rank."""
    import torch

    tensors: dict[str, Tensor] = {}
    for module, module_factors in factors.items():
        key = f"lycoris_{module.replace('.', '_')}"
        tensors |= {f"{key}.{name}": tensor for name, tensor in module_factors.items()}
        ranks = [len(tensor) for name, tensor in module_factors.items() if name.endswith("_b")]
        tensors[f"{key}.alpha"] = torch.tensor(float(ranks[0] if ranks else 1))
    return tensors


def _kronecker(factors: Factors) -> Tensor:
    """(out, in) of what a LoKr adds to a layer."""
    import torch

    first, second = (
        factors[name] if name in factors else factors[f"{name}_a"] @ factors[f"{name}_b"]
        for name in ("lokr_w1", "lokr_w2")
    )
    return torch.kron(first, second)


def lora_pairs(directory: Path) -> dict[str, Pair]:
    """Module -> A and B of an adapter folder, alpha / rank multiplied into B."""
    from focusdpo.model.adapter import read_card, read_weights

    card = read_card(directory)
    tensors = read_weights(directory, card)
    scale = card.lora.alpha / card.lora.rank
    ends = {".lora_A.weight", ".lora_B.weight"}
    if strange := [name for name in tensors if not name.endswith(tuple(ends))]:
        raise UserError(
            f"{directory}: {strange[0]} is no part of a plain LoRA; ComfyUI's layout is for LoRA "
            "alone, take layout diffusers"
        )
    names = sorted({name.rpartition(".lora_")[0] for name in tensors})
    return {
        name: (tensors[f"{name}.lora_A.weight"], scale * tensors[f"{name}.lora_B.weight"])
        for name in names
    }


def bfl_tensors(
    pairs: Mapping[str, Pair], slots: Mapping[str, Sequence[_Slot]], directory: Path
) -> dict[str, Tensor]:
    """A FLUX LoRA by Black Forest Labs' names, as ComfyUI's `diffusion_model.*`."""
    blocks: dict[tuple[str, int], dict[str, Pair]] = {}
    for name, pair in pairs.items():
        match = _BLOCK.fullmatch(name)
        known = (
            {module for slot in slots.get(match[1], ()) for module in slot.modules}
            if match
            else set()
        )
        if match is None or match[3] not in known:
            raise UserError(
                f"{directory}: the adapter covers {name}, which has no place in ComfyUI's layout "
                "here; train with the default lora.targets, or take layout diffusers"
            )
        blocks.setdefault((match[1], int(match[2])), {})[match[3]] = pair
    tensors: dict[str, Tensor] = {}
    for (kind, index), block in sorted(blocks.items()):
        for slot in slots[kind]:
            parts = [block.get(module) for module in slot.modules]
            if any(part is not None for part in parts):
                down, up = _side_by_side(parts, slot.modules)
                name = f"{_BFL}{_THEIRS[kind]}.{index}.{slot.name}"
                tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = down, up
    return tensors


def _side_by_side(parts: Sequence[Pair | None], modules: Sequence[str]) -> Pair:
    """The LoRA of one matrix whose rows are those of `modules`; an absent one changes nothing."""
    import torch

    present = [part for part in parts if part is not None]
    if len(modules) == 1:
        return present[0]
    narrow = present[0][0].shape[1]
    rows = [
        part[1].shape[0] if part else narrow * (_MLP if module == "proj_mlp" else 1)
        for part, module in zip(parts, modules, strict=True)
    ]
    down = torch.cat([part[0] for part in present])
    up = down.new_zeros(sum(rows), len(down))
    row = column = 0
    for part, count in zip(parts, rows, strict=True):
        if part is not None:
            rank = part[1].shape[1]
            up[row : row + count, column : column + rank] = part[1]
            column += rank
        row += count
    return down, up


_SDXL_BLOCK = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.attentions\.(\d+)\.(.+)")
_SDXL_MID = re.compile(r"mid_block\.attentions\.(\d+)\.(.+)")


def sdxl_tensors(pairs: Mapping[str, Pair], layers: int = 2) -> dict[str, Tensor]:
    """An SDXL LoRA by Stability's names, as the common trainers write it (`lora_unet_*`, down, up
    and alpha); `layers` of a down block. UserError for a layer outside the attentions."""
    import torch

    tensors: dict[str, Tensor] = {}
    for name, (down, up) in pairs.items():
        key = f"lora_unet_{_sdxl_name(name, layers).replace('.', '_')}"
        tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = down, up
        tensors[f"{key}.alpha"] = torch.tensor(float(len(down)))
    return tensors


def _sdxl_name(name: str, layers: int) -> str:
    if match := _SDXL_BLOCK.fullmatch(name):
        block, place = int(match[2]), int(match[3])
        if match[1] == "down_blocks":
            return f"input_blocks.{1 + block * (layers + 1) + place}.1.{match[4]}"
        return f"output_blocks.{block * (layers + 1) + place}.1.{match[4]}"
    if match := _SDXL_MID.fullmatch(name):
        return f"middle_block.{1 + 2 * int(match[1])}.{match[2]}"
    raise UserError(
        f"the adapter covers {name}, which has no place in ComfyUI's layout here; train with the "
        "default lora.targets, or take layout diffusers"
    )


def _write_image_adapter(
    directory: Path, out: Path, backbone: Mapping[str, Any], added: Mapping[str, Tensor]
) -> int:
    """The start's IP-Adapter file with what the adapter adds to its keys and values, (out, in) by
    module: ComfyUI keeps these apart from the UNet, so that no LoRA file reaches them. Returns the
    UNet's layers per down block."""
    from focusdpo.model.adapter import read_card
    from focusdpo.model.backbones.sdxl_config import SdxlIpAdapterConfig
    from focusdpo.model.backbones.sdxl_ip_adapter import (
        fingerprint,
        unet_config,
        with_added_keys,
    )

    config = SdxlIpAdapterConfig.model_validate(backbone)
    card = read_card(directory)
    if card.base_fingerprint != fingerprint(config):
        raise UserError(
            f"{directory}: trained on base {card.base_fingerprint}, this configuration is "
            f"{fingerprint(config)}; use the checkpoints and settings of the run"
        )
    _write(out, with_added_keys(config, added))
    return int(unet_config(config)["layers_per_block"])


def workflow(kind: str, *, has_image_adapter: bool) -> dict[str, Any]:
    """A workflow in ComfyUI's API format that paints with the adapter, for Load or /prompt; files
    are named as their repositories name them."""
    nodes = dict(_nodes(kind, has_image_adapter))
    return {
        name: {"class_type": about["class_type"], "inputs": about["inputs"]}
        for name, about in nodes.items()
    }


def _nodes(kind: str, has_image_adapter: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    prompt = "a dog and a cat on a sandy beach"
    size = 1024 if kind == "sdxl-ip-adapter" else 512
    model: list[Any] = ["model", 0]
    if kind == "sdxl-ip-adapter":
        yield _node("model", "CheckpointLoaderSimple", ckpt_name="sd_xl_base_1.0.safetensors")
        words, decoder = ["model", 1], ["model", 2]
    else:
        first, second, flux = (
            ("flux1-dev.safetensors", "ae.safetensors", "flux")
            if kind == "flux-uno"
            else ("flux-2-klein-base-4b.safetensors", "flux2-vae.safetensors", "flux2")
        )
        yield _node("model", "UNETLoader", unet_name=first, weight_dtype="default")
        yield _node("decoder", "VAELoader", vae_name=second)
        if flux == "flux":
            names = {"clip_name1": "clip_l.safetensors", "clip_name2": "t5xxl_fp16.safetensors"}
            yield _node("words", "DualCLIPLoader", type=flux, **names)
        else:
            yield _node("words", "CLIPLoader", clip_name="qwen_3_4b.safetensors", type=flux)
        words, decoder = ["words", 0], ["decoder", 0]
    yield _node("adapter", "LoraLoaderModelOnly", model=model, lora_name=LORA, strength_model=1.0)
    model = ["adapter", 0]
    if kind == "sdxl-ip-adapter":
        # Of the extension ComfyUI_IPAdapter_plus; the picture is the subject's reference.
        file = IP_ADAPTER if has_image_adapter else "ip-adapter-plus_sdxl_vit-h.safetensors"
        yield _node("image_adapter", "IPAdapterModelLoader", ipadapter_file=file)
        clip = "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors"
        yield _node("image_encoder", "CLIPVisionLoader", clip_name=clip)
        yield _node("reference", "LoadImage", image="reference.png")
        yield _node(
            "shown",
            "IPAdapterAdvanced",
            model=model,
            ipadapter=["image_adapter", 0],
            image=["reference", 0],
            clip_vision=["image_encoder", 0],
            weight=0.78,
            weight_type="linear",
            combine_embeds="concat",
            start_at=0.0,
            end_at=1.0,
            embeds_scaling="V only",
        )
        model = ["shown", 0]
    yield _node("prompt", "CLIPTextEncode", clip=words, text=prompt)
    yield _node("empty", "CLIPTextEncode", clip=words, text="")
    given: list[Any] = ["prompt", 0]
    if kind == "flux-uno":
        yield _node("guided", "FluxGuidance", conditioning=given, guidance=4.0)
        given = ["guided", 0]
    latent = {"flux-uno": "EmptySD3LatentImage", "flux2-klein": "EmptyFlux2LatentImage"}
    yield _node(
        "latent", latent.get(kind, "EmptyLatentImage"), width=size, height=size, batch_size=1
    )
    yield _node(
        "sampled",
        "KSampler",
        model=model,
        positive=given,
        negative=["empty", 0],
        latent_image=["latent", 0],
        seed=0,
        steps={"flux-uno": 25, "flux2-klein": 50}.get(kind, 30),
        cfg={"flux-uno": 1.0, "flux2-klein": 4.0}.get(kind, 5.0),
        sampler_name="euler",
        scheduler="simple" if kind != "sdxl-ip-adapter" else "normal",
        denoise=1.0,
    )
    yield _node("decoded", "VAEDecode", samples=["sampled", 0], vae=decoder)
    yield _node("saved", "SaveImage", images=["decoded", 0], filename_prefix="focusdpo")


def _node(name: str, kind: str, **inputs: Any) -> tuple[str, dict[str, Any]]:
    return name, {"class_type": kind, "inputs": inputs}
