"""What `python -m benchmarks --gpu` measures: architectures, settings, rows. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any, Literal

from pydantic import Field, model_validator

from focusdpo.data_schemas.strict import StrictModel

ModelName = Literal["flux", "sdxl", "klein"]
Objective = Literal["sft", "dpo", "focus_dpo"]
Base = Literal["bf16", "fp32", "nf4"]
STRAIGHTFORWARD = "straightforward dpo"
"""The method that is compared: Diffusion-DPO as one writes it down first."""

FULL: dict[str, dict[str, Any]] = {
    # transformer/config.json of black-forest-labs/FLUX.1-dev: 11.90 B parameters.
    "flux": {
        "patch_size": 1,
        "in_channels": 64,
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": True,
        "axes_dims_rope": (16, 56, 56),
    },
    # transformer/config.json of black-forest-labs/FLUX.2-klein-base-4B: 3.88 B parameters.
    "klein": {
        "patch_size": 1,
        "in_channels": 128,
        "num_layers": 5,
        "num_single_layers": 20,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 7680,
        "guidance_embeds": False,
        "axes_dims_rope": (32, 32, 32, 32),
    },
    # unet/config.json of stabilityai/stable-diffusion-xl-base-1.0: 2.567 B parameters.
    "sdxl": {
        "sample_size": 128,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (320, 640, 1280),
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
TINY: dict[str, dict[str, Any]] = {
    "flux": {
        **FULL["flux"],
        "num_layers": 3,
        "num_single_layers": 2,
        "attention_head_dim": 32,  # bitsandbytes packs widths of multiples of 32 on a CPU
        "num_attention_heads": 2,
        "joint_attention_dim": 64,
        "pooled_projection_dim": 64,
        "axes_dims_rope": (8, 12, 12),
    },
    "klein": {
        **FULL["klein"],
        "num_layers": 3,
        "num_single_layers": 2,
        "attention_head_dim": 32,
        "num_attention_heads": 2,
        "joint_attention_dim": 64,
        "axes_dims_rope": (8, 8, 8, 8),
    },
    "sdxl": {
        **FULL["sdxl"],
        "sample_size": 16,
        "block_out_channels": (8, 16, 16),
        "layers_per_block": 1,
        "transformer_layers_per_block": (1, 1, 2),
        "attention_head_dim": (2, 2, 2),
        "norm_num_groups": 4,
        "cross_attention_dim": 32,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 16,
    },
}


@dataclass(frozen=True)
class Setting:
    """Methods that are measured in turn on one model in one state."""

    model: ModelName
    base: Base
    pairs: int
    checkpointing: bool
    methods: tuple[str, ...]
    memory: Literal["joint", "sequential"] = "joint"
    limit_gib: float | None = None
    """The allocator gives no more than a card of this size would; None: all there is."""


@dataclass(frozen=True)
class Row:
    """What a method took in a setting."""

    model: str
    base: str
    method: str
    pairs: int
    checkpointing: bool
    memory: str
    limit_gib: float | None
    failure: str | None = None
    """Why there are no figures: out of memory, and where."""
    seconds: float | None = None
    """Median of a step."""
    to_dpo: float | None = None
    """Median over rounds of its step / the dpo step of the same round."""
    step_flops: int | None = None
    """Model FLOPs of a step."""
    passes: int | None = None
    """Forward passes of the transformer in a step."""
    peak_bytes: int | None = None
    """Most memory in tensors at once; None where it is not measured."""
    reserved_bytes: int | None = None
    """Most memory that the allocator took from the device."""

    def same(self, other: Row) -> bool:
        """Whether the two differ in their method alone."""
        return all(getattr(self, name) == getattr(other, name) for name in STATE)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


STATE = ("model", "base", "pairs", "checkpointing", "memory", "limit_gib")


class GpuBenchConfig(StrictModel):
    """Settings of `python -m benchmarks --gpu`; `--set FIELD=VALUE` changes one."""

    models: tuple[ModelName, ...] = Field(
        ("flux", "sdxl", "klein"),
        min_length=1,
        description="architectures: FLUX.1-dev, SDXL, FLUX.2 Klein (base, 4B)",
    )
    scale: Literal["full", "tiny"] = Field(
        "full", description="tiny: a few 100,000 weights, to try the command out"
    )
    device: str = Field("cuda", description="cuda, cuda:1, ...; cpu only to try the command out")
    objectives: tuple[Objective, ...] = Field(
        ("sft", "dpo", "focus_dpo"), min_length=1, description="what a step minimises"
    )
    pairs: tuple[int, ...] = Field(
        (1, 2, 3, 4), min_length=1, description="pairs per step; a pair is two images"
    )
    checkpointing: tuple[bool, ...] = Field(
        (True, False), min_length=1, description="gradient checkpointing on, off"
    )
    straightforward: bool = Field(
        True, description="also measure DPO with a frozen copy of the model and a pass per image"
    )
    sequential: bool = Field(
        True, description="also measure memory=sequential, with the fewest pairs"
    )
    quantised: Literal["auto", "yes", "no"] = Field(
        "auto",
        description="also measure FLUX and Klein on a 4-bit base (nf4), with the fewest pairs; "
        "auto: where bitsandbytes is installed",
    )
    limits: bool = Field(
        True, description="also run within 48 GiB and 24 GiB, where they are promised"
    )
    rank: int = Field(32, ge=1, description="of the LoRA")
    image_size: int = Field(512, ge=16, description="side of the images in pixels")
    references: int = Field(2, ge=0, le=3, description="references of an image")
    reference_size: int = Field(320, ge=16, description="side of a reference in pixels (UNO: 320)")
    sdxl_reference_size: int = Field(
        512, ge=16, description="side at which SDXL's UNet sees a reference for the focus maps"
    )
    text_tokens: int = Field(512, ge=1, description="tokens of a FLUX prompt (SDXL always has 77)")
    repeats: int = Field(10, ge=1, description="timed steps of each method")
    warmup: int = Field(2, ge=1, description="steps before, that memory is measured on")
    peak_tflops: float | None = Field(
        None, gt=0, description="the device's dense bf16 TFLOP/s; null: by the device's name"
    )

    @model_validator(mode="after")
    def _whole_tokens(self) -> GpuBenchConfig:
        for name in ("image_size", "reference_size", "sdxl_reference_size"):
            if getattr(self, name) % 32:
                raise ValueError(f"{name} {getattr(self, name)} must be a multiple of 32 pixels")
        if any(pairs < 1 for pairs in self.pairs):
            raise ValueError(f"pairs {list(self.pairs)}: each is at least 1")
        return self

    @property
    def on_cpu(self) -> bool:
        return self.device == "cpu"

    def architecture(self, model: ModelName) -> dict[str, Any]:
        """Arguments of the model's class."""
        return (FULL if self.scale == "full" else TINY)[model]

    def bases(self, model: ModelName) -> tuple[Base, ...]:
        """In what form the frozen weights are measured."""
        plain: Base = "fp32" if self.on_cpu else "bf16"
        wanted = self.quantised == "yes" or (
            self.quantised == "auto" and not self.on_cpu and find_spec("bitsandbytes") is not None
        )
        return (plain, "nf4") if wanted and model != "sdxl" else (plain,)

    def settings(self, model: ModelName, base: Base) -> Iterator[Setting]:
        """All settings of a model: the narrow ones first, should time run out."""
        fewest = min(self.pairs)
        focus = tuple(name for name in ("dpo", "focus_dpo") if name in self.objectives)
        if self.limits and focus and not self.on_cpu:
            gib = 48.0 if (model, base) == ("flux", "bf16") else 24.0
            yield Setting(model, base, fewest, True, focus, limit_gib=gib)
        if base == "nf4":
            yield Setting(model, base, fewest, True, self.objectives)
            return
        for checkpointing in self.checkpointing:
            if self.sequential and focus:
                yield Setting(model, base, fewest, checkpointing, focus, "sequential")
            for pairs in self.pairs:
                yield Setting(model, base, pairs, checkpointing, self.objectives)
                if self.straightforward:
                    yield Setting(model, base, pairs, checkpointing, (STRAIGHTFORWARD,))
