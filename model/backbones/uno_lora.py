"""UNO's LoRA in its own key layout: checked, merged into FLUX.1, and our policy written in it.

    double_blocks.<i>.processor.{qkv_lora1,proj_lora1,qkv_lora2,proj_lora2}.{down,up}.weight
    single_blocks.<i>.processor.{qkv_lora,proj_lora}.{down,up}.weight

1 is the image stream, 2 the text stream; q, k and v share one `down`; the scale is 1.
Source: UNO, arXiv 2504.02160 (bytedance/UNO, uno/flux/modules/layers.py). Letters: D width of the
transformer, r rank.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.store.checkpoints import locate, read_header, require_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

FILE = "dit_lora.safetensors"
_PREFIX = "diffusion_model."
_MLP = 4
"""FLUX.1's feed-forward layers are this many times as wide as D."""
_SLOTS: dict[str, dict[str, tuple[str, ...]]] = {
    "double": {
        "qkv_lora1": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "proj_lora1": ("attn.to_out.0",),
        "qkv_lora2": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "proj_lora2": ("attn.to_add_out",),
    },
    "single": {"qkv_lora": ("attn.to_q", "attn.to_k", "attn.to_v"), "proj_lora": ("proj_out",)},
}
"""UNO's name -> the modules of a diffusers block that it covers, in the order of its rows."""
_OURS = {"double": "transformer_blocks", "single": "single_transformer_blocks"}
_BLOCK = re.compile(r"(double|single)_blocks\.(\d+)\.")
_NAME = re.compile(r"(single_)?transformer_blocks\.(\d+)\.(.+)\.lora_([AB])\.weight")


def uno_file(source: str, field: str) -> Path:
    """The file of a source (file, folder or hub id). UserError where there is none."""
    path = locate(source, field)
    if path.is_dir() and not (path / FILE).is_file():
        raise UserError(
            f"{field}: {path} holds no {FILE}; name the file, or download it with `focusdpo fetch` "
            "and this preset"
        )
    return path / FILE if path.is_dir() else path


def uno_targets(num_double: int, num_single: int) -> tuple[str, ...]:
    """The modules that UNO's LoRA covers, as suffixes of diffusers' names.

    A single block's output is named in full: the suffix alone is the whole model's output too."""
    slots = _SLOTS["double"].values()
    names = [module.removeprefix("attn.") for modules in slots for module in modules]
    singles = [f"{_OURS['single']}.{i}.proj_out" for i in range(num_single)]
    return (*(names if num_double else names[:3]), *singles)


def slot_shapes(kind: str, slot: str, width: int, rank: int) -> dict[str, tuple[int, int]]:
    """Shapes of `down` and `up` of one slot."""
    narrow = width * (1 + _MLP) if (kind, slot) == ("single", "proj_lora") else width
    return {"down": (rank, narrow), "up": (width * len(_SLOTS[kind][slot]), rank)}


def uno_shapes(num_double: int, num_single: int, width: int, rank: int) -> dict[str, Any]:
    """Every tensor of a whole UNO file for a transformer of these sizes: name -> shape."""
    return {
        f"{kind}_blocks.{i}.processor.{slot}.{part}.weight": shape
        for kind, count in (("double", num_double), ("single", num_single))
        for i in range(count)
        for slot in _SLOTS[kind]
        for part, shape in slot_shapes(kind, slot, width, rank).items()
    }


def check_uno(path: Path, transformer: Mapping[str, Any], field: str) -> int:
    """The rank of a UNO file that fits a FLUX.1 transformer with this config.json. Reads the header
    alone. UserError for another format, for mixed ranks, and for another model's LoRA."""
    header = {n.removeprefix(_PREFIX): about for n, about in read_header(path, field).items()}
    ranks = {
        about.shape[0]
        for name, about in header.items()
        if name.endswith(".down.weight") and about.shape
    }
    if not ranks or not any(".processor." in name for name in header):
        first = min(header, default="no tensor")
        raise UserError(
            f"{field}: {path} is not in UNO's layout (double_blocks.0.processor.qkv_lora1.down"
            f".weight, ...); it holds {first}. Expected {FILE} of bytedance-research/UNO"
        )
    if len(ranks) > 1:
        raise UserError(
            f"{field}: {path} mixes LoRA ranks {sorted(ranks)}; UNO's file has one rank: download "
            "it again"
        )
    rank = ranks.pop()
    width = transformer["num_attention_heads"] * transformer["attention_head_dim"]
    layers = transformer["num_layers"], transformer["num_single_layers"]
    what = (
        f"a UNO LoRA of rank {rank} for this base ({layers[0]} double and {layers[1]} single "
        f"blocks, width {width}): {path}"
    )
    require_tensors(header, uno_shapes(*layers, width, rank), field, what)
    return rank


def fuse_uno(transformer: nn.Module, path: Path) -> int:
    """Adds UNO's LoRA to the weights, W + up down in float32, and returns how many layers changed.
    No adapter stays: the transformer is UNO from then on. Check the file first."""
    from safetensors.torch import load_file

    return fuse(transformer, load_file(path))


def fuse(transformer: nn.Module, uno: Mapping[str, Tensor]) -> int:
    """`fuse_uno` for tensors in UNO's layout, through diffusers' own converter."""
    import torch
    from diffusers import FluxPipeline

    tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in uno.items()}
    converted = FluxPipeline.lora_state_dict(tensors)
    names = sorted(n.removesuffix(".lora_A.weight") for n in converted if "lora_A" in n)
    with torch.no_grad():
        for name in names:
            layer: Any = transformer.get_submodule(name.removeprefix("transformer."))
            weight = layer.weight
            down, up = (
                converted[f"{name}.lora_{part}.weight"].to(weight.device).float() for part in "AB"
            )
            weight.copy_(weight.float() + up @ down)
    return len(names)


def export_uno(directory: Path, out: Path, *, uno: str | None = None) -> Path:
    """Writes a trained adapter in UNO's layout and returns the file: `out`, or dit_lora.safetensors
    in it when it is a folder.

    The file holds the policy alone, to be used on FLUX **with** UNO. With `uno` (UNO's own LoRA) it
    holds both, joined along the rank: UNO's code then runs it on plain FLUX. One rank for all
    layers, as UNO's code wants: layers are filled up with zeros. UserError for an adapter that
    covers layers which UNO's layout does not know, and for a UNO file of another model."""
    from safetensors.torch import save

    from focusdpo.model.adapter import read_card, read_weights
    from focusdpo.store.local import make_folder, write_whole

    directory, out = Path(directory), Path(out)
    card = read_card(directory)
    if card.lora.kind != "lora":
        raise UserError(
            f"{directory}: the adapter is of kind {card.lora.kind}, and UNO's code adds products "
            "of two matrices (LoRA) alone; take layout diffusers, or train with lora.kind lora"
        )
    tensors = read_weights(directory, card)
    slots = _policy_slots(directory, tensors, card.lora.alpha / card.lora.rank)
    whole = {} if uno is None else _whole_uno(uno_file(uno, "uno"), slots)
    file = out / FILE if out.is_dir() or not out.suffix else out
    make_folder(file.parent)
    data = {name: tensor.contiguous() for name, tensor in _joined(slots, whole).items()}
    write_whole(file, save(data, {"format": "pt"}))
    return file


Slots = dict[str, tuple["Tensor", "Tensor"]]
"""`double_blocks.0.processor.qkv_lora1` -> down (r, in), up (out, r)."""


def _policy_slots(directory: Path, tensors: Mapping[str, Tensor], scale: float) -> Slots:
    """The policy's layers gathered into UNO's slots."""
    import torch

    layers: dict[tuple[str, int, str], dict[str, Tensor]] = {}
    for name, tensor in sorted(tensors.items()):
        match = _NAME.fullmatch(name)
        kind = "single" if match and match[1] else "double"
        if match is None or not any(match[3] in modules for modules in _SLOTS[kind].values()):
            known = sorted({m for slots in _SLOTS.values() for ms in slots.values() for m in ms})
            raise UserError(
                f"{directory}: the adapter covers {name}, which UNO's layout has no place for; it "
                f"knows {', '.join(known)}. Train with these lora.targets (flux-uno's default), or "
                "use the folder itself: diffusers' load_lora_weights reads it"
            )
        layers.setdefault((kind, int(match[2]), match[3]), {})[match[4]] = tensor
    slots: Slots = {}
    for kind, index in sorted({(kind, index) for kind, index, _ in layers}):
        for slot, modules in _SLOTS[kind].items():
            parts = [layers.get((kind, index, module)) for module in modules]
            present = [part for part in parts if part]
            if not present:
                continue
            rows = present[0]["B"].shape[0]
            down = torch.cat([part["A"] for part in present])
            up = down.new_zeros(rows * len(parts), len(down))
            column = 0
            for place, part in enumerate(parts):
                if part:
                    end = column + part["B"].shape[1]
                    up[place * rows : (place + 1) * rows, column:end] = part["B"] * scale
                    column = end
            slots[f"{kind}_blocks.{index}.processor.{slot}"] = down, up
    return slots


def _whole_uno(path: Path, policy: Slots) -> dict[str, Tensor]:
    """UNO's own tensors, once they are known to be those of the policy's base."""
    from safetensors.torch import load_file

    names = [name.removeprefix(_PREFIX) for name in read_header(path, "uno")]
    double, single = _counts([*policy, *names])
    layers = {"num_layers": double, "num_single_layers": single}
    heads = {"num_attention_heads": 1, "attention_head_dim": _width(policy)}
    check_uno(path, layers | heads, "uno")
    return {name.removeprefix(_PREFIX): tensor for name, tensor in load_file(path).items()}


def _joined(policy: Slots, uno: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Policy and UNO side by side, every slot of one rank."""
    import torch

    rank = max(len(down) for down, _ in policy.values())
    out: dict[str, Tensor] = {}
    for name, shape in uno_shapes(*_counts([*policy, *uno]), _width(policy), rank).items():
        slot, part, _ = name.rsplit(".", 2)
        value = torch.zeros(shape)
        if slot in policy:
            factor = policy[slot][part == "up"]
            value[: factor.shape[0], : factor.shape[1]] = factor
        axis = 1 if part == "up" else 0
        out[name] = torch.cat([uno[name], value.to(uno[name])], axis) if uno else value
    return out


def _counts(names: Iterable[str]) -> tuple[int, int]:
    """How many double and single blocks UNO's names tell of."""
    matches = [match for name in names if (match := _BLOCK.match(name))]
    double, single = (
        1 + max((int(match[2]) for match in matches if match[1] == kind), default=-1)
        for kind in _SLOTS
    )
    return double, single


def _width(policy: Slots) -> int:
    """D, from any slot."""
    name, (_, up) = next(iter(policy.items()))
    kind = name.split("_")[0]
    return up.shape[0] // len(_SLOTS[kind][name.rsplit(".", 1)[1]])
