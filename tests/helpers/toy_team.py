"""A team that retrains by night on parts that really learn, with a clock that runs faster."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import toy_suite

from focusdpo.flows import wiring
from focusdpo.flows.config import RetrainRun
from focusdpo.flows.jobs import Steps
from focusdpo.flows.retrain.run import Retrain, RetrainOutcome
from focusdpo.flows.runner import PlainSteps
from focusdpo.flows.settings import merge, resolve

FIRST = {"red": ("disc", 0.0), "blue": ("disc", 240.0), "green": ("square", 120.0)}
SECOND = {"yellow": ("disc", 60.0), "cyan": ("square", 180.0)}
THIRD = {"pink": ("disc", 300.0)}


class Clock:
    """A night is over when somebody says so."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, 2, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def pass_days(self, days: float) -> None:
        self.time += timedelta(days=days)


class Stopped(BaseException):
    """In place of a kill: nothing catches it."""


class StoppedAt(PlainSteps):
    """Stops before a job, or after it."""

    def __init__(self, *, before: str = "", after: str = "") -> None:
        super().__init__()
        self.before, self.after = before, after
        self.computed: list[str] = []
        """Names of the jobs that did not go on from what was there, without build-dataset."""

    def job(self, job: Any, watch: Any) -> Any:
        if job.name == self.before:
            raise Stopped
        result = super().job(job, watch)
        resumed = getattr(result, "resumed", False) or getattr(result, "resumed_from", 0)
        if job.name != "build-dataset" and not resumed:
            self.computed.append(job.name)
        if job.name == self.after:
            raise Stopped
        return result


class Team:
    """Subjects, a folder of models, settings, and a clock."""

    def __init__(self, folder: Path) -> None:
        self.subjects, self.models, self.clock = folder / "subjects", folder / "models", Clock()
        self.out = str(self.models)

    def bring(self, hues: dict[str, tuple[str, float]]) -> None:
        toy_suite.write_subjects(self.subjects, hues)

    def run(self, **given: Any) -> RetrainRun:
        base = {
            "out": self.out,
            "subjects": str(self.subjects),
            "compose": {
                **{"pair_rate": 1.0, "triple_rate": 0.0, "variants": 1},
                "same_class": True,
            },
            "generate": {"candidates": 3},
            "pair": {"min_winner_identity": 0.0, "min_drop": 0.02},
            "train": {
                **{"steps": 5, "batch_pairs": 4, "lr": 0.01, "warmup": 2, "save_every": 20},
                **{"mixed_precision": "no", "tensorboard": False},
                **{"lora": {"rank": 4}, "objective": {"name": "sft"}},
            },
            "held_out": {"singles": 4, "pairs": 8, "same_class_pairs": 0, "triples": 0},
            "evaluate": {"resamples": 200},
            "retrain": {"min_new_pairs": 5, "max_age_days": 7, "metric": "identity"},
        }
        return resolve(RetrainRun, merge(base, given))

    def night(self, steps: Steps | None = None, **given: Any) -> RetrainOutcome:
        wiring.resident_parts.cache_clear()
        return Retrain(self.run(**given), self.clock).perform(steps or PlainSteps())


@pytest.fixture
def team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Team]:
    """With three subjects; nothing is built."""
    monkeypatch.setitem(wiring.SUITES, "pocket", "toy_learner")
    made = Team(tmp_path)
    made.bring(FIRST)
    yield made
    wiring.resident_parts.cache_clear()
