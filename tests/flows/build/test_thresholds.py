"""`build-dataset --first N`: what each threshold keeps of one's own scenes, and a proposal."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from in_process import run
from toy_root import Toy

from focusdpo.flows.build.thresholds import FEWEST, LEAST, WANTED, Decision

Capture = pytest.CaptureFixture[str]
VALUES = st.lists(st.floats(-1, 1), min_size=FEWEST, max_size=60)


@given(VALUES, st.booleans(), st.floats(0.1, 0.9))
def test_a_threshold_at_a_share_keeps_that_share(
    values: list[float], above: bool, share: float
) -> None:
    decision = Decision("pair.min_drop", "", 0.0, tuple(values), above)
    assert decision.share(decision.at_share(share)) >= share - 1e-9


@given(VALUES, st.booleans(), st.floats(-1, 1))
def test_it_proposes_only_where_much_is_thrown_away(
    values: list[float], above: bool, threshold: float
) -> None:
    decision = Decision("pair.min_drop", "", threshold, tuple(values), above)
    assert (decision.proposal is None) == (decision.share(threshold) >= LEAST)
    if decision.proposal is not None:
        assert decision.share(decision.proposal) >= WANTED


def test_few_values_prove_nothing() -> None:
    few = Decision("pair.min_drop", "", 0.5, (0.1,) * (FEWEST - 1), True)
    assert few.proposal is None
    enough = Decision("pair.min_drop", "", 0.5, (0.1,) * FEWEST, True)
    assert enough.proposal == pytest.approx(0.1)
    assert any("--set pair.min_drop=0.1, keeps 100%" in line for line in enough.lines())
    nothing = Decision("pair.min_drop", "", 0.5, (), True)
    assert [line.startswith("pair.min_drop >= 0.5 keeps 0%") for line in nothing.lines()] == [True]


def test_the_first_scenes_are_built_and_nothing_is_published_or_changed(
    toy: Toy, capsys: Capture
) -> None:
    code, out, _ = run([*toy.arguments, "--first", "3", "--json"], capsys)
    assert code == 0
    told = json.loads(out.splitlines()[-1])
    by_name = {one["setting"]: one for one in told["decisions"]}
    assert len(by_name) == 8 and by_name["pair.min_drop"]["values"]
    assert "pair.min_winner_identity >= " in out and "nothing was changed" in out
    assert not (toy.root / "LATEST").exists()
    # The build of all takes over what was made, and gives what it would have given.
    code, out, _ = run([*toy.arguments, "--json"], capsys)
    made = json.loads(out.splitlines()[-1])
    assert code == 0 and made["partitions"] > made["made"]["generate"]
