"""PatchDPO, SDPO's safeguard and the other forms of a preference, against independent formulas in
double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from focusdpo.model.backbone import Prediction
from focusdpo.model.objectives import (
    PairErrors,
    error_slope,
    image_error,
    preference_loss,
    released_patch_loss,
    safeguard_scale,
    scale_gradient,
    token_error,
    token_preference_loss,
)
from focusdpo.model.patch_quality import (
    PatchQuality,
    best_cosine,
    patch_weights,
    quality_maps,
)
from focusdpo.model.training.config import ObjectiveConfig

SEEDS = st.integers(0, 10_000)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pair_errors(seed: int, *shape: int) -> PairErrors:
    """Errors as in training: positive, the policy's near the reference's."""
    g = generator(seed)
    reference = [0.1 + torch.rand(shape, generator=g) for _ in range(2)]
    policy = [r + 0.01 * torch.randn(shape, generator=g) for r in reference]
    return PairErrors(*policy, *reference)


def logits(errors: PairErrors, beta: float) -> np.ndarray:
    win, lose, ref_win, ref_lose = (
        e.double().numpy()
        for e in (errors.win_B, errors.lose_B, errors.ref_win_B, errors.ref_lose_B)
    )
    return np.asarray(-beta / 2 * (win - ref_win) + beta / 2 * (lose - ref_lose))


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, beta=st.floats(1, 300), eta=st.floats(0, 2))
def test_each_form_equals_its_formula(seed: int, beta: float, eta: float) -> None:
    errors = pair_errors(seed, 5)
    h = logits(errors, beta)
    wanted = {
        "sigmoid": np.log1p(np.exp(-h)).mean(),
        "hinge": np.maximum(0, 1 - h).mean(),
        "ipo": ((h - 0.5) ** 2).mean(),
    }
    for form, value in wanted.items():
        config = ObjectiveConfig(beta=beta, eta=eta, form=form)  # type: ignore[arg-type]
        loss = preference_loss(errors, config)
        value += eta * errors.win_B.double().mean().item()
        assert loss.value.item() == pytest.approx(value, rel=1e-4, abs=1e-5 * beta)
        np.testing.assert_allclose(loss.logit_B.numpy(), h, rtol=1e-3, atol=1e-6 * beta)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, beta=st.floats(1, 300))
def test_a_sigmoid_per_token_equals_its_formula(seed: int, beta: float) -> None:
    errors = pair_errors(seed, 3, 7)
    weight = torch.rand(3, 7, generator=generator(seed + 1))
    config = ObjectiveConfig(beta=beta, form="tokens", eta=0.5)
    loss = token_preference_loss(errors, weight, config)
    h, w = logits(errors, beta), weight.double().numpy()
    win = errors.win_B.double().numpy()
    value = (w * np.log1p(np.exp(-h))).mean() + 0.5 * (w * win).mean()
    assert loss.value.item() == pytest.approx(value, rel=1e-4)
    np.testing.assert_allclose(loss.logit_B.numpy(), (w * h).mean(1), rtol=1e-3, atol=1e-5 * beta)


def test_a_sigmoid_per_token_is_the_plain_one_where_tokens_agree() -> None:
    same = [e.unsqueeze(1).expand(-1, 6) for e in vars(pair_errors(3, 4)).values()]
    tokens = token_preference_loss(PairErrors(*same), None, ObjectiveConfig(beta=50, form="tokens"))
    plain = preference_loss(pair_errors(3, 4), ObjectiveConfig(beta=50))
    torch.testing.assert_close(tokens.value, plain.value)


# SDPO


def slopes(seed: int) -> tuple[Tensor, Tensor]:
    """Slopes of both errors that often point the same way, as shared noise makes them."""
    g = generator(seed)
    common = torch.randn(3, 4, 5, generator=g)
    win, lose = (common + 0.7 * torch.randn(3, 4, 5, generator=g) for _ in range(2))
    return win * torch.rand((), generator=g), lose


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, mu=st.floats(0, 1), scope=st.sampled_from(["pair", "batch"]))
def test_the_safeguard_keeps_the_winners_descent(seed: int, mu: float, scope: str) -> None:
    """To first order, a step against g_w - lambda g_l lowers l_w by at least mu |g_w|^2; and the
    loser is not held back more than needed."""
    win, lose = slopes(seed)
    scale = safeguard_scale(win, lose, mu, scope)
    assert scale.shape == (3,)
    assert ((scale >= 0) & (scale <= 1)).all()
    w, x = win.double().flatten(1), (scale[:, None, None] * lose).double().flatten(1)
    if scope == "batch":
        w, x = w.reshape(1, -1), x.reshape(1, -1)
    descent, norm = (w * (w - x)).sum(1), w.square().sum(1)
    rounding = 1e-5 * (norm * lose.double().square().sum()).sqrt()
    assert (descent >= mu * norm - rounding).all()
    # Where it is scaled down, no more than needed: the bound is reached.
    held = scale < 1 if scope == "pair" else (scale < 1).all().reshape(1)
    assert ((descent - mu * norm).abs() <= rounding)[held].all()


def test_losers_that_pull_the_other_way_are_left_alone() -> None:
    win, _ = slopes(0)
    assert torch.equal(safeguard_scale(win, -win, 0.9, "pair"), torch.ones(3))


@given(seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_the_slope_is_the_errors_own(seed: int) -> None:
    g = generator(seed)
    velocity = torch.randn(2, 6, 3, generator=g, requires_grad=True)
    target, weight = torch.randn(2, 6, 3, generator=g), torch.rand(2, 6, generator=g)
    error = image_error(token_error(velocity, target), weight).sum()
    (wanted,) = torch.autograd.grad(error, velocity)
    torch.testing.assert_close(error_slope(velocity, target, weight), wanted)


def test_scaling_a_gradient_leaves_the_value() -> None:
    value = torch.tensor([0.3, 0.7], requires_grad=True)
    scaled = scale_gradient(value, torch.tensor([0.25, 1.0]))
    assert torch.equal(scaled, value)
    assert torch.autograd.grad(scaled.sum(), value)[0].tolist() == [0.25, 1.0]


@pytest.mark.parametrize(
    "given_", [{"name": "sft"}, {"name": "patch_dpo", "patch": {"form": "released"}}]
)
def test_a_safeguard_without_a_loser_is_refused(given_: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="pushes no loser away"):
        ObjectiveConfig(safeguard=0.5, **given_)  # type: ignore[arg-type]


# PatchDPO


def slow_quality(patches: np.ndarray, pool: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """max over allowed pool patches of the cosine, against the mean cosine, patch by patch."""
    out = np.zeros(len(patches))
    cosines = []
    for j, patch in enumerate(patches):
        row = [
            float(patch @ other / np.sqrt((patch @ patch) * (other @ other)))
            for other, use in zip(pool, allowed, strict=True)
            if use
        ]
        out[j] = max(row)
        cosines += row
    mean = sum(cosines) / len(cosines)
    return np.clip((out - mean) / (1 - mean), 0, 1)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS)
def test_quality_equals_the_slow_formula(seed: int) -> None:
    g = generator(seed)
    patches, pool = torch.randn(2, 6, 8, generator=g), torch.randn(2, 9, 8, generator=g)
    allowed = (torch.rand(2, 9, generator=g) < 0.6).float()
    allowed[:, 0] = 1
    found = best_cosine(patches, pool, allowed)
    for b in range(2):
        wanted = slow_quality(
            patches[b].double().numpy(), pool[b].double().numpy(), allowed[b].numpy() > 0
        )
        np.testing.assert_allclose(found[b].numpy(), wanted, atol=1e-5)


def test_a_patch_that_is_in_the_references_has_quality_one() -> None:
    pool = torch.randn(1, 9, 8, generator=generator(0))
    found = best_cosine(pool[:, [2, 5]] * 3.0, pool, torch.ones(1, 9))
    torch.testing.assert_close(found, torch.ones(1, 2))


def test_an_identical_pair_leaves_the_winner_nothing_to_teach() -> None:
    """The winner's map says what the loser lacks: of equal features, nothing."""
    features = torch.randn(1, 6, 8, generator=generator(1)).repeat(2, 1, 1)
    references = torch.randn(2, 4, 8, generator=generator(2))
    prediction = Prediction(torch.zeros(2, 6, 3), (features,), ((references,),))
    quality = quality_maps(prediction, [torch.ones(2, 4)])
    torch.testing.assert_close(quality.win_BN, torch.ones(1, 6))
    weights = patch_weights(quality, torch.ones(1, 6), 0.1, released=False)
    # Nothing is left to weigh by: rounding decides, and the mean is still 1.
    assert weights.mean(1).tolist() == pytest.approx([1.0, 1.0])


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, released=st.booleans())
def test_patch_weights_follow_their_definition(seed: int, released: bool) -> None:
    g = generator(seed)
    quality = PatchQuality(torch.rand(2, 8, generator=g), torch.rand(2, 8, generator=g))
    prior = (torch.rand(2, 8, generator=g) < 0.5).float()
    prior[:, 0], prior[:, 1] = 1, 0
    weights = patch_weights(quality, prior, 0.1, released)
    assert weights.shape == (4, 8)
    torch.testing.assert_close(weights.mean(1), torch.ones(4))
    lose = quality.lose_BN if released else 1 - quality.lose_BN
    inside = torch.cat([1 - quality.win_BN, lose]).double().numpy()
    raw = np.where(prior.repeat(2, 1).numpy() > 0, inside, 0.1)
    np.testing.assert_allclose(weights.numpy(), raw / raw.mean(1, keepdims=True), rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, eta=st.floats(0, 1))
def test_the_released_form_is_the_mean_of_weighted_errors(seed: int, eta: float) -> None:
    """PatchDPO's public loss: mean over the batch of winners and losers of weight times error."""
    g = generator(seed)
    win, lose = torch.rand(3, generator=g), torch.rand(3, generator=g)
    patch = {"form": "released"}
    config = ObjectiveConfig(name="patch_dpo", patch=patch, eta=eta)  # type: ignore[arg-type]
    both = np.concatenate([win.double().numpy(), lose.double().numpy()])
    wanted = both.mean() + eta * win.double().mean().item()
    assert released_patch_loss(win, lose, config).value.item() == pytest.approx(wanted, rel=1e-5)
