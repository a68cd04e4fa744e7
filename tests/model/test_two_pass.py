"""One branch after the other: the gradient is the joint one's, with half the activations."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from exact import to_double
from pair_samples import make_sample
from policy_step import give_policy
from torch import Tensor

from focusdpo.model.adapter import policy_parameters
from focusdpo.model.backbones.flux import FluxBackbone
from focusdpo.model.noise import draw_noise
from focusdpo.model.step import StepOutput, autocast, pair_step
from focusdpo.model.training.batches import PairBatch, encode_pairs
from focusdpo.model.training.config import LoraConfig, PatchConfig, TrainConfig
from focusdpo.model.training.monitor import observe
from focusdpo.model.training.steps import backward_step

FORMS: dict[str, dict[str, Any]] = {
    "sigmoid": {"name": "dpo"},
    "tokens": {"name": "dpo_prior", "form": "tokens"},
    "hinge": {"name": "dpo", "form": "hinge"},
    "ipo": {"name": "dpo", "form": "ipo"},
    "safeguard": {"name": "dpo_prior", "safeguard": 0.9},
    "safeguard of each pair": {"name": "dpo", "safeguard": 0.9, "safeguard_scope": "pair"},
    "anchor": {"name": "dpo", "eta": 0.3},
    "patch_dpo": {"name": "patch_dpo"},
    "dpo_prior": {"name": "dpo_prior"},
    "released patch_dpo": {"name": "patch_dpo", "patch": {"form": "released"}},
    "focus_dpo": {"name": "focus_dpo", "eta": 0.1, "safeguard": 0.9},
    "focus_dpo by token": {"name": "focus_dpo", "form": "tokens"},
    "focus_dpo by the reference": {"name": "focus_dpo", "focus": {"features_from": "reference"}},
    "focus_dpo by attention": {"name": "focus_dpo", "focus": {"features": {"kind": "attention"}}},
    "sft": {"name": "sft"},
}


def settings(form: str, **changes: Any) -> TrainConfig:
    objective = dict(FORMS[form])
    focus = objective.pop("focus", {})
    tree = {"objective": {"beta": 30.0, **objective}, "focus": focus, "mixed_precision": "no"}
    return TrainConfig.model_validate(tree | changes)


@pytest.fixture
def batch(backbone: FluxBackbone) -> PairBatch:
    """Three pairs of two subjects, and on the backbone a LoRA that changes something."""
    encoded = encode_pairs(backbone, [make_sample(i, 2) for i in range(3)], PatchConfig())
    give_policy(backbone, LoraConfig(rank=4, targets=("to_q", "to_v", "ff.net.2")))
    return encoded


@pytest.fixture
def exact(backbone: FluxBackbone, batch: PairBatch) -> PairBatch:
    """The same in float64."""
    backbone.transformer.double()
    return to_double(batch)


def noise_of(batch: PairBatch) -> tuple[Tensor, Tensor]:
    slots, config = range(len(batch)), TrainConfig().noise
    return draw_noise(batch.win_BNC, slots, seed=0, step=0, config=config, slots_in_step=3)


def gradient(
    backbone: FluxBackbone, batch: PairBatch, config: TrainConfig, **given: Any
) -> tuple[Tensor, StepOutput]:
    parameters = policy_parameters(backbone.transformer).values()
    for parameter in parameters:
        parameter.grad = None
    cast = autocast(batch.win_BNC.device, config.mixed_precision)
    output = backward_step(backbone, batch, *noise_of(batch), config, cast, **given)
    assert not output.loss.value.requires_grad
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]), output


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_is_the_joint_one(backbone: FluxBackbone, exact: PairBatch, form: str) -> None:
    joint, said = gradient(backbone, exact, settings(form))
    assert joint.abs().max() > 1e-4
    for checkpointing in (False, True):
        if checkpointing:
            backbone.transformer.enable_gradient_checkpointing()
            again, _ = gradient(backbone, exact, settings(form))
            assert torch.equal(again, joint)
        ours, output = gradient(backbone, exact, settings(form, memory="sequential"), share=0.5)
        torch.testing.assert_close(2 * ours, joint, rtol=1e-9, atol=1e-10 * joint.abs().max())
        same_output(output, said)
        config = settings(form)
        told, wanted = (observe(o, exact, config.focus) for o in (output, said))
        for name, values in wanted.items():
            assert told[name] == pytest.approx(values, rel=1e-6, abs=1e-12, nan_ok=True), name


def same_output(ours: StepOutput, theirs: StepOutput) -> None:
    """Everything that is told of a step."""
    assert ours.loss.value.item() == pytest.approx(theirs.loss.value.item(), rel=1e-12)
    for name in ("error_BN", "ref_error_BN", "weight_BN", "safeguard_B"):
        one, other = getattr(ours, name), getattr(theirs, name)
        assert (one is None) == (other is None), name
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(ours.loss.logit_B, theirs.loss.logit_B, rtol=1e-9, atol=1e-12)


def test_the_joint_gradient_is_autograds(backbone: FluxBackbone, exact: PairBatch) -> None:
    config = settings("focus_dpo")
    ours, _ = gradient(backbone, exact, config)
    parameters = list(policy_parameters(backbone.transformer).values())
    value = pair_step(backbone, exact, *noise_of(exact), config).loss.value
    theirs = torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])
    assert torch.equal(ours, theirs)


def test_gradients_are_added_to_what_is_there(backbone: FluxBackbone, exact: PairBatch) -> None:
    config = settings("dpo_prior", memory="sequential")
    once, _ = gradient(backbone, exact, config)
    backward_step(backbone, exact, *noise_of(exact), config)
    parameters = policy_parameters(backbone.transformer).values()
    twice = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    torch.testing.assert_close(twice, 2 * once, rtol=1e-12, atol=0)


def test_known_reference_errors_serve_here_too(backbone: FluxBackbone, exact: PairBatch) -> None:
    config = settings("focus_dpo", memory="sequential")
    first, output = gradient(backbone, exact, config)
    with passes_of(backbone) as seen:
        again, _ = gradient(backbone, exact, config, ref_error_BN=output.ref_error_BN)
    assert torch.equal(again, first)
    assert seen == [(3, False), (3, True), (3, True)]


@pytest.mark.parametrize("form", ["focus_dpo", "dpo_prior", "released patch_dpo"])
def test_passes_that_it_takes(backbone: FluxBackbone, batch: PairBatch, form: str) -> None:
    """(images, whether a graph is kept): what the docstring says it costs."""
    with passes_of(backbone) as seen:
        gradient(backbone, batch, settings(form))
        joint = list(seen)
        seen.clear()
        gradient(backbone, batch, settings(form, memory="sequential"))
    reference = form != "released patch_dpo"
    assert joint == [(6, False)] * reference + [(6, True)]
    assert seen == [(3, False)] * 2 * reference + [(3, False), (3, True), (3, True)]


@contextmanager
def passes_of(backbone: FluxBackbone) -> Iterator[list[tuple[int, bool]]]:
    seen: list[tuple[int, bool]] = []

    def note(_module: Any, _args: Any, given: dict[str, Any], _output: Any) -> None:
        seen.append((len(given["hidden_states"]), torch.is_grad_enabled()))

    handle = backbone.transformer.register_forward_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_half_the_activations_live_at_a_time(
    backbone: FluxBackbone, batch: PairBatch, checkpointing: bool
) -> None:
    if checkpointing:
        backbone.transformer.enable_gradient_checkpointing()
    peaks = {}
    for memory in ("joint", "sequential"):
        with saved_bytes(backbone) as meter:
            gradient(backbone, batch, settings("focus_dpo", memory=memory))
        gc.collect()
        assert meter.live == 0, "a graph outlives its step"
        peaks[memory] = meter.peak
    assert peaks["sequential"] < 0.55 * peaks["joint"]


class Meter:
    """Bytes that autograd keeps for backward passes, now and at most; weights do not count."""

    def __init__(self, weights: set[int]) -> None:
        self.live = self.peak = 0
        self._weights = weights

    def pack(self, tensor: Tensor) -> Any:
        if tensor.untyped_storage().data_ptr() in self._weights:
            return tensor
        held = Held(tensor)
        size = tensor.numel() * tensor.element_size()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(held, self.forget, size)
        return held

    def forget(self, size: int) -> None:
        self.live -= size


class Held:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@contextmanager
def saved_bytes(backbone: FluxBackbone) -> Iterator[Meter]:
    weights = {p.untyped_storage().data_ptr() for p in backbone.transformer.parameters()}
    meter = Meter(weights)
    hooks = torch.autograd.graph.saved_tensors_hooks(
        meter.pack, lambda held: held.tensor if isinstance(held, Held) else held
    )
    with hooks:
        yield meter


def test_under_bf16_autocast_the_lora_gets_its_whole_gradient(
    backbone: FluxBackbone, batch: PairBatch
) -> None:
    """Passes with and without gradients in one autocast would share cast weights."""
    joint, _ = gradient(backbone, batch, settings("dpo_prior", mixed_precision="bf16"))
    ours, _ = gradient(
        backbone, batch, settings("dpo_prior", mixed_precision="bf16", memory="sequential")
    )
    cosine = torch.nn.functional.cosine_similarity(ours, joint, dim=0)
    assert cosine > 0.99
    assert ours.norm().item() == pytest.approx(joint.norm().item(), rel=0.05)
