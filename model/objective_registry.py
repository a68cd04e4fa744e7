"""What training can minimise: one registration per objective. Imports no torch.

`train` reads what a step needs and computes, `ablate` the variants; help, settings and forms read
the names and what is said of them. docs/add_an_objective.md adds one from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from focusdpo.data_schemas.registration import Registry, load, unknown

if TYPE_CHECKING:  # configs import this module: keep torch (2 s) out of them
    from torch import Tensor

    Weigh = Callable[..., Tensor | None]
    Lose = Callable[..., Any]

PREFERENCE = "focusdpo.model.objectives:preference_loss"
INSTANCES = "focusdpo.model.objectives:instance_loss"
PATCH = "focusdpo.model.objectives:patch_loss"


@dataclass(frozen=True)
class Variant:
    """A way to train an objective that an ablation compares with others."""

    label: str
    """For tables."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Dotted train settings that make it what it is, beside the objective's name."""
    has_beta: bool = True
    searched: bool = True
    """False: its settings are those of focus_dpo and the reading that validation liked best."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a step minimises: an error per image, weighted token by token, and a loss of these."""

    about: str
    """A few words, for help and settings."""
    loss: Lose | str = PREFERENCE
    """(errors: PairErrors, config: ObjectiveConfig) -> Loss, of weighted errors per image (B,); or
    where it lies, as `module:name`. Without reference policy its errors are 0."""
    weight: Weigh | str | None = None
    """(batch: PairBatch, maps: FocusMaps | None, config: TrainConfig) -> W (2B, N), winners first,
    with mean 1 per image and without gradient; or where it lies. None: every token weighs 1."""
    losers: bool = True
    """False: pairs' losers do not go through the model, and the loss is the winner's error."""
    reference: bool = True
    """Whether the reference policy's errors are needed."""
    maps: bool = False
    """Whether `weight` gets focus maps, from token features of the same pass."""
    quality: bool = False
    """Whether pairs are encoded with their patch quality."""
    variants: Mapping[str, Variant] = field(default_factory=dict)
    """Key -> variant; without any it is one variant, under its own name."""
    instances: bool = False
    """Whether the loss is of subject regions: `loss` gets `RegionErrors` instead, and training the
    pairs too in which either picture shows a subject better."""
    ours: bool = False
    """Whether an ablation puts its variants to the test; those of all others are rivals."""

    @property
    def takes_form(self) -> bool:
        """Whether `train.objective.form` chooses its loss: not where it has one of its own."""
        return self.loss in (PREFERENCE, PATCH)

    def losing(self) -> Lose:
        """`loss`, imported."""
        return load(self.loss, "loss") if isinstance(self.loss, str) else self.loss  # type: ignore[no-any-return]

    def weighing(self) -> Weigh | None:
        """`weight`, imported."""
        return load(self.weight, "weight") if isinstance(self.weight, str) else self.weight


OBJECTIVES: Registry[Objective] = Registry(
    "objective",
    Objective,
    {
        "sft": Objective(
            about="the winner's error",
            losers=False,
            reference=False,
            variants={"sft": Variant("SFT", {"objective.safeguard": None}, has_beta=False)},
        ),
        "dpo": Objective(
            about="Diffusion-DPO in flow-matching form",
            variants={"dpo": Variant("DPO")},
        ),
        "dpo_prior": Objective(
            about="DPO weighted by M_prior alone",
            weight="focusdpo.model.step:prior_weight",
            variants={"dpo_prior": Variant("DPO in M_prior")},
        ),
        "instance_dpo": Objective(
            about="a preference per subject: DPO in each subject's region of M_prior, by its sign",
            weight="focusdpo.model.step:instance_weight",
            loss=INSTANCES,
            instances=True,
            variants={"instance_dpo": Variant("DPO per instance")},
        ),
        "focus_dpo": Objective(
            about="weighted DPO",
            weight="focusdpo.model.step:focus_weight",
            maps=True,
            ours=True,
            variants={
                "focus_s": Variant("FocusDPO, M_s alone", {"focus.use_detail": False}),
                "focus_d": Variant("FocusDPO, M_d alone", {"focus.use_structure": False}),
                "focus_dpo": Variant("FocusDPO, M_s and M_d"),
                "focus_read": Variant("FocusDPO, best other reading", searched=False),
            },
        ),
        "patch_dpo": Objective(
            about="weighted by patch quality",
            weight="focusdpo.model.step:quality_weight",
            loss=PATCH,
            quality=True,
            variants={
                "patch_dpo": Variant(
                    "PatchDPO, with reference policy", {"objective.patch.form": "reference"}
                ),
                "patch_released": Variant(
                    "PatchDPO, as released",
                    {"objective.patch.form": "released", "objective.safeguard": None},
                    has_beta=False,
                ),
            },
        ),
    },
)


def objectives_in_words() -> str:
    """Every registered objective and what it is."""
    return "; ".join(f"{name}: {OBJECTIVES[name].about}" for name in OBJECTIVES)


class Variants(Mapping[str, Variant]):
    """Key -> variant of every registered objective; `module:name` is an objective's only one."""

    def __init__(self) -> None:
        self._objective_of = {
            key: name for name in OBJECTIVES for key in OBJECTIVES[name].variants or (name,)
        }

    def __iter__(self) -> Any:
        return iter(self._objective_of)

    def __len__(self) -> int:
        return len(self._objective_of)

    def __getitem__(self, key: str) -> Variant:
        name = self.objective(key)
        about = OBJECTIVES[name]
        variant = about.variants.get(key, Variant(key))
        return Variant(
            variant.label,
            {"objective.name": name, **variant.settings},
            variant.has_beta,
            variant.searched,
        )

    def objective(self, key: str) -> str:
        """Name of an variant's objective. UserError for an unknown variant."""
        if key not in self._objective_of and ":" not in key:
            raise unknown("arm", key, self)
        return self._objective_of.get(key, key)


VARIANTS = Variants()
"""Every trained variant. Settings that one does not name are the run's own `train` section."""
