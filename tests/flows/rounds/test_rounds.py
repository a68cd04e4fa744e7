"""Rounds on parts that really learn: each paints with the adapter before, stops go on, settings are
those of every round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from toy_team import Stopped, StoppedAt, Team

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows import wiring
from focusdpo.flows.config import RoundsRun
from focusdpo.flows.rounds.run import Rounds, RoundsOutcome, table
from focusdpo.flows.runner import PlainSteps
from focusdpo.flows.settings import merge, resolve
from focusdpo.store.artefacts import Store
from focusdpo.store.versions import open_version


def rounds(team: Team, steps: Any = None, **given: Any) -> RoundsOutcome:
    wiring.resident_parts.cache_clear()
    tree = team.run().model_dump(exclude={"retrain"})
    tree = merge(tree, {"rounds": {"count": 2}, "train": {"steps": 30}, **given})
    return Rounds(resolve(RoundsRun, tree)).perform(steps or PlainSteps())


def test_each_round_learns_from_what_the_one_before_painted(team: Team) -> None:
    done = rounds(team)
    first, second = done.rounds
    assert done.made == 2 and first.version != second.version
    assert (first.painted_with, second.painted_with) == (None, first.adapter)
    store = Store.open(f"{team.out}/dataset")
    for one in done.rounds:
        manifest = open_version(store, one.version).manifest
        assert manifest["config"]["generate"]["adapter"] == one.painted_with
        card = json.loads((Path(one.adapter) / "adapter.json").read_text())
        assert card["dataset_version"] == one.version
    told = table(done.rounds)
    assert {(row["round"], row["metric"]) for row in told} >= {(1, "failed"), (2, "identity")}
    gains = {row["round"]: row["difference"] for row in told if row["metric"] == "identity"}
    assert gains[1] > 0 and gains[2] > 0
    # Again: nothing. One more round: that one alone.
    assert rounds(team).made == 0
    longer = rounds(team, rounds={"count": 3})
    assert longer.made == 1 and longer.rounds[:2] == done.rounds
    with pytest.raises(UserError, match="round-1: this round was made with other settings"):
        rounds(team, train={"steps": 31})


@pytest.mark.parametrize("job", ["build-dataset", "train", "evaluate"])
def test_a_stop_after_any_job_loses_nothing(team: Team, job: str) -> None:
    with pytest.raises(Stopped):
        rounds(team, StoppedAt(after=job), train={"steps": 5})
    steps = StoppedAt()
    done = rounds(team, steps, train={"steps": 5})
    assert done.made == 2
    again = {"build-dataset": 0, "train": 1, "evaluate": 2}[job]
    assert len(steps.computed) == 4 - again
