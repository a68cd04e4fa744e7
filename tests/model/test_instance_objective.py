"""A preference per subject: against an independent formula in double precision, and on a real
transformer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pair_samples import make_sample, write_shard
from policy_step import give_policy, gradients, step

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.adapter import policy_parameters
from focusdpo.model.backbones.flux import FluxBackbone
from focusdpo.model.focus_config import FocusConfig
from focusdpo.model.noise import draw_noise
from focusdpo.model.step import StepOutput
from focusdpo.model.training.batches import PairBatch, PairData, encode_pairs
from focusdpo.model.training.config import ObjectiveConfig, TrainConfig
from focusdpo.model.training.monitor import observe

BETA, ETA = 30.0, 0.5


def config(name: str = "instance_dpo", **objective: Any) -> TrainConfig:
    return TrainConfig(
        objective=ObjectiveConfig(name=name, beta=BETA, eta=ETA, **objective),
        focus=FocusConfig(w_bg=0.0),
        mixed_precision="no",
    )


def with_policy(backbone: FluxBackbone, num_subjects: int) -> PairBatch:
    """Four pairs, and a LoRA that changes something."""
    encoded = encode_pairs(backbone, [make_sample(i, num_subjects) for i in range(4)])
    give_policy(backbone)
    return encoded


def by_loops(output: StepOutput, batch: PairBatch) -> float:
    """Pair by pair, subject by subject, token by token, in float64."""
    assert output.ref_error_BN is not None
    policy, reference = (e.double().numpy() for e in (output.error_BN, output.ref_error_BN))
    num, total = len(batch), 0.0
    for b in range(num):
        values = []
        for r, sign in enumerate(batch.signs_BR[b].tolist()):
            inside = batch.priors.subjects_BRN[b, r].bool() & batch.priors.prior_BN[b].bool()
            tokens = np.flatnonzero(inside.numpy())
            if sign == 0 or not len(tokens):
                continue
            better, worse = (b, num + b) if sign > 0 else (num + b, b)
            gain = [
                np.mean([policy[image, t] - reference[image, t] for t in tokens])
                for image in (better, worse)
            ]
            anchor = ETA * np.mean([policy[better, t] for t in tokens])
            values.append(np.log1p(np.exp(BETA / 2 * (gain[0] - gain[1]))) + anchor)
        total += np.mean(values) if values else 0.0
    return total / num


@pytest.mark.parametrize(
    "signs",
    [
        [[1, 1]] * 4,
        [[1, -1], [-1, 1], [-1, -1], [1, 1]],
        [[1, 0], [0, -1], [0, 0], [1, -1]],
    ],
)
def test_it_equals_the_formula_written_out(backbone: FluxBackbone, signs: list) -> None:
    batch = replace(with_policy(backbone, 2), signs_BR=torch.tensor(signs).float())
    output = step(backbone, batch, config())
    assert output.loss.value.item() == pytest.approx(by_loops(output, batch), rel=1e-5)


def test_of_one_subject_with_one_sign_it_is_masked_dpo(backbone: FluxBackbone) -> None:
    batch = with_policy(backbone, 1)
    # M_prior and the subject's own mask must be the same tokens.
    prior = batch.priors.prior_BN * batch.priors.subjects_BRN[:, 0]
    batch = replace(batch, priors=replace(batch.priors, prior_BN=prior))
    ours, masked = step(backbone, batch, config()), step(backbone, batch, config("dpo_prior"))
    torch.testing.assert_close(ours.loss.value, masked.loss.value, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.loss.logit_B, masked.loss.logit_B, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        gradients(backbone, ours), gradients(backbone, masked), rtol=1e-4, atol=1e-6
    )
    guarded = [
        step(backbone, batch, config(name, safeguard=0.9, safeguard_scope="pair"))
        for name in ("instance_dpo", "dpo_prior")
    ]
    torch.testing.assert_close(guarded[0].safeguard_B, guarded[1].safeguard_B)
    torch.testing.assert_close(*(gradients(backbone, one) for one in guarded), rtol=1e-4, atol=1e-6)


def test_turning_pictures_and_signs_changes_nothing(backbone: FluxBackbone) -> None:
    signs = torch.tensor([[1.0, -1.0], [1.0, 0.0], [-1.0, -1.0], [1.0, 1.0]])
    batch = replace(with_policy(backbone, 2), signs_BR=signs)
    turned = replace(batch, win_BNC=batch.lose_BNC, lose_BNC=batch.win_BNC, signs_BR=-signs)
    a, b = step(backbone, batch, config()), step(backbone, turned, config())
    torch.testing.assert_close(a.loss.value, b.loss.value, rtol=1e-6, atol=1e-6)
    table = observe(a, batch, config().focus)
    assert np.isfinite(table["logit"]).all() and (table["share_background"] < 1e-6).all()


def test_two_passes_give_the_gradient_of_one(backbone: FluxBackbone) -> None:
    from focusdpo.model.training.steps import backward_step

    signs = torch.tensor([[1.0, -1.0], [1.0, 0.0], [-1.0, -1.0], [1.0, 1.0]])
    batch = replace(with_policy(backbone, 2), signs_BR=signs)
    noise, sigma = draw_noise(batch.win_BNC, range(4), seed=0, step=0, config=config().noise)
    found = []
    for memory in ("joint", "sequential"):
        for parameter in policy_parameters(backbone.transformer).values():
            parameter.grad = None
        settings = config(safeguard=0.5).model_copy(update={"memory": memory})
        backward_step(backbone, batch, noise, sigma, settings)
        grads = [p.grad for p in policy_parameters(backbone.transformer).values()]
        found.append(torch.cat([g.flatten() for g in grads if g is not None]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_mixed_pairs_are_for_instances_alone(backbone: FluxBackbone, tmp_path: Any) -> None:
    def failure(index: int, mode: str) -> Any:
        sample = make_sample(index, 2, "rank")
        return replace(sample, pair=replace(sample.pair, source="failure", mode=mode))

    samples = write_shard(tmp_path, "f.tar", [failure(0, "win same"), failure(1, "win lose")])
    data = PairData(backbone, samples, source="failure", mixed=True)
    assert data.batch([0, 1]).signs_BR.tolist() == [[1, 0], [1, -1]]
    assert PairData(backbone, samples).keys() == data.keys()[:1]
    with pytest.raises(UserError, match="all 1 pairs of source 'failure' are mixed"):
        PairData(backbone, samples[1:], source="failure")
