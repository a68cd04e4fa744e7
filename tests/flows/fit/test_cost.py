"""What a command will compute, told before it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_suite
import torch
from torch.utils.flop_counter import FlopCounterMode

from focusdpo.flows.commands import cost
from focusdpo.flows.commands.run import train
from focusdpo.flows.config import TrainRun
from focusdpo.flows.fit.demand import footprint
from focusdpo.flows.models_config import ModelsConfig


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_suite.write_preset("flux-uno", tmp_path_factory.mktemp("flux"))


def run_of(preset: Path, out: Path, **settings: Any) -> TrainRun:
    given = {"preset": str(preset), "root": "root", "out": str(out), "train": settings}
    return TrainRun.model_validate(given)


def test_passes_and_hours_of_a_training(
    preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "products_per_second", lambda device: 1e9)
    settings = {"steps": 10, "batch_pairs": 4, "gradient_checkpointing": False}
    run = run_of(preset, tmp_path, **settings)
    told = train(run, plan=True)["plan"]
    assert told["passes"] == 10 * 8 * 2
    own = footprint(run.models)  # type: ignore[arg-type]
    assert own is not None
    assert told["flops"] == pytest.approx(own.flops * 80 * (2 + cost.BACKWARD))
    assert told["hours"][0] == pytest.approx(told["flops"] / 0.7e9 / 3600)
    more = cost.train_cost(run_of(preset, tmp_path, **settings, memory="sequential"))
    assert more.passes == 10 * (8 * 2 + 4)
    # A run that has begun tells by its own steps.
    table = pa.table({"seconds": [9.0, 1.0, 1.0, 1.0]})
    pq.write_table(table, tmp_path / "steps.parquet")
    begun = cost.train_cost(run)
    assert begun.hours == (pytest.approx(6 / 3600), pytest.approx(6 / 3600))
    assert "4 steps of this run" in begun.by and begun.passes == 6 * 8 * 2
    assert not (tmp_path / "run.json").exists()


def test_operations_are_those_that_torch_counts(preset: Path) -> None:
    """Of the double and single blocks; ends and modulation are a few thousandths at full size,
    and most of a tiny model, so blocks alone are compared."""
    from diffusers import FluxTransformer2DModel

    models = ModelsConfig.model_validate(tiny_suite.yaml.safe_load(preset.read_text())["models"])
    own = footprint(models, references=0)
    assert own is not None
    model = FluxTransformer2DModel.from_pretrained(Path(models.backbone.base) / "transformer")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(
            hidden_states=torch.zeros(1, 16, 16),
            encoder_hidden_states=torch.zeros(1, 12, 16),
            pooled_projections=torch.zeros(1, 16),
            timestep=torch.zeros(1),
            img_ids=torch.zeros(16, 3),
            txt_ids=torch.zeros(12, 3),
            guidance=torch.zeros(1),
            return_dict=False,
        )
    counts = counter.get_flop_counts()
    blocks = sum(
        sum(own_counts.values())
        for name, own_counts in counts.items()
        if name.count(".") == 2 and "transformer_blocks." in name
    )
    norms = sum(
        sum(own_counts.values())
        for name, own_counts in counts.items()
        if name.endswith(".linear") and "norm" in name and "transformer_blocks." in name
    )
    attention = 4 * (16 + 12) ** 2 * 24 * 5  # which torch does not count on a CPU
    assert own.flops == pytest.approx(blocks - norms + attention, rel=0.01)


def test_this_machine_is_measured() -> None:
    assert 1e8 < cost.products_per_second("cpu", seconds=0.05) < 1e14
