"""Some of every kind of fault. `python -m tests.chaos` does as many as one likes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .__main__ import main
from .bucket import KINDS
from .damage import PLACES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

DATA = ("an artefact", "a shard", "dataset.json")


def disturb(tmp_path: Path, *given: str) -> list[dict[str, object]]:
    """All trials, in which nothing may be lost."""
    found = tmp_path / "chaos.json"
    code = main([*given, "--work", str(tmp_path / "work"), "--json", str(found)])
    trials: list[dict[str, object]] = json.loads(found.read_text())["trials"]
    assert code == 0, [one for one in trials if one["lost"] or one["twice"] or one["half_visible"]]
    return trials


def test_builds_are_killed(tmp_path: Path) -> None:
    trials = disturb(tmp_path, "--kills", "40")
    assert {one["scenario"] for one in trials} == {"new", "grown"}


def test_trainings_and_evaluations_are_killed(tmp_path: Path) -> None:
    trials = disturb(tmp_path, "--kills", "0", "--train-kills", "12", "--evaluate-kills", "6")
    assert {one["job"] for one in trials} == {"train", "evaluate"}


def test_disks_are_full(tmp_path: Path) -> None:
    disturb(tmp_path, "--kills", "0", "--full-disks", "6")


def test_damaged_artefacts_and_shards_are_made_anew(tmp_path: Path) -> None:
    disturb(tmp_path, "--kills", "0", "--damages", "24", "--places", *DATA)


def test_damaged_versions_are_mended(tmp_path: Path) -> None:
    others = [place for place in PLACES if place not in DATA]
    disturb(tmp_path, "--kills", "0", "--damages", "24", "--places", *others)


def test_buckets_are_in_trouble(tmp_path: Path) -> None:
    trials = disturb(tmp_path, "--kills", "0", "--bucket", str(len(KINDS)))
    assert {str(one["kinds"]) for one in trials} == {str([kind]) for kind in KINDS}
    assert all("LATEST" in one["moments"][0] for one in trials[:2])


def test_retraining_is_killed(tmp_path: Path) -> None:
    disturb(tmp_path, "--kills", "0", "--retrain-kills", "8")


def test_prefect_is_in_trouble(tmp_path: Path) -> None:
    trials = disturb(tmp_path, "--kills", "0", "--prefect", "5")
    assert len({str(one["kinds"]) for one in trials}) == 5
    # A command whose own server is killed gets another one and goes on.
    assert [one["advice"] for one in trials if one["kinds"] == ["child killed"]] == [["exit 0"]]


def test_a_small_workspace_is_struck_by_every_kind(tmp_path: Path) -> None:
    counts = {
        **{"hostile": 12, "foreign": 6, "not-finite": 6, "wounds": 20, "full": 10},
        **{"read-only": 4, "taken-away": 3, "beside": 4, "clocks": 4, "signals": 6},
    }
    given = [word for kind, count in counts.items() for word in (f"--{kind}", str(count))]
    trials = disturb(tmp_path, "--kills", "0", *given)
    assert {one["kind"] for one in trials} == set(counts)
