"""A step's gradients: of both branches at once, or, in half the memory, of one after the other.

The loss is a function of the errors e (2B, N) alone: weights, maps, the safeguard's scale and the
reference policy's errors carry no gradient. So dL/dtheta = sum over branches of (dL/de)(de/dtheta),
and dL/de needs the values of both branches' errors, not their graphs. In turn: the reference policy
on either branch; the loser without gradients; the winner with them; dL/de; the winner's backward;
the loser again, with gradients, and its backward. The gradient is the joint one, not an estimate.

One graph of B images lives at a time instead of one of 2B. The price is one more forward pass of B
images: by passes (a backward counts as two), 9 instead of 8, with gradient checkpointing 11 instead
of 10. Shapes: B pairs, 2B images (winners, then losers), N target tokens, C channels.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from focusdpo.model.adapter import reference_policy
from focusdpo.model.backbone import Backbone, FeatureConfig, Prediction
from focusdpo.model.batches import PairBatch
from focusdpo.model.configs import TrainConfig
from focusdpo.model.objectives import Loss, token_error
from focusdpo.model.step import (
    Autocast,
    Passes,
    StepOutput,
    features,
    judge,
    needs_reference,
    pair_step,
)


def backward_step(
    backbone: Backbone,
    batch: PairBatch,
    noise_BNC: Tensor,
    sigma_B: Tensor,
    config: TrainConfig,
    cast: Autocast = nullcontext,
    ref_error_BN: Tensor | None = None,
    *,
    share: float = 1.0,
) -> StepOutput:
    """`pair_step`, and `share` times its gradient added to the parameters' `.grad`, in the manner
    of `config.memory`. The output's loss carries no gradient any more."""
    inputs = (backbone, batch, noise_BNC, sigma_B, config, cast, ref_error_BN)
    if config.memory == "sequential" and config.objective.name != "sft":
        return _sequential(*inputs, share)
    output = pair_step(*inputs)
    (output.loss.value * share).backward()
    return _without_gradient(output)


def _without_gradient(output: StepOutput) -> StepOutput:
    return replace(output, loss=Loss(output.loss.value.detach(), output.loss.logit_B))


def _sequential(
    backbone: Backbone,
    batch: PairBatch,
    noise_BNC: Tensor,
    sigma_B: Tensor,
    config: TrainConfig,
    cast: Autocast,
    ref_error_BN: Tensor | None,
    share: float,
) -> StepOutput:
    win, lose = (
        _Branch(backbone, batch, clean_BNC, noise_BNC, sigma_B, cast)
        for clean_BNC in (batch.win_BNC, batch.lose_BNC)
    )
    target_BNC = torch.cat([win.target_BNC, lose.target_BNC])
    capture = {config.focus.features_from: features(config)}
    reference: Prediction | None = None
    if needs_reference(config, ref_error_BN):
        with torch.no_grad(), reference_policy(backbone.transformer):
            asked = capture.get("reference")
            reference = _joined(win.predict(asked), lose.predict(asked))
        ref_error_BN = token_error(reference.output_BNC, target_BNC)
    asked = capture.get("policy")
    with torch.no_grad():
        ahead = lose.predict(asked)
    kept = win.predict(asked)
    policy = _joined(kept, ahead)
    passes = Passes(policy, reference, target_BNC, ref_error_BN)
    error_BN = token_error(policy.output_BNC, target_BNC).requires_grad_()
    output = judge(passes, error_BN, batch, sigma_B, config)
    (slope_BN,) = torch.autograd.grad(output.loss.value * share, error_BN)
    win_slope_BN, lose_slope_BN = slope_BN.chunk(2)
    torch.autograd.backward(token_error(kept.output_BNC, win.target_BNC), win_slope_BN)
    del kept
    again = lose.predict(None)
    torch.autograd.backward(token_error(again.output_BNC, lose.target_BNC), lose_slope_BN)
    return _without_gradient(output)


@dataclass(frozen=True)
class _Branch:
    """The winners or the losers of a batch at their noise level."""

    backbone: Backbone
    batch: PairBatch
    clean_BNC: Tensor
    noise_BNC: Tensor
    sigma_B: Tensor
    cast: Autocast

    @property
    def target_BNC(self) -> Tensor:
        return self.backbone.target(self.clean_BNC, self.noise_BNC, self.sigma_B)

    def predict(self, capture: FeatureConfig | None) -> Prediction:
        """One pass. Each has an autocast of its own: one that spans passes with and without
        gradients would hand the former the latter's cast weights, and the LoRA no gradient."""
        noisy_BNC = self.backbone.add_noise(self.clean_BNC, self.noise_BNC, self.sigma_B)
        with self.cast():
            return self.backbone.predict(
                noisy_BNC, self.sigma_B, self.batch.prompts, self.batch.references, capture=capture
            )


def _joined(win: Prediction, lose: Prediction) -> Prediction:
    """Both branches as one prediction of 2B images, without gradient."""
    references = [
        tuple(torch.cat(pair) for pair in zip(*blocks, strict=True))
        for blocks in zip(win.reference_features, lose.reference_features, strict=True)
    ]
    targets = zip(win.target_features, lose.target_features, strict=True)
    return Prediction(
        output_BNC=torch.cat([win.output_BNC.detach(), lose.output_BNC.detach()]),
        target_features=tuple(torch.cat(pair) for pair in targets),
        reference_features=tuple(references),
    )
