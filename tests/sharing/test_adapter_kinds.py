"""DoRA and LoKr given away: diffusers' own loaders read them back as the matrices that were
trained; layouts without a form for them refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_flux
import tiny_flux2
import tiny_sdxl
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn
from trained_adapter import save_trained

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.adapter import (
    WEIGHTS,
    add_policy,
    policy_parameters,
    read_card,
)
from focusdpo.model.backbones import flux2_klein, flux_uno, sdxl_ip_adapter
from focusdpo.model.training.config import AdapterKind, LoraConfig
from focusdpo.sharing import comfyui
from focusdpo.sharing.adapter_export import export_adapter

RANK, ALPHA = 2, 6


def make(kind: AdapterKind, model: str, folder: Path, targets: tuple[str, ...] = ()) -> Path:
    """A policy that changes something, as training leaves it: `train/adapter` in the folder."""
    base = folder / "base"
    config: Any
    backbone: Any
    if model == "flux-uno":
        config = tiny_flux.tiny_config(tiny_flux.make_flux(base), None)
        backbone = flux_uno.build(config, "cpu")
    elif model == "flux2-klein":
        config = tiny_flux2.tiny_config(tiny_flux2.save_tiny_flux2(base))
        backbone = flux2_klein.build(config, "cpu")
    else:
        config = tiny_sdxl.tiny_config(tiny_sdxl.save_tiny_sdxl(folder))
        backbone = sdxl_ip_adapter.build(config, "cpu")
    chosen = targets or tuple(backbone.lora_targets)
    lora = LoraConfig(kind=kind, rank=RANK, alpha=ALPHA, targets=chosen)
    add_policy(backbone.transformer, lora, seed=0)
    weights = policy_parameters(backbone.transformer)
    generator = torch.Generator().manual_seed(1)
    for parameter in weights.values():
        parameter.data += 0.1 * torch.rand(parameter.shape, generator=generator)
    return save_trained(folder, backbone, config, lora, weights)


def changed(adapter: Path, base: dict[str, Tensor]) -> dict[str, Tensor]:
    """Module -> the matrix that was trained, by the papers' formulas."""
    tensors = {
        name.split(".", 1)[1]: one.double() for name, one in load_file(adapter / WEIGHTS).items()
    }
    found = {}
    for module in {name.split(".lora_")[0].split(".lokr_")[0] for name in tensors}:
        own = {n.removeprefix(f"{module}."): t for n, t in tensors.items() if n.startswith(module)}
        weight = base[f"{module}.weight"].double()
        if "lora_A.weight" in own:
            weight = weight + ALPHA / RANK * own["lora_B.weight"] @ own["lora_A.weight"]
            lengths = weight.norm(dim=1, keepdim=True)
            found[module] = own["lora_magnitude_vector.weight"][:, None] * weight / lengths
        else:
            first, second = (
                own[name] if name in own else own[f"{name}_a"] @ own[f"{name}_b"]
                for name in ("lokr_w1", "lokr_w2")
            )
            found[module] = weight + ALPHA / RANK * torch.kron(first, second)
    return found


def merged(model: nn.Module) -> dict[str, Tensor]:
    """Module -> the base's matrix with what a loader has put on it."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = {}
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
            found[name] = module.get_base_layer().weight.detach()  # type: ignore[operator,union-attr]
    return found


def pipeline(model: str, folder: Path) -> Any:
    import diffusers

    kinds = {"flux-uno": "FluxPipeline", "flux2-klein": "Flux2KleinPipeline"}
    cls = getattr(diffusers, kinds.get(model, "StableDiffusionXLPipeline"))
    return cls.from_pretrained(folder / "base", local_files_only=True)


def loads(kind: AdapterKind, model: str, pipe: Any, source: Any) -> nn.Module:
    """As the card says that it is loaded."""
    part: nn.Module = pipe.unet if model == "sdxl-ip-adapter" else pipe.transformer
    if kind == "lokr" and model != "flux2-klein":
        prefix = "unet" if model == "sdxl-ip-adapter" else "transformer"
        part.load_lora_adapter(source, prefix=prefix, weight_name=WEIGHTS)  # type: ignore[operator]
    else:
        pipe.load_lora_weights(source)
    return part


PLAIN = ("attn1.to_q", "attn2.to_out.0")
"""Of SDXL's UNet without the image adapter."""


@pytest.mark.parametrize("model", ["flux-uno", "flux2-klein", "sdxl-ip-adapter"])
@pytest.mark.parametrize("kind", ["dora", "lokr"])
@pytest.mark.slow
def test_diffusers_reads_what_was_trained(kind: AdapterKind, model: str, tmp_path: Path) -> None:
    targets = PLAIN if model == "sdxl-ip-adapter" else ()
    adapter = make(kind, model, tmp_path, targets)
    out = export_adapter(adapter, tmp_path / "out")
    pipe = pipeline(model, tmp_path)
    part = pipe.unet if model == "sdxl-ip-adapter" else pipe.transformer
    wanted = changed(adapter, {name: one.clone() for name, one in part.state_dict().items()})
    assert len(wanted) > 3
    for source in (out, load_file(out / WEIGHTS)):
        got = merged(loads(kind, model, pipeline(model, tmp_path), source))
        assert got.keys() == wanted.keys()
        for name, weight in wanted.items():
            torch.testing.assert_close(got[name].double(), weight, rtol=1e-4, atol=1e-5)
    card = (out / "README.md").read_text()
    assert f"A {'DoRA' if kind == 'dora' else 'LoKr'} of rank {RANK}" in card
    assert ("load_lora_adapter" in card) == (kind == "lokr" and model != "flux2-klein")
    assert read_card(out).lora.kind == kind


def test_a_lokr_of_klein_for_comfyui_is_read_by_its_pipeline(tmp_path: Path) -> None:
    """By LyCORIS' names, which diffusers knows for FLUX.2."""
    from diffusers import Flux2KleinPipeline

    adapter = make("lokr", "flux2-klein", tmp_path)
    out = export_adapter(adapter, tmp_path / "out", "comfyui")
    read = Flux2KleinPipeline.lora_state_dict(load_file(out / comfyui.LORA))
    own = load_file(adapter / WEIGHTS)
    assert read.keys() == own.keys()
    for name, tensor in own.items():
        scale = ALPHA / RANK if name.endswith((".lokr_w1", ".lokr_w1_a")) else 1
        torch.testing.assert_close(read[name], scale * tensor)


def test_a_lokr_of_sdxl_for_comfyui_has_an_image_adapter(tmp_path: Path) -> None:
    adapter = make("lokr", "sdxl-ip-adapter", tmp_path)
    out = export_adapter(adapter, tmp_path / "out", "comfyui")
    names = {name.rpartition(".")[0] for name in load_file(adapter / WEIGHTS)}
    image = {name for name in names if ".processor." in name}
    plain = {
        name.removeprefix("unet.").replace(".", "_"): name for name in names if name not in image
    }
    made = load_file(out / comfyui.LORA)
    assert {name.partition(".")[0].removeprefix("lycoris_") for name in made} == set(plain)
    config = sdxl_ip_adapter.SdxlIpAdapterConfig.model_validate(
        yaml.safe_load((adapter.parent / "run.yaml").read_text())["models"]["backbone"]
    )
    start = load_file(sdxl_ip_adapter.adapter_path(config))
    after = load_file(out / comfyui.IP_ADAPTER)
    assert sum(not torch.equal(start[name], after[name]) for name in start) == len(image) > 0


@pytest.mark.parametrize(
    ("kind", "layout", "message"),
    [
        ("dora", "comfyui", "a DoRA, which ComfyUI computes in another way.*layout diffusers"),
        ("dora", "uno", "of kind dora, and UNO's code adds products of two matrices"),
        ("lokr", "uno", "of kind lokr, and UNO's code adds products of two matrices"),
    ],
)
def test_a_layout_without_a_form_refuses(
    kind: AdapterKind, layout: Any, message: str, tmp_path: Path
) -> None:
    adapter = make(kind, "flux-uno", tmp_path)
    with pytest.raises(UserError, match=message):
        export_adapter(adapter, tmp_path / "out", layout)
    assert not (tmp_path / "out").exists()
