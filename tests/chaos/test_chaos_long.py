"""Some of every kind of fault. `python -m tests.chaos` does as many as one likes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .__main__ import main
from .bucket import KINDS
from .damage import PLACES
from .summary import WORDS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


def disturb(tmp_path: Path, *given: str) -> list[dict[str, Any]]:
    """All trials, in which nothing may be lost."""
    found = tmp_path / "chaos.json"
    code = main([*given, "--work", str(tmp_path / "work"), "--json", str(found)])
    trials: list[dict[str, Any]] = json.loads(found.read_text())["trials"]
    assert code == 0, [one for one in trials if one["lost"] or one["twice"] or one["half_visible"]]
    return trials


def test_builds_are_in_trouble(tmp_path: Path) -> None:
    """Killed, on full disks, damaged afterwards, as flows, and on a bucket: all beside one
    undisturbed build."""
    counts = {"kills": 40, "damages": 48, "full-disks": 6, "prefect": 5, "bucket": len(KINDS)}
    trials = disturb(tmp_path, *(word for k, n in counts.items() for word in (f"--{k}", str(n))))
    of = {kind: [one for one in trials if one["kind"] == kind] for kind in WORDS}
    assert {one["scenario"] for one in of["kill"]} == {"new", "grown"}
    assert {word.partition(": ")[2] for one in of["damage"] for word in one["kinds"]} == {*PLACES}
    assert {str(one["kinds"]) for one in of["bucket"]} == {str([kind]) for kind in KINDS}
    assert all("LATEST" in one["moments"][0] for one in of["bucket"][:2])
    assert len({str(one["kinds"]) for one in of["prefect"]}) == 5
    # A command whose own server is killed gets another one and goes on.
    ended = [one["advice"] for one in of["prefect"] if one["kinds"] == ["child killed"]]
    assert ended == [["exit 0"]]


def test_trainings_and_evaluations_are_killed(tmp_path: Path) -> None:
    trials = disturb(tmp_path, "--kills", "0", "--train-kills", "12", "--evaluate-kills", "6")
    assert {one["job"] for one in trials} == {"train", "evaluate"}


def test_retraining_is_killed(tmp_path: Path) -> None:
    disturb(tmp_path, "--kills", "0", "--retrain-kills", "8")


def test_a_small_workspace_is_struck_by_every_kind(tmp_path: Path) -> None:
    counts = {
        **{"hostile": 12, "foreign": 6, "not-finite": 6, "wounds": 20, "full": 10},
        **{"read-only": 4, "taken-away": 3, "beside": 4, "clocks": 4, "signals": 6},
    }
    given = [word for kind, count in counts.items() for word in (f"--{kind}", str(count))]
    trials = disturb(tmp_path, "--kills", "0", *given)
    assert {one["kind"] for one in trials} == set(counts)
