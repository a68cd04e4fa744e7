"""Adapters in ComfyUI's layout, read back by diffusers' converters of the authors' layouts, which
know nothing of ours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_sdxl
import torch
import yaml
from public_layout import SDXL_UNET
from safetensors.torch import load_file
from torch import Tensor
from trained_adapter import save_trained

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.adapter import add_policy, policy_parameters
from focusdpo.model.backbones import sdxl_ip_adapter
from focusdpo.model.training.config import LoraConfig
from focusdpo.sharing import comfyui
from focusdpo.sharing.adapter_export import export_adapter

RANK = 2
FLUX_WIDTHS: dict[str, dict[str, tuple[int, int]]] = {
    "transformer_blocks.0": {
        **dict.fromkeys(("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"), (3072, 3072)),
        **dict.fromkeys(("attn.add_q_proj", "attn.add_v_proj", "attn.to_add_out"), (3072, 3072)),
        "ff.net.0.proj": (12288, 3072),
        "ff_context.net.2": (3072, 12288),
        "norm1.linear": (18432, 3072),
    },
    "single_transformer_blocks.0": {
        **dict.fromkeys(("attn.to_q", "attn.to_k", "attn.to_v"), (3072, 3072)),
        "proj_mlp": (12288, 3072),
        "proj_out": (3072, 15360),
    },
}


def pairs_of(widths: dict[str, dict[str, tuple[int, int]]]) -> dict[str, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"{block}.{name}": (
            torch.randn(RANK, narrow, generator=generator),
            torch.randn(wide, RANK, generator=generator),
        )
        for block, own in widths.items()
        for name, (wide, narrow) in own.items()
    }


def flux_checkpoint() -> dict[str, Tensor]:
    """The names of Black Forest Labs' file with one block of each kind, without values."""
    nothing = torch.zeros(1)

    def zeros(rows: int) -> Tensor:
        return nothing.expand(rows, 1)

    names: dict[str, int] = {}
    for name in ("time_in", "vector_in", "guidance_in"):
        names |= {f"{name}.{part}": 3072 for part in ("in_layer", "out_layer")}
    names |= {"txt_in": 3072, "img_in": 3072, "final_layer.linear": 64}
    names["final_layer.adaLN_modulation.1"] = 6144
    for side in ("img", "txt"):
        block = f"double_blocks.0.{side}"
        names |= {f"{block}_mod.lin": 18432, f"{block}_attn.qkv": 9216, f"{block}_attn.proj": 3072}
        names |= {f"{block}_mlp.0": 12288, f"{block}_mlp.2": 3072}
    names |= {"single_blocks.0.linear1": 21504, "single_blocks.0.linear2": 3072}
    names["single_blocks.0.modulation.lin"] = 9216
    found = {f"{name}.weight": zeros(rows) for name, rows in names.items()}
    found |= {f"{name}.bias": nothing.expand(rows) for name, rows in names.items()}
    norms = [f"double_blocks.0.{side}_attn.norm" for side in ("img", "txt")]
    norms.append("single_blocks.0.norm")
    for norm in norms:
        found |= {f"{norm}.{part}_norm.scale": nothing.expand(128) for part in ("query", "key")}
    return found


def test_flux_lands_where_black_forest_labs_rows_are() -> None:
    """diffusers' converter of whole checkpoints splits rows: it is given the LoRAs' B."""
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    pairs = pairs_of(FLUX_WIDTHS)
    tensors = comfyui.bfl_tensors(pairs, comfyui._FLUX, Path("x"))
    checkpoint, downs = flux_checkpoint(), {}
    for name in [n for n in tensors if n.endswith("lora_B.weight")]:
        slot = name.removeprefix("diffusion_model.").removesuffix(".lora_B.weight")
        assert checkpoint[f"{slot}.weight"].shape[0] == tensors[name].shape[0]
        downs[slot] = tensors[name.replace("lora_B", "lora_A")]
        assert tensors[name].shape[1] == len(downs[slot])
        checkpoint[f"{slot}.weight"] = tensors[name]
    slot_of = {
        f"{block}.{module}": f"{comfyui._THEIRS[block.split('.')[0]]}.0.{slot.name}"
        for block in FLUX_WIDTHS
        for slot in comfyui._FLUX[block.split(".")[0]]
        for module in slot.modules
    }
    rows = convert_flux_transformer_checkpoint_to_diffusers(checkpoint)
    seen = 0
    for name, up in rows.items():
        module = name.removesuffix(".weight")
        if not name.endswith(".weight") or module not in slot_of or slot_of[module] not in downs:
            continue
        down = downs[slot_of[module]]
        probe = torch.randn(down.shape[1], 3, generator=torch.Generator().manual_seed(1))
        got = up @ (down @ probe)
        wanted = torch.zeros_like(got)
        if module in pairs:
            a, b = pairs[module]
            wanted = b @ (a @ probe)
            seen += 1
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-3)
    assert seen == len(pairs)


def test_klein_is_read_by_its_pipeline() -> None:
    from diffusers import Flux2KleinPipeline

    widths: dict[str, dict[str, tuple[int, int]]] = {
        "transformer_blocks.0": {
            **dict.fromkeys(("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"), (8, 8)),
            "ff.linear_in": (48, 8),
        },
        "single_transformer_blocks.0": {
            "attn.to_qkv_mlp_proj": (72, 8),
            "attn.to_out": (8, 32),
        },
    }
    pairs = pairs_of(widths)
    tensors = comfyui.bfl_tensors(pairs, comfyui._KLEIN, Path("x"))
    read = Flux2KleinPipeline.lora_state_dict(dict(tensors))
    for name, (a, b) in pairs.items():
        got = (read[f"transformer.{name}.lora_{part}.weight"] for part in "BA")
        up, down = got
        torch.testing.assert_close(up @ down, b @ a, rtol=1e-4, atol=1e-4)


def test_sdxl_has_stabilitys_names() -> None:
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**SDXL_UNET)
    modules = [
        name
        for name, module in unet.named_modules()
        if isinstance(module, torch.nn.Linear) and ".attn" in name
    ]
    assert len(modules) == 140 * 4
    pairs = {
        name: (torch.full((1, 1), float(i)), torch.ones(1, 1)) for i, name in enumerate(modules)
    }
    tensors = comfyui.sdxl_tensors(pairs)
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight" in tensors
    read, alphas = StableDiffusionXLPipeline.lora_state_dict(dict(tensors), unet_config=unet.config)
    found = {name: value for name, value in read.items() if ".down." in name or "lora_A" in name}
    assert len(found) == len(modules) and set(alphas.values()) == {1.0}
    for name, (a, _) in pairs.items():
        (own,) = (value for key, value in found.items() if _is(key, name))
        assert own.item() == a.item()


def _is(key: str, module: str) -> bool:
    plain = key.removeprefix("unet.").replace(".processor", "").replace("_lora", "")
    place = module.removesuffix(".0")
    return plain.startswith((f"{place}.", f"{place}.0."))


def sdxl_adapter(folder: Path, targets: Sequence[str] = ()) -> Path:
    config = tiny_sdxl.tiny_config(tiny_sdxl.save_tiny_sdxl(folder / "sdxl"))
    backbone = sdxl_ip_adapter.build(config, "cpu")
    lora = LoraConfig(rank=2, alpha=6, targets=tuple(targets or backbone.lora_targets))
    add_policy(backbone.transformer, lora, seed=0)
    weights = policy_parameters(backbone.transformer)
    for parameter in weights.values():
        parameter.data += 0.05
    return save_trained(folder, backbone, config, lora, weights)


def test_an_sdxl_adapter_is_a_lora_and_an_image_adapter(tmp_path: Path) -> None:
    adapter = sdxl_adapter(tmp_path)
    out = export_adapter(adapter, tmp_path / "out", "comfyui")
    pairs = comfyui.lora_pairs(adapter)
    pipeline: Any = tiny_sdxl.StableDiffusionXLPipeline.from_pretrained(
        tmp_path / "sdxl" / "base", local_files_only=True
    )
    before = {n: p.detach().clone() for n, p in pipeline.unet.named_parameters()}
    pipeline.load_lora_weights(out, weight_name=comfyui.LORA)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    changed = 0
    for name, parameter in pipeline.unet.named_parameters():
        module = name.removesuffix(".weight")
        added = pairs[module][1] @ pairs[module][0] if module in pairs else 0
        changed += module in pairs
        torch.testing.assert_close(parameter, before[name] + added, rtol=1e-4, atol=1e-5)
    image = {name for name in pairs if ".processor." in name}
    assert changed == len(pairs) - len(image) > 0 < len(image)
    config = sdxl_ip_adapter.SdxlIpAdapterConfig.model_validate(
        yaml.safe_load((adapter.parent / "run.yaml").read_text())["models"]["backbone"]
    )
    start = load_file(sdxl_ip_adapter.adapter_path(config))
    made = load_file(out / comfyui.IP_ADAPTER)
    assert made.keys() == start.keys()
    moved = [name for name in start if not torch.equal(start[name], made[name])]
    assert len(moved) == len(image)
    pipeline.load_ip_adapter(
        str(out), subfolder="", weight_name=comfyui.IP_ADAPTER, image_encoder_folder=None
    )


def test_the_workflow_links_nodes_that_are_there(tmp_path: Path) -> None:
    for kind in ("flux-uno", "flux2-klein", "sdxl-ip-adapter"):
        nodes = comfyui.workflow(kind, has_image_adapter=True)
        links = [
            value[0]
            for node in nodes.values()
            for value in node["inputs"].values()
            if isinstance(value, list)
        ]
        assert links and set(links) <= set(nodes)
        assert nodes["adapter"]["inputs"]["lora_name"] == comfyui.LORA
        assert {node["class_type"] for node in nodes.values()} >= {"KSampler", "SaveImage"}
        assert json.loads(json.dumps(nodes)) == nodes


def test_what_comfyui_has_no_place_for_is_refused(tmp_path: Path) -> None:
    strange = {"norm_out.linear": (torch.zeros(1, 2), torch.zeros(2, 1))}
    with pytest.raises(UserError, match=r"covers norm_out\.linear"):
        comfyui.bfl_tensors(strange, comfyui._FLUX, tmp_path)
    with pytest.raises(UserError, match="no place in ComfyUI"):
        comfyui.sdxl_tensors(strange)
    with pytest.raises(UserError, match="knows no model of kind pocket"):
        comfyui.write_comfyui(tmp_path, tmp_path, {})
