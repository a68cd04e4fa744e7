"""Guards: what stops a run, what is skipped, what is said."""

from __future__ import annotations

import json
import logging

import pytest

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.training.config import GuardConfig
from focusdpo.model.training.monitor import Guard


@pytest.mark.parametrize("loss, norm", [(float("nan"), 1.0), (1.0, float("inf"))])
def test_what_is_not_finite_stops(loss: float, norm: float) -> None:
    guard = Guard(GuardConfig())
    guard.check_finite(1, 0.5, 1.0, "")
    with pytest.raises(UserError, match="step 7.*The last good checkpoint is x.*Lower lr"):
        guard.check_finite(7, loss, norm, "The last good checkpoint is x.")


def test_a_spike_is_skipped_and_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard(GuardConfig(spike=5.0))
    assert not guard.is_spike(1, 1000.0)  # too early to know what is usual
    for step in range(2, 14):
        assert not guard.is_spike(step, 1.0)
    assert guard.is_spike(14, 6.0)
    assert "step 14 skipped" in caplog.text
    assert guard.is_spike(15, 6.0)  # a spike does not become the usual


def test_a_hard_pair_among_learned_ones_is_no_spike() -> None:
    guard = Guard(GuardConfig(window=20, spike=5.0))
    for step in range(1, 21):
        assert not guard.is_spike(step, 10.0)
    for step in range(21, 61):
        assert not guard.is_spike(step, 0.01)  # saturated
    assert not guard.is_spike(61, 10.0)
    assert guard.is_spike(62, 60.0)


def test_a_drifting_winner_is_said_once_per_window(caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard(GuardConfig(window=5, winner_rise=0.1))
    with caplog.at_level(logging.WARNING):
        for step in range(1, 16):
            guard.watch_winner(step, gap=0.05, error=0.25)  # 25 % above the reference policy
    assert len(caplog.records) == 3
    assert "25.0 % above" in caplog.text
    caplog.clear()
    calm = Guard(GuardConfig(window=5, winner_rise=0.1))
    for step in range(1, 16):
        calm.watch_winner(step, gap=-0.05, error=0.25)
        calm.watch_winner(step, gap=float("nan"), error=0.25)  # sft has no reference
    assert not caplog.records


def test_learned_pairs_are_said_once_when_the_window_is_full(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = GuardConfig(window=4, saturation=0.1)
    guard = Guard(config)
    shares = [0.5, 0.01, 0.01, 0.01, 0.01]
    for step, share in enumerate(shares[:3], 1):
        guard.watch_saturation(step, share)
    guard.watch_saturation(3, float("nan"))  # sft has no pairs to learn
    assert not caplog.records, "the window is not full"
    guard.watch_saturation(4, shares[3])
    assert not caplog.records, "the first step still counts"
    guard.watch_saturation(5, shares[4])
    assert "step 5: the pairs are learned" in caplog.text and "gave 1.0 %" in caplog.text
    for step in range(6, 30):
        guard.watch_saturation(step, 0.001)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("saved_after", [3, 5, 6])
def test_a_resumed_run_says_it_at_the_same_step_and_not_again(
    saved_after: int, caplog: pytest.LogCaptureFixture
) -> None:
    config = GuardConfig(window=5, saturation=0.1)
    shares = [0.3, 0.1, 0.05, 0.02, 0.02, 0.01, 0.01, 0.01]  # their mean falls below at step 5
    guard = Guard(config)
    for step, share in enumerate(shares, 1):
        guard.watch_saturation(step, share)
        if step == saved_after:
            guard = Guard(config, json.loads(json.dumps(guard.state())))
    assert [record.args[0] for record in caplog.records if record.args] == [5]  # type: ignore[index]


def test_its_state_survives_json() -> None:
    guard = Guard(GuardConfig(window=12))
    for step in range(1, 20):
        guard.is_spike(step, 1 / step)
        guard.watch_winner(step, gap=0.1 / 3, error=0.5)
        guard.watch_saturation(step, 0.1 / step)
    again = Guard(GuardConfig(window=12), json.loads(json.dumps(guard.state())))
    assert again.state() == guard.state() and guard.state()["usual"] > 0
    assert again.state()["shares"] and again.state()["rises"]
    assert guard.is_spike(20, 3.0) == again.is_spike(20, 3.0)
