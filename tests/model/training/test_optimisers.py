"""Optimisers by name go on to the bit and learn; compiled blocks compute the same, or are let go
of."""

from __future__ import annotations

import importlib.util
import logging
import re
from pathlib import Path
from typing import Any, get_args

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from pydantic import ValidationError
from tiny_backbone import tiny_backbone
from tiny_runs import SETTINGS, Interrupted, stop_at, table_rows

from focusdpo.data_schemas.errors import UserError
from focusdpo.model import compiled
from focusdpo.model.adapter import WEIGHTS
from focusdpo.model.training.config import TrainConfig
from focusdpo.model.training.optimisers import require_optimiser
from focusdpo.model.training.run import train
from focusdpo.store.samples import Sample

PRESETS = Path(__file__).parents[3] / "flows" / "presets"
RATES = {"adamw": 1e-3, "adamw8bit": 1e-3, "adafactor": 1e-3, "prodigy": 1.0, "muon": 1e-3}


def settings(**changes: Any) -> TrainConfig:
    base = SETTINGS | {"tensorboard": False, "save_every": 4, "steps": 12}
    return TrainConfig.model_validate(base | changes)


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, "lora") for name in RATES), ("adamw", "dora"), ("adamw", "lokr"), ("muon", "lokr")],
)
def test_an_optimiser_goes_on_to_the_bit(
    name: str, kind: str, pair_samples: list[Sample], tmp_path: Path
) -> None:
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    lora = SETTINGS["lora"] | {"kind": kind}
    config = settings(optimiser=name, lr=RATES[name], lora=lora)
    train(tiny_backbone(), pair_samples, config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(tiny_backbone(), pair_samples, config, tmp_path / "parts", progress=stop_at(6))
    done = train(tiny_backbone(), pair_samples, config, tmp_path / "parts")
    assert done.resumed_from == 4
    whole, parts = (tmp_path / run / "adapter" / WEIGHTS for run in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()
    assert table_rows(tmp_path / "parts") == table_rows(tmp_path / "whole")
    table = pq.read_table(tmp_path / "whole" / "steps.parquet").to_pylist()
    assert table[-1]["loss"] < table[0]["loss"]


@pytest.mark.parametrize("preset", ["flux-uno", "flux2-klein", "sdxl-ip-adapter"])
def test_a_preset_tells_a_rate_for_every_optimiser(preset: str) -> None:
    """In one comment, each rate one that the settings take."""
    text = (PRESETS / f"{preset}.yaml").read_text()
    train = yaml.safe_load(text)["train"]
    comment = " ".join(re.findall(r"^  # (.*)", text.split("\ntrain:")[1], re.MULTILINE))
    named = dict(re.findall(r"(adamw8bit|adafactor|muon|prodigy) (\d[.\de-]*\d)", comment))
    named["adamw"] = train["lr"]
    assert named.keys() == set(get_args(TrainConfig.model_fields["optimiser"].annotation))
    for name, rate in named.items():
        config = TrainConfig.model_validate(train | {"optimiser": name, "lr": float(rate)})
        assert config.lr == (1 if name == "prodigy" else train["lr"])


@pytest.mark.parametrize(
    ("name", "package"), [("adamw8bit", "bitsandbytes"), ("prodigy", "prodigyopt")]
)
def test_an_optimiser_that_is_not_there_is_told_of(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=f"train.optimiser: {name} needs {package}: pip install"):
        require_optimiser(name)


def test_prodigy_with_adamws_rate_would_stand_still() -> None:
    with pytest.raises(ValidationError, match="set lr to 1"):
        settings(optimiser="prodigy", lr=1e-4)


def test_muon_has_no_use_for_lengths_of_rows() -> None:
    with pytest.raises(ValidationError, match="muon takes matrices alone, and a DoRA has"):
        settings(optimiser="muon", lora={"kind": "dora"})


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"memory": "sequential"}], ids=["joint", "sequential"])
def test_compiled_blocks_train_alike(
    pair_samples: list[Sample], tmp_path: Path, caplog: Any, changes: dict[str, Any]
) -> None:
    """With the focus maps' hooks in the blocks, and the reference policy's switch."""
    for run, compile in (("plain", False), ("compiled", True)):
        config = settings(steps=4, compile=compile, **changes)
        train(tiny_backbone(), pair_samples, config, tmp_path / run)
    assert "train.compile" not in caplog.text
    rows = [
        pq.read_table(tmp_path / run / "steps.parquet").to_pylist() for run in ("plain", "compiled")
    ]
    for plain, other in zip(*rows, strict=True):
        for name in ("loss", "grad_norm", "alignment", "win_gap"):
            assert other[name] == pytest.approx(plain[name], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("fault", ["raises", "differs"])
def test_a_compile_that_fails_falls_back_once_and_loudly(
    pair_samples: list[Sample], tmp_path: Path, caplog: Any, monkeypatch: Any, fault: str
) -> None:
    def broken(self: Any, *_: Any, **__: Any) -> None:
        def call(*args: Any, **kwargs: Any) -> Any:
            if fault == "raises":
                raise RuntimeError("no C++ compiler was found")
            given = self._call_impl(*args, **kwargs)
            # Not a factor: norms would take it out again, and two signs each other.
            return tuple(one.roll(1, -1) for one in given)

        self._compiled_call_impl = call

    monkeypatch.setattr(torch.nn.Module, "compile", broken)
    with caplog.at_level(logging.WARNING):
        train(tiny_backbone(), pair_samples, settings(compile=True), tmp_path / "failed")
    told = [line for line in caplog.messages if line.startswith("train.compile")]
    assert len(told) == 1 and "goes on without" in told[0]
    train(tiny_backbone(), pair_samples, settings(), tmp_path / "plain")
    failed, plain = (tmp_path / run / "adapter" / WEIGHTS for run in ("failed", "plain"))
    assert failed.read_bytes() == plain.read_bytes()


def test_blocks_are_let_go_of_after_a_run(pair_samples: list[Sample], tmp_path: Path) -> None:
    backbone = tiny_backbone()
    for block in backbone.transformer.transformer_blocks:  # type: ignore[union-attr]
        block.compile()
    compiled.release_blocks(backbone.transformer)
    assert all(module._compiled_call_impl is None for module in backbone.transformer.modules())
