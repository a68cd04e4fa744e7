"""Random inputs of the focus maps, and what a config class lets one choose between."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

import torch
from pydantic import BaseModel
from torch import Tensor

from focusdpo.model.backbone import Prediction
from focusdpo.model.focus import FocusPriors

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
