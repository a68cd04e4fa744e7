"""A trained adapter of the policy adapter_kv as an IP-Adapter file that diffusers loads."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.adapter import read_card, read_weights
from focusdpo.model.backbones.sdxl_config import SdxlIpAdapterConfig
from focusdpo.model.backbones.sdxl_ip_adapter import (
    adapter_path,
    fingerprint,
    unet_config,
)
from focusdpo.model.training.checkpoint import write_file


def save_ip_adapter(config: SdxlIpAdapterConfig, directory: Path, out: Path) -> Path:
    """Writes the start adapter's file with the keys and values of a run's adapter folder in it:
    `pipeline.load_ip_adapter(folder, subfolder="", weight_name=out.name)` reads it.

    UserError for an adapter of another base, or of the policy lora."""
    from safetensors.torch import load_file, save

    directory = Path(directory)
    card = read_card(directory)
    if card.base_fingerprint != fingerprint(config):
        raise UserError(
            f"{directory}: trained on base {card.base_fingerprint}, this configuration is "
            f"{fingerprint(config)}; use the checkpoints and settings of the run"
        )
    trained = read_weights(directory, card)
    numbers = _numbers(config)
    tensors: dict[str, Tensor] = load_file(adapter_path(config))
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
    write_file(out, save(tensors))
    return out


def _numbers(config: SdxlIpAdapterConfig) -> dict[str, int]:
    """Path of each cross-attention's processor -> its odd number in IP-Adapter files."""
    from accelerate import init_empty_weights
    from diffusers import UNet2DConditionModel

    with init_empty_weights():
        unet = UNet2DConditionModel.from_config(unet_config(config))
    names = [name for name in unet.attn_processors if not name.endswith("attn1.processor")]
    return {name: 2 * index + 1 for index, name in enumerate(names)}
