"""Pictures are prepared beside the forward pass, and the rate of both is measured."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from benchmarks.throughput import (
    ScoringRate,
    bench_scoring,
    make_pictures,
    save_random_dino,
    scoring_rate,
)
from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.adapters import dino
from focusdpo.pipeline.adapters.dino import DinoConfig, DinoEncoder
from focusdpo.pipeline.adapters.streaming import AHEAD, Looker, Stream

SIDE = 4


def looker(features: object) -> Looker:
    return Looker(features, (0.5,) * 3, (0.5,) * 3, SIDE, device="cpu", dtype="float32")


def flat(value: int) -> np.ndarray:
    """A picture that tells its number."""
    picture = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    picture[0, 0] = value, 255, 0
    return picture


def pixels(images: Tensor) -> Tensor:
    return images.flatten(1)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> DinoEncoder:
    folder = save_random_dino(tmp_path_factory.mktemp("w") / "dino", width=64, depth=1)
    return dino.build(DinoConfig(source=str(folder), batch=4), "cpu")


def test_the_next_batch_is_prepared_during_the_forward_pass() -> None:
    """The first forward pass waits until a picture of the second batch is being prepared."""
    second = threading.Event()

    def prepare(item: int) -> np.ndarray:
        if item >= 2:
            second.set()
        return flat(item)

    def features(images: Tensor) -> Tensor:
        assert second.wait(timeout=60), "nothing was prepared beside the model"
        return pixels(images)

    assert len(Stream(looker(features), prepare, batch=2).run(range(6))) == 6


def test_order_is_kept_and_each_is_prepared_once() -> None:
    seen: list[int] = []
    lock = threading.Lock()

    def prepare(item: int) -> np.ndarray:
        with lock:
            seen.append(item)
        return flat(item)

    vectors = Stream(looker(pixels), prepare, batch=3).run(range(100))
    assert sorted(seen) == list(range(100))
    red, green = vectors[:, 0], vectors[:, SIDE * SIDE]
    # Normalised to unit length, so the ratio tells the number again.
    assert np.array_equal(np.rint((red / green + 1) * 127.5), np.arange(100))


def test_preparation_runs_ahead_by_a_few_batches_only() -> None:
    started: list[int] = []
    most = []

    def prepare(item: int) -> np.ndarray:
        started.append(item)
        return flat(item)

    def features(images: Tensor) -> Tensor:
        most.append(len(started))
        return pixels(images)

    Stream(looker(features), prepare, batch=2).run(range(60))
    for at, count in enumerate(most):
        assert count <= 2 * (at + 1 + AHEAD)


def test_a_fault_in_preparation_is_raised_and_no_thread_is_left() -> None:
    before = threading.active_count()

    def prepare(item: int) -> np.ndarray:
        if item == 5:
            raise UserError("picture 5")
        return flat(item)

    with pytest.raises(UserError, match="picture 5"):
        Stream(looker(pixels), prepare, batch=2).run(range(1000))
    assert threading.active_count() == before


def test_both_rates_are_over_the_same_number_of_pictures(
    encoder: DinoEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = make_pictures(tmp_path / "jpg", 10)
    sizes: list[int] = []
    look = Looker.look
    monkeypatch.setattr(
        Looker, "look", lambda self, images: sizes.append(len(images)) or look(self, images)
    )
    rate = scoring_rate(encoder, files, repeats=2)
    assert sizes == [4] + 2 * ([4, 4, 2] + [4, 4, 2])  # warm-up, then bare and whole by turns
    assert (rate.images, rate.batch, rate.repeats, rate.device) == (10, 4, 2, "cpu")
    assert rate.embed > 0 and rate.bare > 0


def test_ratio_is_the_share_of_the_bare_rate() -> None:
    rate = ScoringRate(images=10, batch=5, repeats=1, device="cpu", embed=45.0, bare=50.0)
    assert rate.ratio == pytest.approx(0.9)


def test_bench_makes_pictures_and_the_full_size_model() -> None:
    rate = bench_scoring(count=3, batch=2, repeats=1)
    assert rate.images == 3 and rate.ratio > 0


def test_a_rate_needs_pictures(encoder: DinoEncoder) -> None:
    with pytest.raises(UserError, match="no pictures to measure with"):
        scoring_rate(encoder, [])


def test_random_weights_are_a_vit_s_16(tmp_path: Path) -> None:
    config = DinoConfig(source=str(save_random_dino(tmp_path / "w")))
    assert dino.checks(config)["dino"]() == "timm layout, 12 layers of 384, patch 16"
    encoder = dino.build(config, "cpu")
    weights = sum(values.numel() for values in encoder.model.parameters())
    assert round(weights / 1e6, 1) == 21.7
    assert not any(values.requires_grad for values in encoder.model.parameters())
    assert not encoder.model.training
