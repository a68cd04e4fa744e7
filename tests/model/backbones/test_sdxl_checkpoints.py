"""SDXL + IP-Adapter files that are whole, and all the ways in which they are not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from broken_sdxl import ADAPTER, BROKEN, ENCODER, rewrite
from diffusers import UNet2DConditionModel
from pydantic import ValidationError
from safetensors.torch import load_file
from tiny_flux import edit_json
from tiny_sdxl import save_base, save_image_encoder, save_tiny_sdxl, tiny_config

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.backbones.sdxl_config import SdxlIpAdapterConfig
from focusdpo.model.backbones.sdxl_features import default_blocks
from focusdpo.model.backbones.sdxl_ip_adapter import (
    build,
    checks,
    cross_attention_widths,
    fingerprint,
    image_keys,
    sources,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def run(config: SdxlIpAdapterConfig) -> dict[str, str]:
    return {name: check() for name, check in checks(config).items()}


def test_whole_checkpoints_are_told(whole: Path) -> None:
    assert run(tiny_config(whole)) == {
        "SDXL UNet": "UNet2DConditionModel, 0.5 M weights in 1 files, 11 attentions",
        "SDXL autoencoder": "AutoencoderKL, 0.0 M weights in 1 files",
        "SDXL text encoders": "16 + 16 channels",
        "SDXL scheduler": "EulerDiscreteScheduler, predicts epsilon",
        "IP-Adapter-Plus": "16 image tokens, 11 attentions, 0.1 M weights",
        "CLIP image encoder": "CLIPVisionModelWithProjection, 0.0 M weights in 1 files, 32 "
        "channels at 28 pixels",
    }


def test_the_public_unet_has_the_public_adapter_s_numbers() -> None:
    """ip-adapter-plus_sdxl_vit-h: 70 attentions, keys 1 to 139, 341 M weights; the order is that of
    diffusers' attention processors."""
    public: dict[str, Any] = {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [320, 640, 1280],
        "layers_per_block": 2,
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    with init_empty_weights():
        unet = UNet2DConditionModel.from_config(public)
    assert sum(parameter.numel() for parameter in unet.parameters()) == 2_567_463_684
    names = [n.removesuffix(".processor") for n in unet.attn_processors if "attn2" in n]
    widths = cross_attention_widths(public)
    assert widths == [unet.get_submodule(name).to_k.out_features for name in names]
    assert (len(widths), widths.count(1280), widths.count(640)) == (70, 60, 10)
    keys = image_keys(public)
    assert keys["ip_adapter.1.to_k_ip.weight"] == (640, 2048)
    assert keys["ip_adapter.139.to_v_ip.weight"] == (1280, 2048)
    assert sum(rows * columns for rows, columns in keys.values()) == 340_787_200
    assert default_blocks(unet, "unet_self") == ("up.0", "up.1")
    assert default_blocks(unet, "ip_kv") == ("up.0.0", "up.0.1", "up.0.2")


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_said_before_anything_loads(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_it, message = BROKEN[name]
    break_it(folder)
    monkeypatch.setattr(
        "focusdpo.model.backbones.sdxl_backbone.load", lambda *_: pytest.fail("loaded")
    )
    with pytest.raises(UserError, match=message):
        build(tiny_config(folder), "cpu")


def test_a_place_that_is_not_there_is_named(whole: Path) -> None:
    with pytest.raises(UserError, match=r"models\.backbone\.base: .*nowhere does not exist"):
        run(tiny_config(whole, base=str(whole / "nowhere")))
    with pytest.raises(UserError, match=r"neither a folder here nor in the hub's cache"):
        run(tiny_config(whole, base="nobody/sdxl"))
    with pytest.raises(UserError, match=r"models\.backbone\.adapter: "):
        run(tiny_config(whole, adapter="nobody/ip-adapter"))
    with pytest.raises(UserError, match=r"models\.backbone\.image_encoder: "):
        run(tiny_config(whole, image_encoder="nobody/clip"))


def test_sizes_fit_the_unet(whole: Path) -> None:
    assert run(tiny_config(whole, image_size=(96, 64)))
    with pytest.raises(UserError, match=r"image_size \[80, 64\].*multiples of 32"):
        run(tiny_config(whole, image_size=(80, 64)))
    with pytest.raises(UserError, match=r"reference_size 48 must be multiples of 32"):
        run(tiny_config(whole, reference_size=48))
    with pytest.raises(ValidationError, match="multiples of 16"):
        tiny_config(whole, image_size=(100, 64))
    with pytest.raises(ValidationError, match="set image_encoder"):
        tiny_config(whole, adapter=str(whole / ADAPTER))


def test_the_adapter_may_be_the_file_itself(whole: Path) -> None:
    config = tiny_config(whole, adapter=str(whole / ADAPTER), image_encoder=str(whole / ENCODER))
    assert run(config)["IP-Adapter-Plus"].startswith("16 image tokens")
    assert fingerprint(config) == fingerprint(tiny_config(whole))


def test_variants(folder: Path) -> None:
    with pytest.raises(UserError, match=r"set models\.backbone\.variant to null"):
        run(tiny_config(folder, variant="fp16"))
    for path in (folder / "base").rglob("*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    with pytest.raises(UserError, match=r"set models\.backbone\.variant to 'fp16'"):
        run(tiny_config(folder))
    config = tiny_config(folder, variant="fp16")
    backbone = build(config, "cpu")
    assert backbone.fingerprint == fingerprint(config)
    for path in (folder / "base").rglob("*.fp16.safetensors"):
        plain = path.with_name(path.name.replace(".fp16", ""))
        plain.write_bytes(path.read_bytes())
    assert run(tiny_config(folder))
    assert run(config)


def test_the_fingerprint_is_of_weights_and_of_what_changes_results(folder: Path) -> None:
    config = tiny_config(folder)
    start = fingerprint(config)
    assert build(config, "cpu").fingerprint == start
    moved = Path(shutil.copytree(folder, folder.parent / "moved"))
    assert fingerprint(tiny_config(moved)) == start
    same = {"offload": True, "prompt_cache_mib": 1}
    assert fingerprint(tiny_config(folder, **same)) == start
    changes: list[dict[str, Any]] = [
        {"scale": 0.5},
        {"policy": "adapter_kv"},
        {"features": "ip_kv"},
        {"steps": 4},
        {"guidance": 2.0},
        {"scheduler": "ddim"},
        {"original_size": (128, 128)},
        {"reference_crop": "whole"},
        {"dtype": "bf16"},
    ]
    assert len({start, *(fingerprint(tiny_config(folder, **c)) for c in changes)}) == 10
    found = {start}
    for path in sorted(folder.rglob("*.safetensors")):
        first = sorted(load_file(path))[0]
        rewrite(path, lambda t, first=first: t | {first: t[first] + 1})  # type: ignore[misc]
        found.add(fingerprint(config))
    edit_json(folder / "base/scheduler/scheduler_config.json", beta_end=0.02)
    found.add(fingerprint(config))
    assert len(found) == 8  # 6 files of weights and the schedule


def test_checkpoints_that_predict_v_are_told(tmp_path: Path, whole: Path) -> None:
    save_base(tmp_path / "base", prediction="v_prediction")
    config = tiny_config(whole, base=str(tmp_path / "base"))
    assert run(config)["SDXL scheduler"] == "EulerDiscreteScheduler, predicts v_prediction"
    assert run(tiny_config(whole, scheduler="dpm++"))["SDXL scheduler"].startswith("DPMSolver")


def test_what_fetch_downloads() -> None:
    config = SdxlIpAdapterConfig(variant="fp16")
    base, adapter = sources(config)
    assert base[:2] == ("models.backbone.base", "stabilityai/stable-diffusion-xl-base-1.0")
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in (base[2] or [])
    assert adapter[1] == "h94/IP-Adapter"
    assert adapter[2] == [
        "sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors",
        "models/image_encoder/config.json",
        "models/image_encoder/*.safetensors",
    ]
    apart = sources(SdxlIpAdapterConfig(image_encoder="laion/CLIP"))
    assert ("models.backbone.image_encoder", "laion/CLIP") in [source[:2] for source in apart]


def test_the_vision_tower_may_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder / ENCODER)
    with torch.random.fork_rng(devices=[]):
        save_image_encoder(tmp_path / "clip")
    assert run(tiny_config(folder, image_encoder=str(tmp_path / "clip")))
