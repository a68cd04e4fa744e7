"""Ways in which SDXL + IP-Adapter files are not what they should be, and what is said of each;
of every part one that is read: what all weights may lack is tested beside `store.checkpoints`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny_flux import edit_json as edit
from tiny_sdxl import PLUS
from torch import Tensor

UNET = "base/unet/diffusion_pytorch_model.safetensors"
ADAPTER = f"adapter/sdxl_models/{PLUS}"
ENCODER = "adapter/models/image_encoder"


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file({n: t.contiguous() for n, t in change(load_file(path)).items()}, path)


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no pipeline": (
        lambda f: (f / "base/model_index.json").unlink(),
        r"models\.backbone\.base: .*no model_index\.json",
    ),
    "another pipeline": (
        lambda f: edit(f / "base/model_index.json", _class_name="StableDiffusionPipeline"),
        r"models\.backbone\.base: .*StableDiffusionPipeline, expected StableDiffusionXLPipeline",
    ),
    "another denoiser": (
        lambda f: edit(f / "base/unet/config.json", _class_name="FluxTransformer2DModel"),
        r"FluxTransformer2DModel, expected UNet2DConditionModel",
    ),
    "an inpainting UNet": (
        lambda f: edit(f / "base/unet/config.json", in_channels=9),
        r"in_channels 9, SDXL has 4",
    ),
    "Stable Diffusion 1.5": (
        lambda f: edit(f / "base/unet/config.json", addition_embed_type=None),
        r"addition_embed_type None, SDXL has 'text_time'",
    ),
    "no UNet weights": (
        lambda f: (f / UNET).unlink(),
        r"models\.backbone\.base: .*unet holds no \*\.safetensors",
    ),
    "a tensor missing": (
        lambda f: rewrite(f / UNET, lambda t: {n: v for n, v in t.items() if n != "conv_in.bias"}),
        r"not the weights of the UNet2DConditionModel .*: 1 tensors missing, first: conv_in\.bias",
    ),
    "another autoencoder": (
        lambda f: edit(f / "base/vae/config.json", latent_channels=16),
        r"not SDXL's autoencoder",
    ),
    "half an autoencoder": (
        lambda f: rewrite(
            f / "base/vae/diffusion_pytorch_model.safetensors",
            lambda t: {n: v for n, v in t.items() if n.startswith("encoder.")},
        ),
        r"not the weights of the AutoencoderKL .*: .*missing, first: decoder\.",
    ),
    "text encoders in the wrong place": (
        lambda f: shutil.copytree(
            f / "base/text_encoder", f / "base/text_encoder_2", dirs_exist_ok=True
        ),
        r"CLIPTextModel, expected CLIPTextModelWithProjection",
    ),
    "a text layer missing": (
        lambda f: rewrite(
            f / "base/text_encoder_2/model.safetensors",
            lambda t: {n: v for n, v in t.items() if "layers.1." not in n},
        ),
        r"not the weights of the CLIPTextModelWithProjection .*: 16 tensors missing",
    ),
    "no tokenizer": (
        lambda f: (f / "base/tokenizer_2/merges.txt").unlink(),
        r"tokenizer_2 lacks tokenizer\.json or vocab\.json \+ merges\.txt",
    ),
    "a flow scheduler": (
        lambda f: (f / "base/scheduler/scheduler_config.json").write_text(
            json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler"})
        ),
        r"is not a schedule of SDXL",
    ),
    "a sampler that draws noise": (
        lambda f: edit(
            f / "base/scheduler/scheduler_config.json",
            _class_name="EulerAncestralDiscreteScheduler",
        ),
        r"EulerAncestralDiscreteScheduler draws noise .*models\.backbone\.scheduler to euler",
    ),
    "no adapter": (
        lambda f: (f / ADAPTER).unlink(),
        r"models\.backbone\.adapter: .*lacks sdxl_models/ip-adapter-plus.*hf download h94",
    ),
    "a pickled adapter": (
        lambda f: (f / ADAPTER).rename((f / ADAPTER).with_suffix(".bin")),
        r"models\.backbone\.adapter: .*\.bin is a pickle",
    ),
    "IP-Adapter without Plus": (
        lambda f: rewrite(
            f / ADAPTER,
            lambda t: (
                {n: v for n, v in t.items() if n.startswith("ip_adapter.")}
                | {"image_proj.proj.weight": torch.zeros(128, 16)}
            ),
        ),
        r"is the IP-Adapter without Plus; ip-adapter-plus_sdxl_vit-h\.safetensors is expected",
    ),
    "a face adapter": (
        lambda f: rewrite(f / ADAPTER, lambda t: {"image_proj.proj.0.weight": torch.zeros(8, 8)}),
        r"is a face IP-Adapter",
    ),
    "an adapter for another base": (
        lambda f: rewrite(
            f / ADAPTER, lambda t: t | {"image_proj.proj_out.weight": torch.zeros(24, 32)}
        ),
        r"writes 24 channels, the UNet reads 32",
    ),
    "an adapter with too few keys": (
        lambda f: rewrite(f / ADAPTER, lambda t: {n: v for n, v in t.items() if ".21." not in n}),
        r"IP-Adapter-Plus for this UNet: 2 tensors missing, first: ip_adapter\.21\.to_k_ip",
    ),
    "an adapter of wrong widths": (
        lambda f: rewrite(
            f / ADAPTER, lambda t: t | {"ip_adapter.1.to_k_ip.weight": torch.zeros(64, 32)}
        ),
        r"ip_adapter\.1\.to_k_ip\.weight is \(64, 32\), expected \(32, 32\)",
    ),
    "a resampler with a layer missing": (
        lambda f: rewrite(
            f / ADAPTER, lambda t: {n: v for n, v in t.items() if "layers.3." not in n}
        ),
        r"11 tensors missing, first: image_proj\.layers\.3\.",
    ),
    "no image encoder": (
        lambda f: shutil.rmtree(f / ENCODER),
        r"models\.backbone\.image_encoder: .*is not there; .*hf download h94/IP-Adapter",
    ),
    "another image encoder": (
        lambda f: edit(f / ENCODER / "config.json", architectures=["Dinov2Model"]),
        r"models\.backbone\.image_encoder: .*Dinov2Model, expected CLIPVisionModel",
    ),
    "the bigger image encoder": (
        lambda f: edit(f / ENCODER / "config.json", hidden_size=48),
        r"reads 32 channels, the image encoder gives 48.*models/image_encoder \(ViT-H",
    ),
    "an image encoder without its last layer": (
        lambda f: rewrite(
            f / ENCODER / "model.safetensors",
            lambda t: {n: v for n, v in t.items() if "layers.2." not in n},
        ),
        r"models\.backbone\.image_encoder: not .* the CLIPVisionModel.*: 16 tensors missing",
    ),
}
