"""retrain over several nights on parts that really learn, with a clock that runs faster; rules,
stops between any two steps, and the pointer to the adapter in use."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import toy_learner
from filelock import FileLock
from toy_team import FIRST, SECOND, THIRD, Stopped, StoppedAt, Team

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows import wiring
from focusdpo.flows.config import RetrainRun
from focusdpo.flows.retrain import promotion
from focusdpo.flows.retrain import run as retraining
from focusdpo.flows.retrain.config import RetrainConfig
from focusdpo.flows.retrain.promotion import Comparison, decide, history, read_promoted
from focusdpo.flows.retrain.run import RetrainOutcome
from focusdpo.flows.settings import resolve

BAD = {"objective": {"name": "dpo", "beta": 2000, "eta": 0}, "lr": 0.05, "steps": 30}
"""A strong preference without an anchor, at five times the rate: both images get worse."""


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RetrainOutcome]:
    """The models that a team has after its first night, and what that night came to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(wiring.SUITES, "pocket", "toy_learner")
        team = Team(tmp_path_factory.mktemp("night"))
        team.bring(FIRST)
        outcome = team.night()
    wiring.resident_parts.cache_clear()
    return team.models, outcome


@pytest.fixture
def first(team: Team, night: tuple[Path, RetrainOutcome]) -> RetrainOutcome:
    """The night that `team` has behind it, in a copy of its own."""
    models, outcome = night
    shutil.copytree(models, team.models)
    return outcome


def turn_of(adapter: str | Path) -> float:
    """By how many degrees an adapter is off; the base is off by 50."""
    return float(toy_learner.build("generator", adapter=str(adapter)).turn)


def test_three_nights(team: Team) -> None:
    first = team.night()
    assert first.decision == "promoted" and "better: identity +" in first.reason
    assert first.comparison is not None and first.comparison.against == "base"
    assert first.comparison.low > 0
    pointer = read_promoted(team.models)
    assert pointer is not None and pointer.before is None
    assert pointer.promoted == "2026-01-01T02:00:00+00:00" and pointer.version == first.version
    assert first.adapter == str(team.models / pointer.adapter)
    assert turn_of(first.adapter) < toy_learner.DEGREES

    team.clock.pass_days(1)
    team.bring(SECOND)
    second = team.night(train={"steps": 40})
    assert second.decision == "promoted", second.reason
    assert second.new_pairs >= 5 and second.version != first.version
    assert second.comparison is not None
    assert second.comparison.against == first.candidate and second.comparison.low > 0
    # Nothing was painted twice: the rival's own evaluation was by the same settings.
    assert not (team.models / "candidates" / str(second.candidate) / "against").exists()
    pointer = read_promoted(team.models)
    assert pointer is not None
    assert (pointer.candidate, pointer.before) == (second.candidate, first.candidate)
    in_use = (team.models / "promoted.json").read_bytes()

    team.clock.pass_days(1)
    team.bring(THIRD)
    third = team.night(train=BAD)
    assert third.decision == "kept", third.reason
    assert third.reason.startswith("worse: identity -")
    assert third.comparison is not None and third.comparison.high < 0
    assert third.promoted == second.candidate and third.adapter == second.adapter
    assert (team.models / "promoted.json").read_bytes() == in_use
    worse = team.models / "candidates" / str(third.candidate) / "train/adapter"
    assert turn_of(worse) > toy_learner.DEGREES > turn_of(str(second.adapter))

    told = history(team.models)
    assert [one["decision"] for one in told] == ["promoted", "promoted", "kept"]
    assert [one["version"] for one in told] == [first.version, second.version, third.version]
    assert all(one["comparison"]["scenes"] == 12 and one["settled"] for one in told)
    assert told[0]["because"] == "no adapter is promoted yet"
    assert f"pairs are new since {first.candidate}" in told[1]["because"]


@pytest.mark.slow
def test_it_trains_when_enough_is_new_or_the_adapter_is_old(
    team: Team, first: RetrainOutcome
) -> None:
    # Nothing new: the same candidate was decided already, however old it gets.
    team.clock.pass_days(30)
    again = team.night()
    assert again.decision == "tried before" and again.reason.startswith("promoted: better")
    assert again.candidate == first.candidate and not again.build["new"]
    team.clock.time -= timedelta(days=29)
    team.bring(THIRD)
    early = team.night(retrain={"min_new_pairs": 500})
    assert early.decision == "not due" and early.candidate is None
    assert "fewer than 500, and it is 1.0 days old" in early.reason
    assert early.version != first.version and early.promoted == first.candidate
    team.clock.pass_days(7)
    late = team.night(retrain={"min_new_pairs": 500})
    assert late.decision in {"promoted", "kept"}
    because = history(team.models)[-1]["because"]
    assert "it is 8.0 days old, more than 7" in because


@pytest.mark.parametrize("stop", ["train", "evaluate", "compare", "decision", "pointer"])
@pytest.mark.slow
def test_a_stop_at_any_point_goes_on(
    team: Team, stop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*given: Any) -> None:
        raise Stopped

    steps = StoppedAt(after=stop)
    with monkeypatch.context() as patched:
        places = {
            "compare": (retraining, "compare"),
            "pointer": (retraining, "write_promoted"),
        }
        if stop == "decision":
            # The decision is written, the pointer is not looked at.
            real, calls = retraining._settle, []
            patched.setattr(
                retraining,
                "_settle",
                lambda models: stopped() if calls else (calls.append(1), real(models)),
            )
        elif stop in places:
            patched.setattr(*places[stop], stopped)
        with pytest.raises(Stopped):
            team.night(steps)
    assert read_promoted(team.models) is None
    steps.after = ""
    outcome = team.night(steps)
    assert outcome.promoted == outcome.candidate and outcome.decision != "kept"
    assert steps.computed == ["train", "evaluate"], "each was computed once"
    assert [one["settled"] for one in history(team.models)] == [True]


@pytest.mark.usefixtures("first")
@pytest.mark.slow
def test_an_interrupted_candidate_is_finished_though_no_rule_asks_for_it(team: Team) -> None:
    team.bring(SECOND)

    with pytest.raises(Stopped):
        team.night(StoppedAt(before="train"))
    assert team.night(retrain={"min_new_pairs": 500}).decision in {"promoted", "kept"}


@pytest.mark.slow
def test_other_settings_of_the_protocol_paint_the_rival_again(
    team: Team, first: RetrainOutcome
) -> None:
    rival = read_promoted(team.models)
    assert rival is not None
    team.bring(SECOND)
    second = team.night(held_out={"seed": 9}, train={"steps": 20})
    assert second.comparison is not None and second.comparison.against == first.candidate
    against = team.models / "candidates" / str(second.candidate) / "against"
    assert json.loads((against / "run.json").read_text())["adapter"] == str(
        team.models / rival.adapter
    )


@pytest.mark.slow
def test_another_base_is_compared_with_itself(team: Team, first: RetrainOutcome) -> None:
    pointer = read_promoted(team.models)
    assert pointer is not None
    promotion.write_promoted(team.models, replace(pointer, base="another"))
    team.clock.pass_days(1)
    team.bring(THIRD)
    second = team.night(retrain={"min_new_pairs": 500})
    assert second.comparison is not None and second.comparison.against == "base"
    told = history(team.models)[-1]
    assert told["because"] == f"the base has changed since {first.candidate} was promoted"


@pytest.mark.slow
def test_a_version_that_is_gone_counts_as_all_new(team: Team, first: RetrainOutcome) -> None:
    team.clock.pass_days(1)
    team.bring(THIRD)
    assert team.night(retrain={"min_new_pairs": 500}).decision == "not due"
    (team.models / "dataset/versions" / first.version / "manifest.json").unlink()
    second = team.night(retrain={"min_new_pairs": 10})
    assert f"version {first.version} is gone: all count" in history(team.models)[-1]["because"]
    assert second.new_pairs == second.build["pairs"]


def test_two_at_once_are_told_apart(team: Team) -> None:
    team.models.mkdir()
    with (
        FileLock(team.models / ".retrain.lock"),
        pytest.raises(UserError, match="another process retrains here"),
    ):
        team.night()


def test_a_damaged_pointer_is_told(team: Team) -> None:
    team.models.mkdir()
    (team.models / "promoted.json").write_text("{")
    with pytest.raises(UserError, match=r"promoted.json: damaged"):
        team.night()


def found(difference: float, low: float, high: float, metric: str = "identity") -> Comparison:
    return Comparison(
        protocol="pocket",
        metric=metric,
        group="all",
        against="base",
        ours=0.5 + difference,
        theirs=0.5,
        difference=difference,
        low=low,
        high=high,
        scenes=40,
    )


@pytest.mark.parametrize(
    ("comparison", "rule", "promote", "words"),
    [
        (found(0.1, 0.01, 0.2), {}, True, "better: identity +0.1000 [+0.0100, +0.2000]"),
        (found(0.1, 0.0, 0.2), {}, False, "not surely better"),
        (found(-0.1, -0.2, 0.1), {}, False, "worse"),
        (found(-0.1, -0.2, -0.01, "confusion"), {}, True, "better: confusion -0.1000"),
        (found(0.1, 0.01, 0.2, "confusion"), {}, False, "worse"),
        (found(0.0, -0.01, 0.01), {"rule": "not_worse", "epsilon": 0.02}, True, "not worse by"),
        (found(0.0, -0.03, 0.01), {"rule": "not_worse", "epsilon": 0.02}, False, "0.02 that are"),
        (
            found(0.0, -0.01, 0.01, "missing"),
            {"rule": "not_worse", "epsilon": 0.02},
            True,
            "not worse by more than 0.02",
        ),
        (found(float("nan"), float("nan"), float("nan")), {}, False, "not surely better"),
    ],
)
def test_the_rule(comparison: Comparison, rule: dict[str, Any], promote: bool, words: str) -> None:
    config = RetrainConfig(metric=comparison.metric, **rule)
    decided, reason = decide(comparison, config)
    assert decided is promote and words in reason


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"metric": "beauty"}, "metric 'beauty': there are failed, identity"),
        ({"group": "some"}, "group 'some': there are all"),
        ({"epsilon": 0.1}, "belongs to rule not_worse"),
    ],
)
def test_wrong_rules_are_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        resolve(RetrainRun, {"out": "o", "retrain": given})


def test_the_command_tells_the_decision(team: Team, capsys: pytest.CaptureFixture[str]) -> None:
    from focusdpo.flows.cli import main

    given = ("pair.min_winner_identity=0", "pair.min_drop=0.02", "generate.candidates=3",
             "compose.pair_rate=1", "compose.triple_rate=0", "compose.same_class=true",
             "train.steps=5", "train.batch_pairs=4", "train.lr=0.01", "train.warmup=2",
             "train.lora.rank=4", "train.objective.name=sft", "train.tensorboard=false",
             "train.mixed_precision=no", "held_out.singles=4", "held_out.pairs=8",
             "held_out.same_class_pairs=0", "held_out.triples=0", "evaluate.resamples=200",
             "compose.variants=1", "retrain.metric=identity")  # fmt: skip
    command = ["retrain", "--out", str(team.models), "--subjects", str(team.subjects)]
    for one in given:
        command += ["--set", one]
    (team.subjects / "nobody").mkdir()
    with pytest.raises(SystemExit) as ended:
        main([*command, "--no-prefect", "--json"])
    assert ended.value.code == 3, "a subject was left out"
    out = capsys.readouterr().out
    told = json.loads(out.splitlines()[-1])
    assert told["command"] == "retrain" and told["decision"] == "promoted"
    assert told["comparison"]["low"] > 0 and told["adapter"].startswith(str(team.models))
    assert "left out: nobody" in out and "promoted: better: identity +" in out
