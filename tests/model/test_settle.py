"""Settings that are left to the data and the machine, and a run that met the end of a card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_backbone import tiny_backbone
from tiny_runs import SETTINGS

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.settle import auto_beta, largest, settle
from focusdpo.model.training.batches import PairData
from focusdpo.model.training.config import TrainConfig
from focusdpo.model.training.run import train
from focusdpo.store.samples import Sample


def settings(**changes: Any) -> TrainConfig:
    return TrainConfig.model_validate(SETTINGS | {"save_every": 1} | changes)


def test_beta_follows_the_spread_of_the_bases_errors(pair_samples: list[Sample]) -> None:
    """An error that is k times as large wants a beta that is 1/k: h stays the same."""
    backbone = tiny_backbone()
    data = PairData(backbone, pair_samples)
    config = settings(objective={"beta": "auto"})
    first = auto_beta(backbone, data, config)
    predict = backbone.predict

    class Wider:
        """The same backbone, whose predictions are off by thrice as much."""

        def __getattr__(self, name: str) -> Any:
            return getattr(backbone, name)

        def target(self, clean: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> Any:
            return 3 * backbone.target(clean, noise, sigma)

        def predict(self, *inputs: Any, **named: Any) -> Any:
            from dataclasses import replace

            made = predict(*inputs, **named)
            return replace(made, output_BNC=3 * made.output_BNC)

    wider: Any = Wider()
    assert auto_beta(wider, data, config) == pytest.approx(first / 9, rel=0.06)


def test_what_was_settled_is_kept_for_the_run(
    pair_samples: list[Sample], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = tiny_backbone()
    asked = settings(objective={"beta": "auto"}, micro_pairs="auto", batch_pairs=4)
    config = settle(backbone, lambda: PairData(backbone, pair_samples), asked, tmp_path)
    assert config.objective.beta > 0
    assert config.micro_pairs == 4  # no card to fill
    assert "objective.beta: auto is" in caplog.text
    kept = json.loads((tmp_path / "settled.json").read_text())
    (tmp_path / "settled.json").write_text(json.dumps(kept | {"beta": 77.0}))

    def never() -> PairData:
        raise AssertionError("a resumed run reads no pair for it")

    assert settle(backbone, never, asked, tmp_path).objective.beta == 77.0
    plain = settings()
    assert settle(backbone, never, plain, tmp_path) is plain
    (tmp_path / "settled.json").write_text("{")
    with pytest.raises(UserError, match="Remove it"):
        settle(backbone, never, asked, tmp_path)


def test_the_largest_pass_with_room_is_taken() -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= 5

    assert largest(fits, [16, 8, 4, 2, 1]) == 4
    assert tried == [16, 8, 4]
    with pytest.raises(UserError, match="gradient_checkpointing"):
        largest(lambda size: False, [2, 1])


def test_a_run_goes_on_in_smaller_passes_after_the_end_of_memory(
    pair_samples: list[Sample], tmp_path: Path
) -> None:
    backbone = tiny_backbone()

    def full(phase: str, done: int, total: int, figures: Any) -> None:
        if phase == "train" and done == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(torch.OutOfMemoryError):
        train(backbone, pair_samples, settings(), tmp_path, dataset_version="v", progress=full)
    smaller = settings(micro_pairs=1, gradient_checkpointing=True, memory="sequential")
    again = train(tiny_backbone(), pair_samples, smaller, tmp_path, dataset_version="v")
    assert (again.resumed_from, again.steps) == (3, 12)
