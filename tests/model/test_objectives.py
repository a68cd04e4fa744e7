"""The losses against independent formulas in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from focusdpo.model.objectives import (
    PairErrors,
    image_error,
    implicit_accuracy,
    preference_loss,
    sft_loss,
    token_error,
)
from focusdpo.model.training.config import ObjectiveConfig


def predictions(seed: int, shape: tuple[int, ...] = (4, 9, 5)) -> list[Tensor]:
    """Targets of winner and loser, then policy's and reference's predictions for both."""
    g = torch.Generator().manual_seed(seed)
    targets = [torch.randn(shape, generator=g) for _ in range(2)]
    # Near the targets and near each other, as in training.
    reference = [t + 0.3 * torch.randn(shape, generator=g) for t in targets]
    policy = [r + 0.02 * torch.randn(shape, generator=g) for r in reference]
    return [*targets, *policy, *reference]


def slow_dpo(tensors: list[Tensor], beta: float, eta: float, weight: np.ndarray) -> float:
    """Diffusion-DPO's equation for flow matching, written from the paper, in float64."""
    win, lose, policy_win, policy_lose, ref_win, ref_lose = (t.double().numpy() for t in tensors)

    def error(v: np.ndarray, target: np.ndarray, branch: int) -> np.ndarray:
        squared = ((v - target) ** 2).sum(-1) / v.shape[-1]
        return np.asarray((weight[branch] * squared).sum(-1) / squared.shape[-1])

    model = error(policy_win, win, 0) - error(policy_lose, lose, 1)
    reference = error(ref_win, win, 0) - error(ref_lose, lose, 1)
    inside = -0.5 * beta * (model - reference)
    return float(np.log1p(np.exp(-inside)).mean() + eta * error(policy_win, win, 0).mean())


def our_dpo(tensors: list[Tensor], config: ObjectiveConfig, weight: Tensor | None) -> Tensor:
    win, lose, policy_win, policy_lose, ref_win, ref_lose = tensors
    weights = (None, None) if weight is None else weight.unbind(0)
    errors = PairErrors(
        image_error(token_error(policy_win, win), weights[0]),
        image_error(token_error(policy_lose, lose), weights[1]),
        image_error(token_error(ref_win, win), weights[0]),
        image_error(token_error(ref_lose, lose), weights[1]),
    )
    return preference_loss(errors, config).value


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), beta=st.floats(0.1, 3000), eta=st.floats(0, 1))
def test_unit_weights_are_plain_dpo(seed: int, beta: float, eta: float) -> None:
    tensors = predictions(seed)
    config = ObjectiveConfig(beta=beta, eta=eta)
    want = slow_dpo(tensors, beta, eta, np.ones((2, 4, 9)))
    # float32 errors are about 0.1: their differences carry 1e-8, which beta multiplies.
    assert our_dpo(tensors, config, None).item() == pytest.approx(
        want, rel=1e-6, abs=1e-6 + 3e-8 * beta
    )
    ones = our_dpo(tensors, config, torch.ones(2, 4, 9))
    torch.testing.assert_close(our_dpo(tensors, config, None), ones)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_weighted_dpo_equals_the_formula(seed: int) -> None:
    tensors = predictions(seed)
    weight = torch.rand(2, 4, 9, generator=torch.Generator().manual_seed(seed))
    config = ObjectiveConfig(beta=100.0)
    want = slow_dpo(tensors, 100.0, 0.0, weight.double().numpy())
    assert our_dpo(tensors, config, weight).item() == pytest.approx(want, rel=1e-5)


def test_gradient_is_the_closed_form() -> None:
    """dL/dv_w = -sigmoid(-logit) * (-beta/2) * 2 W (v - v*) / (N C), averaged over pairs."""
    tensors = predictions(3)
    tensors[2].requires_grad_()
    beta = 50.0
    loss = our_dpo(tensors, ObjectiveConfig(beta=beta), None)
    (got,) = torch.autograd.grad(loss, tensors[2])
    win, lose, policy_win, policy_lose, ref_win, ref_lose = (t.detach().double() for t in tensors)

    def error(v: Tensor, t: Tensor) -> Tensor:
        return ((v - t) ** 2).mean((1, 2))

    delta = error(policy_win, win) - error(ref_win, win) - error(policy_lose, lose)
    delta = delta + error(ref_lose, lose)
    slope = torch.sigmoid(0.5 * beta * delta) * 0.5 * beta / len(delta)
    want = slope[:, None, None] * 2 * (policy_win - win) / win[0].numel()
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-9)


def test_half_precision_predictions_are_squared_in_float32() -> None:
    target = torch.zeros(1, 1, 1)
    prediction = torch.tensor([[[1.0078125]]], dtype=torch.bfloat16)  # its square needs more bits
    assert token_error(prediction, target).item() == 1.0078125**2


def test_sft_is_the_winners_error() -> None:
    win, _, policy, *_ = predictions(1)
    want = float(((policy.double() - win.double()) ** 2).mean())
    loss = sft_loss(image_error(token_error(policy, win)))
    assert loss.value.item() == pytest.approx(want, rel=1e-6)


def test_a_tie_counts_half() -> None:
    assert implicit_accuracy(torch.tensor([1.0, 0.0, -1.0])).tolist() == [1.0, 0.5, 0.0]


def test_weight_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"weight is \(2, 3\), error \(2, 4\)"):
        image_error(torch.ones(2, 4), torch.ones(2, 3))


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(0.5, 4), seed=st.integers(0, 99))
def test_uniform_weights_scale_beta(scale: float, seed: int) -> None:
    """Why W has mean 1: a constant weight c is the same as beta times c."""
    tensors = predictions(seed)
    weighted = our_dpo(tensors, ObjectiveConfig(beta=20.0), torch.full((2, 4, 9), scale))
    scaled = our_dpo(tensors, ObjectiveConfig(beta=20.0 * scale), None)
    torch.testing.assert_close(weighted, scaled, rtol=1e-5, atol=1e-6)
