"""What a whole command takes of a machine: the models that are in memory together, activations,
optimiser, main memory, temporary files. From the sizes in the checkpoints' headers; nothing is
loaded. Bytes throughout."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from focusdpo.flows.checkpoint_suite import (
    JUDGES,
    config_of,
    module_of,
    named_roles,
    resident_roles,
)
from focusdpo.flows.models_config import ModelsConfig
from focusdpo.model.backbones.footprint import Footprint
from focusdpo.model.training.config import TrainConfig
from focusdpo.pipeline.stage import OPTIONAL
from focusdpo.pipeline.stage import ROLES as STAGE_ROLES
from focusdpo.store.checkpoints import local_files

Command = Literal["build-dataset", "train", "evaluate"]
CONTEXT = 2**30
"""What CUDA and the allocator's slack take beside tensors."""
PROCESS = 3 * 2**30
"""Main memory of Python, torch and what is decoded."""
SLACK = 1.05
"""On what is computed with: kernels' scratch space."""
SEGMENTING = 2.5 * 2**30
"""SAM's image encoder at work on one picture, in float32; halved in bfloat16."""
SCORING = 2**30
"""Identity and CLIP encoders at work."""
_WEIGHTS = (".safetensors", ".pth", ".pt", ".bin")


@dataclass(frozen=True)
class Demand:
    """At its fullest moment."""

    command: Command
    when: str
    """Which moment that is."""
    parts: dict[str, float] = field(default_factory=dict)
    """What is on the device then."""
    host: float = 0.0
    scratch: float = 0.0

    @property
    def device(self) -> float:
        """The sum of the parts."""
        return sum(self.parts.values())


def footprint(models: ModelsConfig, references: int = 2) -> Footprint | None:
    """The backbone's; None for one from outside that does not tell."""
    tell = getattr(module_of(models, "backbone"), "footprint", None)
    answer: Footprint | None = None if tell is None else tell(models.backbone, references)
    return answer


def weights_of(models: ModelsConfig, role: str) -> float:
    """What a part's weights take on the device: by its own account, else the size of its files."""
    config, module = config_of(models, role), module_of(models, role)
    if (tell := getattr(module, "device_bytes", None)) is not None:
        return float(tell(config))
    if role == "backbone" and (usage := footprint(models)) is not None:
        return usage.device
    return float(
        sum(
            file.stat().st_size
            for name, source, patterns in module.sources(config)
            for file in local_files(source, name, patterns)
            if file.suffix in _WEIGHTS
        )
    )


def _at_work(models: ModelsConfig, role: str) -> float:
    """Beside weights, while a part works."""
    if role == "backbone":
        usage = footprint(models)
        return 0.0 if usage is None else max(models.batch * usage.painting, usage.decoding)
    if "segmenter" in role:
        config = config_of(models, role)
        half = 2 if getattr(config, "dtype", "") == "bfloat16" else 1
        return SEGMENTING * getattr(config, "mask_batch", 1) / half
    return SCORING if role in ("identity", "clip", "safety", "judge_identity") else 0.0


def _together(command: Command, models: ModelsConfig, when: str, roles: set[str]) -> Demand:
    """Parts that are in memory at one time, one of them at work."""
    parts = {role: weights_of(models, role) for role in named_roles(models) if role in roles}
    parts = {role: size for role, size in parts.items() if size}
    work = max((_at_work(models, role) for role in roles), default=0.0)
    parts |= {"at work": SLACK * work, "CUDA": CONTEXT}
    return Demand(command, when, parts, *_host(models, roles))


def _host(models: ModelsConfig, roles: set[str]) -> tuple[float, float]:
    usage = footprint(models) if "backbone" in roles else None
    largest = max((weights_of(models, role) for role in roles), default=0.0)
    if usage is None:
        return PROCESS + largest, 0.0
    others = max((weights_of(models, role) for role in roles - {"backbone"}), default=0.0)
    return PROCESS + max(usage.host, others), usage.scratch


def build_demand(models: ModelsConfig) -> Demand:
    """The stage that takes most; parts of other stages are freed."""
    stages = {
        name: resident_roles((*roles, *OPTIONAL.get(name, ()))) & set(named_roles(models))
        for name, roles in STAGE_ROLES.items()
        if roles
    }
    demands = [
        _together("build-dataset", models, f"stage {name}", roles) for name, roles in stages.items()
    ]
    return max(demands, key=lambda demand: demand.device)


def evaluate_demand(models: ModelsConfig) -> Demand:
    """Backbone and panel stay side by side: each model is painted with, then judged."""
    return _together("evaluate", models, "painting and judging", set(PAINTING_AND_JUDGING))


def train_demand(models: ModelsConfig, train: TrainConfig, references: int = 2) -> Demand:
    """A pass of `micro_pairs` pairs, with their encoders beside it."""
    usage = footprint(models, references)
    if usage is None:
        return Demand("train", "training", {"backbone": weights_of(models, "backbone")})
    pairs = train.micro_pairs if train.micro_pairs > 0 else train.batch_pairs
    if train.micro_pairs < 0:  # tried out: at least one fits
        pairs = 1
    passing = usage.activations(
        pairs,
        checkpointing=train.gradient_checkpointing,
        sequential=train.memory == "sequential" and train.objective.definition.losers,
        kind=train.lora.kind,
    )
    parts = {
        "backbone": usage.device,
        "policy and optimiser": usage.policy(train.lora.rank, train.lora.kind),
        "at work": SLACK * max(passing, usage.decoding),
        "CUDA": CONTEXT,
    }
    return Demand("train", f"a pass of {pairs} pairs", parts, PROCESS + usage.host, usage.scratch)


def demand_of(command: Command, models: ModelsConfig, train: TrainConfig | None) -> Demand:
    """Of one command."""
    if command == "train":
        return train_demand(models, train or TrainConfig())
    return build_demand(models) if command == "build-dataset" else evaluate_demand(models)


PAINTING_AND_JUDGING = ("backbone", "clip", *JUDGES)
"""The parts of an evaluation."""

LESS: dict[Command, tuple[tuple[str, Any], ...]] = {
    "train": (
        ("train.gradient_checkpointing", True),
        ("train.micro_pairs", 1),
        ("train.memory", "sequential"),
        ("models.backbone.offload", True),
        ("models.backbone.quantise", "8bit"),
        ("models.backbone.quantise", "4bit"),
    ),
    "build-dataset": (
        ("models.batch", 1),
        ("models.segmenter.mask_batch", 1),
        ("models.backbone.offload", True),
        ("models.inpainter.offload", True),
        ("models.backbone.quantise", "8bit"),
        ("models.backbone.quantise", "4bit"),
    ),
    "evaluate": (
        ("models.batch", 1),
        ("models.judge_segmenter.mask_batch", 1),
        ("models.backbone.offload", True),
        ("models.backbone.quantise", "8bit"),
        ("models.backbone.quantise", "4bit"),
    ),
}
"""Settings that save memory, the mildest first."""


def fitting_settings(
    command: Command, models: ModelsConfig, train: TrainConfig | None, room: float
) -> dict[str, Any] | None:
    """The mildest settings with which a command takes at most `room` on the device; None where
    none of them suffices. Those that save nothing are left out."""
    chosen: dict[str, Any] = {}
    now = demand_of(command, models, train).device
    for name, value in LESS[command]:
        if now <= room:
            return chosen
        changed = _with(models, train, name, value)
        if changed is None:
            continue
        less = demand_of(command, *changed).device
        if less < now:
            models, train, now = *changed, less
            chosen[name] = value
    return chosen if now <= room else None


def _with(
    models: ModelsConfig, train: TrainConfig | None, name: str, value: Any
) -> tuple[ModelsConfig, TrainConfig | None] | None:
    """The settings with one changed; None where it is so already, or there is none."""
    section, *rest = name.split(".")
    if section == "train":
        if train is None or getattr(train, rest[0]) == value:
            return None
        return models, train.model_copy(update={rest[0]: value})
    if len(rest) == 1:
        if getattr(models, rest[0]) == value:
            return None
        return models.model_copy(update={rest[0]: value}), train
    role, setting = rest
    part = getattr(models, role)
    if getattr(part, setting, value) == value:
        return None
    return models.model_copy(update={role: part.model_copy(update={setting: value})}), train
