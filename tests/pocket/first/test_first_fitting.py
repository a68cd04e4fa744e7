"""The scorers' training loop: resume is exact, and foreign checkpoints are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from focusdpo.data_schemas.errors import UserError
from focusdpo.pocket.first.recipes.fitting import FitConfig, fit
from focusdpo.pocket.first.recipes.identity import IdentityRecipe
from focusdpo.pocket.first.recipes.running import with_overrides


class Stopped(Exception):
    pass


def run(out: Path, config: FitConfig, stop_at: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 1))

    def loss_of_step(step: int) -> Tensor:
        if step == stop_at:
            raise Stopped
        rng = torch.Generator().manual_seed(step)
        x = torch.randn(config.batch, 4, generator=rng)
        return (net(x)[:, 0] - x.sum(1)).square().mean()

    fit(net, loss_of_step, config, out)
    return net


def test_resume_is_bitwise_the_unbroken_run(tmp_path: Path) -> None:
    config = FitConfig(steps=30, batch=8, save_every=10)
    whole = run(tmp_path / "whole", config).state_dict()
    with pytest.raises(Stopped):
        run(tmp_path / "broken", config, stop_at=17)
    resumed = run(tmp_path / "broken", config).state_dict()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_it_learns_and_leaves_averaged_weights_in_eval_mode(tmp_path: Path) -> None:
    net = run(tmp_path, FitConfig(steps=300, batch=32, lr=0.02, ema=0.9, save_every=100))
    assert not net.training
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(999))
    assert (net(x)[:, 0] - x.sum(1)).square().mean() < 0.5


def test_a_checkpoint_of_another_config_is_refused(tmp_path: Path) -> None:
    run(tmp_path, FitConfig(steps=5, batch=8))
    with pytest.raises(UserError, match="another configuration"):
        run(tmp_path, FitConfig(steps=5, batch=8, lr=0.5))


def test_a_truncated_checkpoint_is_named(tmp_path: Path) -> None:
    run(tmp_path, FitConfig(steps=5, batch=8))
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="checkpoint.safetensors"):
        run(tmp_path, FitConfig(steps=5, batch=8))


def test_overrides_are_checked() -> None:
    assert with_overrides(IdentityRecipe, ["fit.steps=7"]).fit.steps == 7
    with pytest.raises(UserError, match="stepz"):
        with_overrides(IdentityRecipe, ["fit.stepz=7"])
