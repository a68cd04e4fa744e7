"""Runs that share the reference policy's errors: the same bytes, fewer passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_backbone import tiny_backbone
from tiny_runs import SETTINGS

from focusdpo.model.training.config import TrainConfig
from focusdpo.model.training.run import train
from focusdpo.model.training.steps import ReferenceErrors
from focusdpo.store.samples import Sample

SHORT = {"steps": 3, "micro_pairs": 2, "warmup": 1, "tensorboard": False}


def run(
    samples: list[Sample], out: Path, shared: ReferenceErrors | None = None, **changes: Any
) -> tuple[bytes, int]:
    """The adapter's weights, and how many passes the transformer made."""
    backbone, passes = tiny_backbone(), []
    backbone.transformer.register_forward_hook(lambda *_: passes.append(1))
    config = TrainConfig.model_validate(SETTINGS | SHORT | changes)
    train(backbone, samples, config, out, reference_errors=shared)
    return (out / "adapter/pytorch_lora_weights.safetensors").read_bytes(), len(passes)


def test_objectives_share_them_and_nothing_else_changes(
    pair_samples: list[Sample], tmp_path: Path
) -> None:
    shared = ReferenceErrors()
    for number, name in enumerate(("dpo", "dpo_prior", "focus_dpo")):
        objective = {"objective": {"name": name, "beta": 100.0}}
        alone, all_passes = run(pair_samples, tmp_path / f"a{number}", **objective)
        together, fewer = run(pair_samples, tmp_path / f"b{number}", shared, **objective)
        assert together == alone
        # Two micro-batches a step, each with one pass of the reference policy.
        assert all_passes - fewer == (0 if number == 0 else 6)


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"noise": {"mean": 1.0}}, {"micro_pairs": 4}, {"source": "rank"}]
)
def test_what_decides_them_keeps_runs_apart(
    pair_samples: list[Sample], tmp_path: Path, change: dict[str, Any]
) -> None:
    shared = ReferenceErrors()
    run(pair_samples, tmp_path / "first", shared)
    alone, all_passes = run(pair_samples, tmp_path / "alone", **change)
    together, passes = run(pair_samples, tmp_path / "together", shared, **change)
    assert (together, passes) == (alone, all_passes)


def test_what_has_no_room_is_computed_anew() -> None:
    known = ReferenceErrors(limit_mib=1).of("base", "pairs", TrainConfig())
    small, large = torch.zeros(4, 64), torch.zeros(2**19)
    known.put((0, 0), small)
    known.put((1, 0), large)
    assert known.get((0, 0)) is small and known.get((1, 0)) is None
