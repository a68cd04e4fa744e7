"""Random inputs of the focus maps, and what a config class lets one choose between."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

import torch
from hypothesis import strategies as st
from pydantic import BaseModel
from torch import Tensor

from focusdpo.model.backbone import FeatureConfig, Prediction
from focusdpo.model.focus import FocusMaps, FocusPriors, focus_maps, focus_weight
from focusdpo.model.focus_config import FocusConfig


def prior_weight(priors: FocusPriors, config: FocusConfig) -> Tensor:
    """W (B, N) where nothing is matched: M_prior against the background, and M_d where it is on
    without a gate."""
    nothing_BN = torch.zeros_like(priors.prior_BN)
    gate_B = torch.full((len(nothing_BN),), float(config.gate == "always"))
    detail_BN = priors.detail_BN * priors.prior_BN
    return focus_weight(priors.prior_BN, nothing_BN, detail_BN, gate_B, config)


Case = tuple[Prediction, tuple[Tensor, ...], FocusPriors]
N = 16


def make_case(
    seed: int, images: int = 3, subjects: int = 2, blocks: int = 2, kind: str = "keys"
) -> Case:
    """Random features, masks and complexity; reference r has 4 + r tokens. Features have width 6,
    those of attention 2 heads of width 3."""
    g = torch.Generator().manual_seed(seed)
    width = (2, 2, 3) if kind == "attention" else (6,)
    sizes = [4 + r for r in range(subjects)]
    target = tuple(torch.randn(images, N, *width, generator=g) for _ in range(blocks))
    references = tuple(
        tuple(torch.randn(images, n, *width, generator=g) for n in sizes) for _ in range(blocks)
    )
    masks = tuple((torch.rand(images, n, generator=g) > 0.4).float() for n in sizes)
    subjects_BRN = (torch.rand(images, subjects, N, generator=g) > 0.7).float()
    priors = FocusPriors(
        prior_BN=subjects_BRN.amax(1),
        subjects_BRN=subjects_BRN,
        detail_BN=torch.rand(images, N, generator=g),
    )
    return Prediction(torch.zeros(images, N, 2), target, references), masks, priors


def alternatives(config: type[BaseModel]) -> dict[str, tuple[Any, ...]]:
    """Each closed choice of a config class with its values, the default first."""
    found: dict[str, tuple[Any, ...]] = {}
    for name, field in config.model_fields.items():
        if get_origin(field.annotation) is Literal:
            found[name] = get_args(field.annotation)
        elif field.annotation is bool:
            found[name] = (field.default, not field.default)
    return found


KINDS = alternatives(FeatureConfig)["kind"]


@st.composite
def configs(draw: st.DrawFn, **fixed: Any) -> FocusConfig:
    """Any alternative of any field; thresholds that no ratio of small counts equals."""
    values: dict[str, Any] = {
        name: draw(st.sampled_from(values)) for name, values in alternatives(FocusConfig).items()
    }
    values |= {
        "features": FeatureConfig(kind=draw(st.sampled_from(KINDS))),
        "kappa": draw(st.sampled_from([0.3, 1.0, 2.5])),
        "tau": draw(st.sampled_from([0.1003, 0.4003])),
        "fixed_k": draw(st.integers(0, 20)),
        "match_threshold": draw(st.sampled_from([-0.3, 0.07, 0.4])),
        "gate_sigma": draw(st.sampled_from([0.3, 0.7])),
        "gate_temperature": draw(st.sampled_from([0.01, 0.5])),
        "w_bg": draw(st.sampled_from([0.0, 0.1])),
        "lambda_d": draw(st.sampled_from([0.0, 1.0, 3.0])),
    }
    return FocusConfig(**{**values, **fixed})


Built = tuple[Prediction, tuple[Tensor, ...], FocusPriors, Tensor]


def build(seed: int, config: FocusConfig, images: int = 4) -> Built:
    """A case of as many winners as losers, and its noise levels."""
    case = make_case(seed, images=images, subjects=1 + seed % 3, kind=config.features.kind)
    sigma_B = torch.rand(images // 2, generator=torch.Generator().manual_seed(seed)).repeat(2)
    return *case, sigma_B


def run(built: Built, config: FocusConfig) -> FocusMaps:
    prediction, masks, priors, sigma_B = built
    return focus_maps(prediction, masks, priors, config, sigma_B=sigma_B)
