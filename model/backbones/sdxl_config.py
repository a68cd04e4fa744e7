"""Settings of the SDXL + IP-Adapter-Plus backbone. Imports no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.strict import StrictModel

SAMPLERS = {
    "euler": "EulerDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
}
QUIET = (*SAMPLERS.values(), "PNDMScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler")
"""Samplers that draw no noise on their way: an image depends on its seed alone."""
_PREDICTIONS = ("epsilon", "v_prediction")


def check_scheduler(config: dict[str, Any], sampler: str, field: str) -> str:
    """One line on a checkpoint's scheduler_config.json. UserError for one that is not of SDXL's
    kind or, where the checkpoint's own sampler is asked for, draws noise on its way."""
    name = str(config.get("_class_name", "a scheduler without a class"))
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS or "sigma_data" in config or "beta_start" not in config:
        raise UserError(
            f"{field}: {name} with prediction_type {prediction!r} is not a schedule of SDXL; "
            f"{' and '.join(_PREDICTIONS)} on a beta schedule are"
        )
    noisy = name not in QUIET or str(config.get("algorithm_type", "")).startswith("sde")
    if sampler == "checkpoint" and noisy:
        raise UserError(
            f"{field}: {name} draws noise on its way or is not known here; set "
            f"models.backbone.scheduler to {', '.join(SAMPLERS)}"
        )
    return f"{name if sampler == 'checkpoint' else SAMPLERS[sampler]}, predicts {prediction}"


MULTIPLE = 16
"""Pixels of a token's side: the autoencoder's factor of 8 times the 2 x 2 packing."""
CHANNELS = 16
"""Of a packed token: 4 latent channels times 2 x 2."""

KV_TARGETS = ("to_k_ip.0", "to_v_ip.0")
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", *KV_TARGETS)
"""A pipeline must load the IP-Adapter before such a LoRA: the other way round diffusers leaves out
what belongs to the adapter's keys and values, with no more than a line in the log."""

PLUS = "sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors"
ENCODER = "models/image_encoder"


class SdxlIpAdapterConfig(StrictModel):
    """SDXL (or a fine-tune of it, such as RealVisXL) with IP-Adapter-Plus (arXiv 2308.06721)."""

    kind: Literal["sdxl-ip-adapter"] = Field(
        "sdxl-ip-adapter", description="which backbone this is"
    )
    base: str = Field(
        "stabilityai/stable-diffusion-xl-base-1.0",
        description="SDXL in diffusers' layout: a folder or a hub id",
    )
    variant: str | None = Field(
        None,
        description='which of the base\'s weight files, e.g. "fp16" for *.fp16.safetensors; null: '
        "those without a variant",
    )
    adapter: str = Field(
        "h94/IP-Adapter",
        description="IP-Adapter in its authors' layout: a folder or a hub id, or the very file",
    )
    adapter_file: str = Field(PLUS, description="the adapter's file in that folder")
    image_encoder: str | None = Field(
        None,
        description=f"folder of the CLIP vision tower (ViT-H); null: {ENCODER} of the adapter's "
        "folder. sdxl_models/image_encoder is another one (ViT-bigG) and does not fit",
    )
    image_size: tuple[int, int] = Field(
        (1024, 1024), description="height and width of painted images, pixels"
    )
    original_size: tuple[int, int] | None = Field(
        None,
        description="size condition: what the picture measured before it was scaled; null: "
        "image_size. Small values ask for the look of upscaled pictures",
    )
    crop_top_left: tuple[int, int] = Field((0, 0), description="size condition: crop, pixels")
    reference_size: int = Field(
        512,
        description="side in pixels at which references go through the UNet (features unet_self)",
    )
    reference_crop: Literal["subject", "whole"] = Field(
        "subject",
        description="what of a reference is shown, on white: the subject's surroundings, enlarged, "
        "or the whole picture; both padded to a square, so that CLIP's crop cuts nothing off",
    )
    scale: float = Field(
        0.78, gt=0, description="weight of the image tokens' attention (PatchDPO: 0.78)"
    )
    policy: Literal["lora", "adapter_kv"] = Field(
        "lora",
        description="what trains. lora: a LoRA on the UNet's attention; adapter_kv: the adapter's "
        "own keys and values, as PatchDPO does (341 M weights; the start weights stay beside them)",
    )
    features: Literal["unet_self", "ip_kv"] = Field(
        "unet_self",
        description="how target tokens are compared with references. unet_self: the references, "
        "noised alike, go through the UNet once more, without image tokens; ip_kv: the target's "
        "cross-attention queries against the references' image keys, with no further pass",
    )
    blocks: tuple[str, ...] = Field(
        (),
        description='blocks that token features come from, e.g. "up.0", "up.1", where training '
        "names none; empty: the up blocks with attention (unet_self), the layers of up.0 (ip_kv)",
    )
    steps: int = Field(30, ge=1, description="sampling steps")
    guidance: float = Field(
        5.0,
        ge=1,
        description="scale on (prompt and references) - (neither); 1: one pass per step, no scale",
    )
    scheduler: Literal["checkpoint", "euler", "ddim", "dpm++"] = Field(
        "checkpoint",
        description="sampler: the base's own, or another on the same noise schedule; none of them "
        "draws noise on its way",
    )
    strength: float = Field(
        1.0, gt=0, le=1, description="share of the steps that a repaint goes through"
    )
    dtype: Literal["bf16", "fp16", "fp32"] = Field(
        "bf16", description="of the UNet, the adapter and the encoders; fp16: for painting only"
    )
    vae_dtype: Literal["bf16", "fp32"] = Field(
        "fp32", description="of the autoencoder; SDXL's overflows in fp16"
    )
    quantise: Literal["none", "8bit", "4bit"] = Field(
        "none",
        description="bitsandbytes weights of the UNet's linear layers (QLoRA): needs a GPU; "
        "convolutions and the image adapter stay as they are",
    )
    offload: bool = Field(
        False,
        description="keep encoders and autoencoder on the CPU, and bring them to the device only "
        "to encode or decode",
    )
    prompt_cache_mib: int = Field(
        512, ge=0, description="prompt embeddings kept in main memory (0.3 MiB each in bf16)"
    )

    @field_validator("image_size", "reference_size")
    @classmethod
    def _whole_tokens(cls, value: tuple[int, int] | int) -> tuple[int, int] | int:
        sizes = (value,) if isinstance(value, int) else value
        if any(size <= 0 or size % MULTIPLE for size in sizes):
            raise ValueError(f"{list(sizes)}: sizes are positive multiples of {MULTIPLE} pixels")
        return value

    @model_validator(mode="after")
    def _encoder_is_known(self) -> SdxlIpAdapterConfig:
        if self.adapter.endswith(".safetensors") and self.image_encoder is None:
            raise ValueError("adapter is a file: set image_encoder to the CLIP vision folder")
        return self

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """Modules of the UNet that the policy covers by default."""
        return LORA_TARGETS if self.policy == "lora" else KV_TARGETS

    def result_settings(self) -> str:
        """Those fields that change what is painted or learned, as JSON."""
        places = {"base", "variant", "adapter", "adapter_file", "image_encoder"}
        plain = {"quantise"} if self.quantise == "none" else set()
        return self.model_dump_json(exclude=places | plain | {"offload", "prompt_cache_mib"})
