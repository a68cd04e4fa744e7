"""Every setting of a training run, typed and closed. Imports no torch, so that the command line and
the flows can validate settings at once."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from focusdpo.data_schemas.registration import Named
from focusdpo.data_schemas.strict import StrictModel
from focusdpo.model.backbone import FeatureConfig
from focusdpo.model.focus_config import FocusConfig, NoiseConfig
from focusdpo.model.objective_registry import OBJECTIVES, Objective, objectives_in_words

AUTO_BETA = 0.0
"""`objective.beta` before the data have settled it."""
AUTO_PAIRS = -1
"""`micro_pairs` before the machine has settled it."""


def _named(word: str, number: float) -> BeforeValidator:
    """A word that stands for a number, as settings and JSON have it."""
    return BeforeValidator(lambda value: number if value == word else value)


class PatchConfig(StrictModel):
    """PatchDPO's patch quality (arXiv 2412.03177): the largest cosine of a patch's features and
    any patch of the references. Its authors' estimator was not released; ours reads the base's
    own token features."""

    form: Literal["reference", "released"] = Field(
        "reference",
        description="reference: DPO against the reference policy with quality as weight; released: "
        "the authors' code, a weighted error of both images without reference policy and sigmoid",
    )
    sigma: float = Field(
        0.1, gt=0, lt=1, description="noise level at which features are read; low: nearly clean"
    )
    features: FeatureConfig = Field(FeatureConfig(), description="token features to compare")


class ObjectiveConfig(StrictModel):
    """What is minimised."""

    name: Annotated[str, Named(OBJECTIVES)] = Field(
        "focus_dpo",
        title="Objective",
        description=f"{objectives_in_words()}. module:name: one of your own "
        "(docs/add_an_objective.md)",
    )
    beta: Annotated[float, _named("auto", AUTO_BETA)] = Field(
        1000.0,
        ge=0,
        description="strength, for errors that are means over tokens and channels; auto (0): "
        "from the spread of the base's errors over the first steps' pairs, told in the log",
    )
    form: Literal["sigmoid", "tokens", "hinge", "ipo"] = Field(
        "sigmoid",
        description="how Delta becomes a loss; h = -beta/2 Delta. sigmoid: -log sigmoid(h); "
        "tokens: the same per token, then their weighted mean (for aligned pairs); hinge: "
        "max(0, 1 - h); ipo: (h - 1/2)^2",
    )
    anchor: float = Field(
        0.0,
        ge=0,
        description="adds the winner's error, weighed as this share of the preference's own pull "
        "on it at a fresh policy (beta / 4; beta / 2 with hinge and ipo): 0.13 pulls by an eighth "
        "as much then, and more than the preference once pairs are learned, whatever beta is",
    )
    eta: float = Field(
        0.0,
        ge=0,
        description="an anchor in absolute terms, adds eta times the winner's error: what it "
        "does depends on beta, so that `anchor` is mostly better; one of the two",
    )
    safeguard: float | None = Field(
        None,
        ge=0,
        le=1,
        description="SDPO's mu (arXiv 2511.03317): the loser's gradient is scaled down so far that "
        "a step in output space keeps at least this share of the winner's own descent; null: off",
    )
    safeguard_scope: Literal["batch", "pair"] = Field(
        "batch", description="one scale for all pairs of a pass, as its authors do, or one a pair"
    )
    patch: PatchConfig = Field(PatchConfig(), description="patch_dpo's quality")

    @model_validator(mode="after")
    def _safeguard_has_a_loser(self) -> ObjectiveConfig:
        if self.safeguard is not None and not self.is_preference:
            raise ValueError(
                f"safeguard scales a loser's gradient, and {self.name} pushes no loser away; "
                "leave it null"
            )
        if self.form == "tokens" and not self.definition.takes_form:
            raise ValueError(f"form: {self.name} has a loss of its own; leave it sigmoid")
        return self

    @model_validator(mode="after")
    def _one_anchor(self) -> ObjectiveConfig:
        if self.anchor and self.eta:
            raise ValueError(
                f"anchor {self.anchor} and eta {self.eta} are two statements of one thing; set "
                "one of them to 0"
            )
        if self.eta and self.beta == AUTO_BETA:
            raise ValueError("eta means nothing before beta is known: with beta auto set anchor")
        return self

    @property
    def first_pull(self) -> float:
        """-d loss / d l_w of the preference alone, per pair, where policy and reference policy
        agree: beta/2 times the form's slope there. 0 without a preference."""
        if not self.is_preference:
            return 0.0
        return self.beta / (2 if self.form in ("hinge", "ipo") else 4)

    @property
    def anchor_weight(self) -> float:
        """What the winner's error is multiplied with as an anchor."""
        return self.eta + self.anchor * self.first_pull

    @property
    def definition(self) -> Objective:
        """What is registered under its name."""
        return OBJECTIVES[self.name]

    @property
    def is_preference(self) -> bool:
        """Whether losers and the reference policy are needed."""
        return self.definition.reference and not self.is_released_patch

    @property
    def is_released_patch(self) -> bool:
        """PatchDPO as its authors released it."""
        return self.name == "patch_dpo" and self.patch.form == "released"


Source = Literal["both", "disrupt", "rank", "failure"]
"""Of pairs; both: all."""

AdapterKind = Literal["lora", "dora", "lokr"]
"""What is trained; `model.adapter` makes peft's layers of it."""


class LoraConfig(StrictModel):
    """The policy: one low-rank adapter on the backbone's transformer."""

    kind: AdapterKind = Field(
        "lora",
        description="lora: W + BA, exported to every layout; dora: its rows' lengths trained apart "
        "from their directions (arXiv 2402.09353), for diffusers; lokr: a Kronecker product "
        "(arXiv 2309.14859), for diffusers and ComfyUI, its rank that of the larger factor",
    )
    rank: int = Field(16, ge=1, description="rank")
    alpha: float = Field(16.0, gt=0, description="scale is alpha / rank")
    targets: tuple[str, ...] = Field(
        (), description="module name suffixes; empty: the backbone's default"
    )

    @model_serializer(mode="wrap")
    def _lora_is_not_told(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Runs, cards and digests are older than the choice: a LoRA's keep their bytes."""
        values: dict[str, Any] = dump(self)
        return {name: value for name, value in values.items() if (name, value) != ("kind", "lora")}


class KlConfig(StrictModel):
    """DPOK's KL term (arXiv 2305.16381, section 4.2): the policy stays near the reference policy on
    pictures that are right, so that what the base does well is kept."""

    weight: float = Field(
        0.0,
        ge=0,
        description="adds this times the mean squared difference of policy and reference policy; "
        "0: off",
    )
    source: Source = Field(
        "both",
        description="on the winners of which pairs; those that the preference does not learn from "
        "hold what it would spoil",
    )
    every: int = Field(
        1,
        ge=1,
        description="at one of so many steps, so many times as strong: lazy regularisation, for "
        "less time (arXiv 1912.04958, section 3.1)",
    )


class GuardConfig(StrictModel):
    """When training speaks up or stops. A loss or gradient that is not finite always stops it."""

    window: int = Field(50, ge=1, description="steps that the running means look back over")
    winner_rise: float = Field(
        0.05,
        ge=0,
        description="warn when the winner's error is above the reference policy's by this share: "
        "both branches drift and the loss only looks good",
    )
    saturation: float = Field(
        0.02,
        ge=0,
        lt=1,
        description="warn when the mean gradient share of a pair, sigmoid(beta/2 Delta) (1/2 at "
        "the start), is below this: the pairs are learned and teach nothing more",
    )
    spike: float = Field(
        20.0,
        gt=1,
        description="skip a step whose gradient norm is above this many times the usual one, the "
        "highest running median so far",
    )


class ValidationConfig(StrictModel):
    """Looking at what is not trained on: the loss of pairs of the validation split and, with the
    pocket suite, painted scenes of validation individuals; and what follows from it."""

    every: int | None = Field(
        None,
        ge=0,
        description="steps between looks; 0: never; null: 100 with checkpoints, never with the "
        "pocket suite",
    )
    metric: str = Field(
        "score",
        description="what counts, higher is better. Pocket suite: score (identity + leakage "
        "margin), identity or leakage_margin, each less the base's. Checkpoints: score (how far "
        "the held-out loss has fallen below the base's) or held_out_accuracy",
    )
    pairs: int = Field(64, ge=1, description="pairs of the validation split that are measured")
    patience: int = Field(
        0, ge=0, description="stop after this many looks without a better one; 0: never"
    )
    keep: Literal["last", "best"] = Field(
        "last", description="the adapter is that of the last step, or of the best look"
    )
    scenes: int = Field(96, ge=1, description="validation scenes painted at each look")


class PreviewConfig(StrictModel):
    """Sample pictures of fixed scenes with fixed seeds while training, base beside policy."""

    every: int | None = Field(
        None,
        ge=0,
        description="steps between sheets of pictures; 0: never; null: 250 with checkpoints, never "
        "with the pocket suite",
    )
    scenes: int = Field(
        4, ge=1, description="scenes on a sheet, of the validation split where it has any"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="decides their noise")


Tracker = Literal["wandb", "trackio", "mlflow"]


class EncodedConfig(StrictModel):
    """Where encoded pictures and prompts are kept, so that they are encoded once."""

    folder: str = Field(
        "auto",
        description="keeps them on disk, shared between runs: a folder; none; auto: `encoded` in "
        "the dataset's root, or in this machine's cache where the root is at an address, for "
        "checkpoints; none for the embedded models, which encode faster than a disk reads",
    )
    gib: float = Field(
        100.0,
        gt=0,
        description="GiB that the folder may take; what no run has used for longest goes first",
    )
    ahead: int = Field(4, ge=1, description="forward passes whose pairs are read ahead")


class TrainConfig(StrictModel):
    """A training run."""

    steps: int = Field(400, ge=1, description="optimiser steps")
    batch_pairs: int = Field(16, ge=1, description="pairs per optimiser step, over all processes")
    micro_pairs: Annotated[int, _named("auto", AUTO_PAIRS)] = Field(
        0,
        ge=AUTO_PAIRS,
        description="pairs per forward pass; 0: all of a step's pairs at once; auto (-1): as many "
        "as the card has room for, tried out before the first step",
    )
    optimiser: Literal["adamw", "adamw8bit", "adafactor", "prodigy", "muon"] = Field(
        "adamw",
        description="adamw: torch's, fused; adamw8bit: bitsandbytes' with 8-bit moments, at the "
        "same lr; adafactor: transformers', hardly any memory, at the same lr; prodigy: finds its "
        "own rate, lr is a factor on it: 1; muon: torch's, for matrices, at adamw's lr",
    )
    lr: float = Field(2e-4, gt=0, description="peak learning rate")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="learning rate after warm-up; the last two end at zero"
    )
    warmup: int = Field(20, ge=0, description="steps of linear warm-up")
    weight_decay: float = Field(0.01, ge=0, description="the optimiser's")
    grad_clip: float = Field(1.0, gt=0, description="largest gradient norm")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of averaged weights; 0: none")
    mixed_precision: Literal["auto", "no", "bf16"] = Field(
        "auto",
        description="autocast; errors are float32 in any case. auto: bf16 where the device has "
        "instructions for it (without them it is many times slower)",
    )
    tf32: bool = Field(
        True,
        description="TF32 on GPUs for backward passes, and for forward passes that run in bf16 "
        "anyway: what decides (features, errors) stays as exact as mixed_precision says",
    )
    compile: bool = Field(
        False,
        description="torch.compile of the transformer's repeated blocks: minutes at the start, for "
        "long runs on a GPU. Where it fails, or computes something else, the run goes on without",
    )
    gradient_checkpointing: bool = Field(False, description="less memory, about 50 % more time")
    memory: Literal["joint", "sequential"] = Field(
        "joint",
        description="joint: winner and loser in one pass; sequential: one after the other, the "
        "same gradient with half the activations for an eighth more computation",
    )
    shard: Literal["auto", "none", "full"] = Field(
        "auto",
        description="full: each process holds its share of the frozen base (torch's fully_shard; "
        "the LoRA is whole everywhere); none: all of it; auto: full where accelerate's "
        "configuration says FSDP",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="decides everything random")
    source: Source = Field(
        "both",
        description="which pairs: all (both), disrupted instances, ranked candidates, or the "
        "generator's own failures",
    )
    save_every: int = Field(50, ge=1, description="steps between checkpoints")
    log_every: int = Field(10, ge=1, description="steps between log lines")
    tensorboard: bool = Field(True, description="also write curves for TensorBoard")
    trackers: tuple[Tracker, ...] = Field(
        (), description="also send curves and sample pictures there, by accelerate's trackers"
    )
    tracker_project: str = Field("focusdpo", description="what trackers file the run under")
    cache_mib: int = Field(
        2048,
        ge=0,
        description="keep encoded pairs in main memory up to this size; beyond, read them from "
        "`encoded.folder`, or encode anew",
    )
    encoded: EncodedConfig = Field(EncodedConfig(), description="what is kept on disk")
    objective: ObjectiveConfig = Field(ObjectiveConfig(), description="what is minimised")
    kl: KlConfig = Field(KlConfig(), description="what keeps the policy near its base")
    focus: FocusConfig = Field(FocusConfig(), description="where and when the loss looks")
    noise: NoiseConfig = Field(NoiseConfig(), description="noise levels")
    lora: LoraConfig = Field(LoraConfig(), description="the policy")
    guards: GuardConfig = Field(GuardConfig(), description="when to warn or stop")
    validation: ValidationConfig = Field(
        ValidationConfig(), description="looking at unseen pairs and scenes while training"
    )
    previews: PreviewConfig = Field(PreviewConfig(), description="sample pictures while training")

    @model_validator(mode="after")
    def _micro_divides(self) -> TrainConfig:
        if self.micro_pairs > 0 and self.batch_pairs % self.micro_pairs:
            raise ValueError(
                f"micro_pairs {self.micro_pairs} must divide batch_pairs {self.batch_pairs}"
            )
        return self

    @model_validator(mode="after")
    def _muon_takes_matrices(self) -> TrainConfig:
        if self.optimiser == "muon" and self.lora.kind == "dora":
            raise ValueError(
                "optimiser muon takes matrices alone, and a DoRA has lengths of rows beside them; "
                "set optimiser to adamw, or lora.kind to lora"
            )
        return self

    @model_validator(mode="after")
    def _prodigy_finds_its_rate(self) -> TrainConfig:
        if self.optimiser == "prodigy" and self.lr < 0.1:
            raise ValueError(
                f"optimiser prodigy finds its own rate, and lr {self.lr:g} is a factor on it; set "
                "lr to 1"
            )
        return self

    @model_validator(mode="after")
    def _validation_happens(self) -> TrainConfig:
        looks = self.validation
        if (looks.patience or looks.keep == "best") and looks.every == 0:
            raise ValueError("validation.patience and keep=best need validation.every above 0")
        return self

    def identity(self) -> str:
        """Digest of what decides the trajectory: two runs of equal identity may share a folder.

        A run with a constant schedule may be lengthened, so its `steps` stay out. So do `memory`,
        `shard`, `compile`, `tf32`, `gradient_checkpointing` and `micro_pairs`, which say where, how
        and in what order the same sums are made: a run that met the end of a card's memory goes on
        in another manner, or on more processes. A safeguard that looks at all pairs of a pass
        depends on how many there are."""
        left_out = {"save_every", "log_every", "tensorboard", "memory", "shard"}
        left_out |= {"cache_mib", "encoded"}  # where the same bits come from
        left_out |= {"previews", "trackers", "tracker_project", "compile", "tf32"}
        left_out.add("gradient_checkpointing")
        if self.objective.safeguard is None or self.objective.safeguard_scope == "pair":
            left_out.add("micro_pairs")
        if self.schedule == "constant":
            left_out.add("steps")
        if not self.kl.weight:  # runs are older than it
            left_out.add("kl")
        return digest(self.model_dump(mode="json", exclude=left_out))


def digest(value: Any) -> str:
    """16 hexadecimal digits of a JSON-able value's hash."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
