"""No focus setting is dead: through a whole step on a real transformer, each changes something.

And none is forgotten: the alternatives are read from the config classes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from focus_cases import alternatives
from pair_samples import make_sample
from policy_step import give_policy, step
from pydantic import BaseModel
from torch import Tensor

from focusdpo.model.backbone import FeatureConfig
from focusdpo.model.backbones.flux import FluxBackbone
from focusdpo.model.focus import branch_weights
from focusdpo.model.focus_config import FocusConfig, NoiseConfig
from focusdpo.model.noise import draw_noise
from focusdpo.model.step import StepOutput
from focusdpo.model.training.batches import PairBatch, encode_pairs
from focusdpo.model.training.config import LoraConfig, TrainConfig
from focusdpo.model.training.monitor import observe

Changes = dict[str, list[tuple[Any, dict[str, Any]]]]
OPEN = {"gate": "always"}

FOCUS: Changes = {
    "features": [(FeatureConfig(kind="queries"), {})],
    "features_from": [("reference", {})],
    "prior_cover": [(0.0, {})],
    "prior_ring": [(1, {})],
    "use_structure": [(False, {})],
    "use_detail": [(False, OPEN)],
    "kappa": [(0.5, {}), (2.0, {"k_rule": "noise"}), (0.2, {"k_rule": "fraction"})],
    "tau": [
        (1.0, {"tau": 0.0}),
        (1.0, {"tau": 0.0, "gate": "similarity"}),
        (0.5, {"tau": 0.0, "gate": "soft"}),
    ],
    "w_bg": [(0.3, {})],
    "w_low": [(0.2, {})],
    "w_high": [(3.0, {})],
    "lambda_d": [(2.0, OPEN)],
    "pool": [("max", {}), ("patches", {})],
    "k_rule": [
        ("fraction", {}),
        ("fixed", {"fixed_k": 3}),
        ("threshold", {}),
        ("noise", {}),
    ],
    "fixed_k": [(20, {"k_rule": "fixed"})],
    "match_threshold": [(0.0, {"k_rule": "threshold"})],
    "domain": [("prior", {"kappa": 0.5})],
    "overlap": [("argmax", {})],
    "gate": [
        ("always", {"tau": 1.0}),
        ("never", {"tau": 0.0}),
        ("noise", {"tau": 1.0}),
        ("similarity", {"tau": 0.5}),
        ("soft", {}),
    ],
    "gate_sigma": [(0.0, {"gate": "noise"})],
    "gate_temperature": [(1.0, {"gate": "soft"})],
    "combine": [("multiply", OPEN), ("replace", OPEN)],
    "branches": [("winner", {}), ("split", OPEN)],
    "detail_image": [("each", OPEN)],
    "normalise": [("none", {}), ("masks", {})],
}
"""Field -> other values, each with the settings beside which it must be told from the default (or
from what those settings say of it)."""

FEATURES: Changes = {
    "kind": [("queries", {}), ("block_output", {}), ("attention", {})],
    "blocks": [(("single.0",), {}), (("double.0", "single.0"), {})],
}

NOISE: Changes = {
    "distribution": [("uniform", {}), ("beta", {})],
    "mean": [(1.0, {})],
    "std": [(0.5, {})],
    "bump": [(5.0, {"distribution": "beta"})],
    "shift": [(3.0, {})],
    "stratified": [(True, {})],
}


@pytest.fixture
def batch(backbone: FluxBackbone) -> PairBatch:
    """Four pairs of two subjects; on the backbone a policy that is far from the base."""
    encoded = encode_pairs(backbone, [make_sample(i, 2) for i in range(4)])
    give_policy(backbone, LoraConfig(rank=4, targets=("to_q", "to_k")), by=0.5)
    return encoded


def run(backbone: FluxBackbone, batch: PairBatch, focus: FocusConfig) -> StepOutput:
    return step(backbone, batch, TrainConfig(focus=focus, mixed_precision="no"))


def weight(backbone: FluxBackbone, batch: PairBatch, focus: FocusConfig) -> Tensor:
    samples = [make_sample(i, 2) for i in range(4)]
    batch = replace(batch, priors=encode_pairs(backbone, samples, focus=focus).priors)
    output = run(backbone, batch, focus)
    assert output.weight_BN is not None and output.weight_BN.isfinite().all()
    assert output.loss.value.isfinite()
    table = observe(output, batch, focus)
    shares = [table[f"share_{part}"] for part in ("background", "matched", "structure")]
    assert sum(shares) == pytest.approx([1.0] * 4)
    assert ((table["share_detail"] >= 0) & (table["share_detail"] <= 1)).all()
    return output.weight_BN


@pytest.mark.parametrize(
    "field, value, beside",
    [(name, value, beside) for name, rows in FOCUS.items() for value, beside in rows],
)
def test_no_focus_field_is_dead(
    backbone: FluxBackbone, batch: PairBatch, field: str, value: Any, beside: dict[str, Any]
) -> None:
    base = weight(backbone, batch, FocusConfig(**beside))
    other = weight(backbone, batch, FocusConfig(**{**beside, field: value}))
    assert not torch.equal(base, other)


@pytest.mark.parametrize(
    "field, value", [(name, value) for name, rows in FEATURES.items() for value, _ in rows]
)
def test_no_feature_field_is_dead(
    backbone: FluxBackbone, batch: PairBatch, field: str, value: Any
) -> None:
    features = FeatureConfig(**{field: value})
    one, other = (
        run(backbone, batch, FocusConfig(features=f)).maps for f in (FeatureConfig(), features)
    )
    assert one is not None and other is not None
    assert not torch.equal(one.similarity_BRN, other.similarity_BRN)
    assert not torch.equal(one.weight_BN, other.weight_BN)


@pytest.mark.parametrize(
    "field, value, beside",
    [(name, value, beside) for name, rows in NOISE.items() for value, beside in rows],
)
def test_no_noise_field_is_dead(field: str, value: Any, beside: dict[str, Any]) -> None:
    one, other = (
        draw_noise(torch.zeros(4, 2, 2), range(4), seed=0, step=0, config=config, slots_in_step=4)
        for config in (NoiseConfig(**beside), NoiseConfig(**{**beside, field: value}))
    )
    assert torch.equal(one[0], other[0])
    assert not torch.equal(one[1], other[1])


@pytest.mark.parametrize(
    "config, changes", [(FocusConfig, FOCUS), (FeatureConfig, FEATURES), (NoiseConfig, NOISE)]
)
def test_every_alternative_of_every_field_is_among_them(
    config: type[BaseModel], changes: Changes
) -> None:
    assert set(config.model_fields) == set(changes)
    for name, (default, *others) in alternatives(config).items():
        assert config.model_fields[name].default == default
        assert set(others) == {value for value, _ in changes[name]}


def test_attention_reads_queries_and_keys(backbone: FluxBackbone, batch: PairBatch) -> None:
    """The same tensors as those two kinds give one by one, queries first."""
    inputs = (batch.win_BNC, torch.full((4,), 0.4), batch.prompts, batch.references)
    with torch.no_grad():
        both, queries, keys = (
            backbone.predict(*inputs, capture=FeatureConfig(kind=kind))
            for kind in ("attention", "queries", "keys")
        )
    for part, single in ((0, queries), (1, keys)):
        assert torch.equal(
            both.target_features[0][:, :, part].flatten(2), single.target_features[0]
        )
        for r in range(2):
            ours = both.reference_features[0][r][:, :, part].flatten(2)
            assert torch.equal(ours, single.reference_features[0][r])


def test_the_losers_detail_is_its_own(backbone: FluxBackbone, batch: PairBatch) -> None:
    shared, own = batch.branch_priors("winner"), batch.branch_priors("each")
    assert torch.equal(shared.detail_BN, batch.priors.detail_BN.repeat(2, 1))
    assert torch.equal(own.detail_BN[:4], batch.priors.detail_BN)
    for row in range(4):
        lose = make_sample(row, 2).images.lose_complexity.reshape(8, 8, 8, 8).mean((1, 3))
        torch.testing.assert_close(own.detail_BN[4 + row], torch.from_numpy(lose).flatten())
    assert torch.equal(shared.prior_BN, own.prior_BN)
    config = FocusConfig(gate="always", detail_image="each", branches="winner")
    maps = run(backbone, batch, config).maps
    win_BN, lose_BN = branch_weights(maps, own, config).chunk(2)
    assert torch.equal(win_BN, lose_BN)
