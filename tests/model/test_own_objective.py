"""What an objective from outside gives a step: taken as documented, refused by name otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.objectives import Loss
from focusdpo.model.step import require_loss, require_weight

NAME = "mypackage.mine:margin"


def errors() -> torch.Tensor:
    """Of two pairs, three tokens each."""
    return torch.rand(4, 3, requires_grad=True)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda e: e.mean(), "its loss gave a Tensor; expected a Loss of a scalar"),
        (lambda e: None, "its loss gave a NoneType"),
        (lambda e: Loss(e.mean(1)[:2], e.mean(1)[:2].detach()), r"value \(2,\), logit_B \(2,\)"),
        (lambda e: Loss(e.mean(), e.mean().detach()), r"logit_B \(\); .*logits of 2 pairs"),
        (lambda e: Loss(e.mean().detach(), e.mean(1)[:2].detach()), "carries no gradient"),
        (lambda e: Loss(e.mean(), e.mean(1)[:2]), "logit_B carries a gradient"),
    ],
)
def test_a_loss_that_no_step_can_take_is_refused(
    loss: Callable[[torch.Tensor], Any], said: str
) -> None:
    error_BN = errors()
    with pytest.raises(UserError, match=f"^objective {NAME}: .*{said}"):
        require_loss(loss(error_BN), error_BN, NAME)


def test_what_the_page_says_is_taken() -> None:
    error_BN = errors()
    require_loss(Loss(error_BN.mean(), error_BN.mean(1)[:2].detach()), error_BN, NAME)
    with torch.no_grad():  # a look at validation pairs
        looked = error_BN.detach()
        require_loss(Loss(looked.mean(), looked.mean(1)[:2]), looked, NAME)
    require_weight(None, error_BN, NAME)
    require_weight(torch.ones(4, 3), error_BN, NAME)


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        (1.0, "its weight gave a float"),
        (torch.ones(2, 3), r"gave \(2, 3\); expected a tensor \(4, 3\)"),
        (torch.ones(4, 3, requires_grad=True), "carries a gradient"),
    ],
)
def test_a_weight_of_another_shape_is_refused(weight: object, said: str) -> None:
    with pytest.raises(UserError, match=f"^objective {NAME}: .*{said}"):
        require_weight(weight, errors(), NAME)
