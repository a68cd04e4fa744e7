"""Settings of an ablation: which objectives, which pairs, how many seeds, and the search that gives
each objective the same chance. Imports no torch and no Prefect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from focusdpo.data_schemas.registration import Named
from focusdpo.data_schemas.strict import StrictModel
from focusdpo.model.objective_registry import OBJECTIVES, VARIANTS
from focusdpo.model.training.config import ObjectiveConfig, Source

ObjectiveKey = str
"""Of an arm: a registered one, or `module:name` of an objective from outside."""
FOCUS = tuple(key for key in VARIANTS if OBJECTIVES[VARIANTS.objective(key)].ours)
"""Those that are put to the test; all others are rivals."""


@dataclass(frozen=True)
class Condition:
    """What arms are trained on: pairs of a source, some or all, at a mean of the noise's logit."""

    source: Source
    pairs: int = 0
    """0: all."""
    noise_mean: float | None = None
    """None: `train.noise`'s own."""

    @property
    def name(self) -> str:
        """In arms' names, as in failure-n100-noise2.5; the source alone where nothing else is
        told apart."""
        words = [self.source, f"n{self.pairs}" if self.pairs else ""]
        words.append("" if self.noise_mean is None else f"noise{self.noise_mean:g}")
        return "-".join(word for word in words if word)


CHOICES: dict[str, Mapping[str, Any]] = {
    "features: queries": {"focus.features.kind": "queries"},
    "features: block output": {"focus.features.kind": "block_output"},
    "features: attention": {"focus.features.kind": "attention"},
    "features: first block": {"focus.features.blocks": ("double.0",)},
    "features of the reference policy": {"focus.features_from": "reference"},
    "pool: patches": {"focus.pool": "patches"},
    "k: half": {"focus.kappa": 0.5},
    "k: one and a half": {"focus.kappa": 1.5},
    "k: falls with noise": {"focus.k_rule": "noise"},
    "M_prior: any pixel": {"focus.prior_cover": 0.0},
    "M_prior: any pixel, and a ring": {"focus.prior_cover": 0.0, "focus.prior_ring": 1},
    "M' inside M_prior": {"focus.domain": "prior"},
    "M' by nearest reference": {"focus.overlap": "argmax"},
    "M' weighs nothing": {"focus.w_low": 0.0},
    "M' weighs more than M_s": {"focus.w_low": 1.5, "focus.w_high": 0.5},
    "background weighs nothing": {"focus.w_bg": 0.0},
    "background weighs as subjects": {"focus.w_bg": 1.0},
    "gate: always": {"focus.gate": "always"},
    "gate: by noise": {"focus.gate": "noise"},
    "gate: soft": {"focus.gate": "soft"},
    "complexity of each image": {"focus.detail_image": "each"},
    "M_d multiplies": {"focus.combine": "multiply"},
    "M_d replaces": {"focus.combine": "replace"},
    "maps: the winner's": {"focus.branches": "winner"},
    "maps: split": {"focus.branches": "split"},
    "weights: per mask": {"focus.normalise": "masks"},
    "noise: uniform": {"noise.distribution": "uniform"},
    "noise: stratified": {"noise.stratified": True},
    "a sigmoid per token": {"objective.form": "tokens"},
    "safeguard 0.5": {"objective.safeguard": 0.5, "objective.safeguard_scope": "pair"},
    "no anchor": {"objective.eta": 0.0, "objective.anchor": 0.0},
}
"""Other readings of FocusDPO (design: doubtful choices), each a change of dotted train settings to
the one that both maps and the search gave."""

TRIED = (
    "features: first block",
    "features of the reference policy",
    "k: falls with noise",
    "M_prior: any pixel",
    "M_prior: any pixel, and a ring",
    "M' inside M_prior",
    "M' weighs nothing",
    "M' weighs more than M_s",
    "background weighs as subjects",
    "gate: always",
    "maps: the winner's",
    "maps: split",
    "a sigmoid per token",
    "safeguard 0.5",
    "noise: uniform",
    "no anchor",
)
"""Those that change most."""


class AblationConfig(StrictModel):
    """What is compared, and how the settings of each objective are found."""

    objectives: tuple[Annotated[str, Named(VARIANTS)], ...] = Field(
        ("sft", "dpo", "dpo_prior", "focus_s", "focus_d", "focus_dpo", "focus_read", "patch_dpo"),
        min_length=1,
        description="trained arms; the base comes by itself. focus_read needs focus_dpo",
    )
    sources: tuple[Source, ...] = Field(
        ("both", "disrupt", "rank"), min_length=1, description="pairs to train on, the first main"
    )
    pairs: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0,),
        min_length=1,
        description="numbers of pairs to train on, the first main; 0: all",
    )
    noise_means: tuple[float, ...] = Field(
        (),
        description="means of the noise's logit to train at, the first main; none: that of "
        "train.noise",
    )
    best_of: tuple[Annotated[int, Field(ge=2, le=16)], ...] = Field(
        (),
        description="arms without any training: of so many of the base's pictures of a scene the "
        "one that the dataset's scorers like best",
    )
    seeds: int = Field(
        3, ge=1, le=100, description="training seeds per arm, from 0: LoRA, order of pairs, noise"
    )
    steps: int = Field(200, ge=1, description="optimiser steps of every training")
    search_lr: tuple[float, ...] = Field(
        (2e-4,), min_length=1, description="learning rates tried with each beta"
    )
    search_beta: tuple[float, ...] = Field(
        (3.0, 10.0, 30.0),
        min_length=1,
        description="beta tried with each learning rate; the anchor eta keeps its ratio to beta. "
        "Weights with mean 1 on a third of the picture triple the errors that matter: objectives "
        "that look at subjects alone want a smaller beta than plain DPO",
    )
    search_lr_alone: tuple[float, ...] = Field(
        (1e-4, 2e-4, 4e-4),
        min_length=1,
        description="learning rates of objectives without beta: as many trials as the others have",
    )
    validation_scenes: int = Field(
        144, ge=6, description="scenes of validation individuals that the search is judged by"
    )
    looks: int = Field(
        2,
        ge=1,
        description="most looks at them along each training of the search: evenly spaced, the last "
        "after the last step",
    )
    choices: tuple[str, ...] = Field(
        TRIED,
        description="other readings of focus_dpo, tried on validation scenes with one seed; there "
        f"are: {', '.join(CHOICES)}",
    )
    workers: int = Field(
        0, ge=0, description="processes, one thread each; 0: as many as there are cores"
    )
    resamples: int = Field(4000, ge=100, description="bootstrap resamples of the comparison")

    @property
    def conditions(self) -> list[Condition]:
        """The first of sources, numbers of pairs and noise is the main one; the others differ from
        it in one of the three."""
        means: tuple[float | None, ...] = self.noise_means or (None,)
        main = Condition(self.sources[0], self.pairs[0], means[0])
        return [
            main,
            *(replace(main, source=source) for source in self.sources[1:]),
            *(replace(main, pairs=pairs) for pairs in self.pairs[1:]),
            *(replace(main, noise_mean=mean) for mean in means[1:]),
        ]

    @property
    def look_every(self) -> int:
        """Steps between looks: as many as `looks` allows such that one falls on the last step."""
        return next(
            self.steps // n for n in range(min(self.looks, self.steps), 0, -1) if not self.steps % n
        )

    @field_validator("choices")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = sorted(set(names) - set(CHOICES))
        if unknown:
            raise ValueError(
                f"no such choice: {', '.join(unknown)}; there are {', '.join(CHOICES)}"
            )
        return names

    @model_validator(mode="after")
    def _read_of_something(self) -> AblationConfig:
        if "focus_read" in self.objectives and not (
            "focus_dpo" in self.objectives and self.choices
        ):
            raise ValueError("focus_read needs focus_dpo among the objectives, and choices")
        return self

    def trials(self, objective: ObjectiveKey, shared: ObjectiveConfig) -> list[dict[str, Any]]:
        """The settings that the search tries for an objective, dotted below `train`; `shared` is
        what all objectives start from."""
        if not VARIANTS[objective].searched:
            return []
        if not VARIANTS[objective].has_beta:
            return [{"lr": lr} for lr in self.search_lr_alone]
        anchor = shared.eta / shared.beta if shared.eta else 0.0
        return [
            {"lr": lr, "objective.beta": beta, "objective.eta": anchor * beta}
            for lr in self.search_lr
            for beta in self.search_beta
        ]
