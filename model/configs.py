"""Every setting of a training run, typed and closed. Imports no torch, so that the command line and
the flows can validate settings at once."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from focusdpo.model.focus_config import FocusConfig, NoiseConfig

_CLOSED = ConfigDict(extra="forbid", frozen=True)


class ObjectiveConfig(BaseModel):
    """What is minimised."""

    model_config = _CLOSED

    name: Literal["focus_dpo", "dpo", "dpo_prior", "sft"] = Field(
        "focus_dpo",
        description="focus_dpo: weighted DPO; dpo: Diffusion-DPO in flow-matching form; "
        "dpo_prior: DPO weighted by M_prior alone; sft: the winner's error",
    )
    beta: float = Field(
        1000.0, gt=0, description="strength, for errors that are means over tokens and channels"
    )
    eta: float = Field(
        0.0,
        ge=0,
        description="anchor: adds eta times the winner's error; the preference itself starts by "
        "pulling on that error with beta / 4",
    )

    @property
    def is_preference(self) -> bool:
        """Whether losers and the reference policy are needed."""
        return self.name != "sft"


class LoraConfig(BaseModel):
    """The policy: one low-rank adapter on the backbone's transformer."""

    model_config = _CLOSED

    rank: int = Field(16, ge=1, description="rank")
    alpha: float = Field(16.0, gt=0, description="scale is alpha / rank")
    targets: tuple[str, ...] = Field(
        (), description="module name suffixes; empty: the backbone's default"
    )


class GuardConfig(BaseModel):
    """When training speaks up or stops. A loss or gradient that is not finite always stops it."""

    model_config = _CLOSED

    window: int = Field(50, ge=1, description="steps that the running means look back over")
    winner_rise: float = Field(
        0.05,
        ge=0,
        description="warn when the winner's error is above the reference policy's by this share: "
        "both branches drift and the loss only looks good",
    )
    spike: float = Field(
        20.0,
        gt=1,
        description="skip a step whose gradient norm is above this many times the usual one, the "
        "highest running median so far",
    )


class TrainConfig(BaseModel):
    """A training run."""

    model_config = _CLOSED

    steps: int = Field(400, ge=1, description="optimiser steps")
    batch_pairs: int = Field(16, ge=1, description="pairs per optimiser step, over all processes")
    micro_pairs: int = Field(
        0, ge=0, description="pairs per forward pass; 0: all of a step's pairs at once"
    )
    lr: float = Field(2e-4, gt=0, description="peak learning rate")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="learning rate after warm-up; the last two end at zero"
    )
    warmup: int = Field(20, ge=0, description="steps of linear warm-up")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's")
    grad_clip: float = Field(1.0, gt=0, description="largest gradient norm")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of averaged weights; 0: none")
    mixed_precision: Literal["auto", "no", "bf16"] = Field(
        "auto",
        description="autocast; errors are float32 in any case. auto: bf16 where the device has "
        "instructions for it (without them it is many times slower)",
    )
    gradient_checkpointing: bool = Field(False, description="less memory, about 50 % more time")
    seed: int = Field(0, ge=0, lt=2**31, description="decides everything random")
    save_every: int = Field(50, ge=1, description="steps between checkpoints")
    log_every: int = Field(10, ge=1, description="steps between log lines")
    tensorboard: bool = Field(True, description="also write curves for TensorBoard")
    cache_mib: int = Field(
        2048, ge=0, description="keep encoded pairs in memory up to this size; beyond, encode anew"
    )
    objective: ObjectiveConfig = Field(ObjectiveConfig(), description="what is minimised")
    focus: FocusConfig = Field(FocusConfig(), description="where and when the loss looks")
    noise: NoiseConfig = Field(NoiseConfig(), description="noise levels")
    lora: LoraConfig = Field(LoraConfig(), description="the policy")
    guards: GuardConfig = Field(GuardConfig(), description="when to warn or stop")

    @model_validator(mode="after")
    def _micro_divides(self) -> TrainConfig:
        if self.micro_pairs and self.batch_pairs % self.micro_pairs:
            raise ValueError(
                f"micro_pairs {self.micro_pairs} must divide batch_pairs {self.batch_pairs}"
            )
        return self

    def identity(self) -> str:
        """Digest of what decides the trajectory: two runs of equal identity may share a folder.

        A run with a constant schedule may be lengthened, so its `steps` stay out."""
        left_out = {"save_every", "log_every", "tensorboard"}
        if self.schedule == "constant":
            left_out.add("steps")
        return digest(self.model_dump(mode="json", exclude=left_out))


def digest(value: Any) -> str:
    """16 hexadecimal digits of a JSON-able value's hash."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
