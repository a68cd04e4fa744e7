"""retrain without an engine: build, decide whether to train, train, evaluate, promote or keep.

Every step can be stopped at any point: build, train and evaluate go on from what they left, and
what lies in a candidate's folder says how far it came (promotion.py). The same call again
does what is left.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.progress import Watch, quiet
from focusdpo.evaluation.folder import EvaluateResult
from focusdpo.flows.build import run as building
from focusdpo.flows.build.run import BuildResult
from focusdpo.flows.config import BuildRun, EvaluateRun, RetrainRun, TrainRun
from focusdpo.flows.evaluate import run as evaluation
from focusdpo.flows.retrain.monitoring import note
from focusdpo.flows.retrain.promotion import (
    CANDIDATES,
    DECISION,
    RECORDS,
    STARTED,
    Comparison,
    Promoted,
    compare,
    decide,
    read_json,
    read_promoted,
    write_promoted,
    write_whole,
)
from focusdpo.flows.settings import save_config
from focusdpo.flows.train import run as training
from focusdpo.flows.train.run import TrainOutcome
from focusdpo.flows.wiring import fingerprint_of
from focusdpo.store.keys import config_digest
from focusdpo.store.outputs import Output, local, opened
from focusdpo.store.versions import DatasetVersion, open_version

log = logging.getLogger(__name__)

Clock = Callable[[], datetime]
"""What time it is, in UTC: tests pass one that runs faster."""

Decision = Literal["promoted", "kept", "not due", "tried before"]


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def build_here(run: BuildRun, watch: Watch) -> BuildResult:
    """build-dataset by plain calls."""
    return note(building.execute(building.prepare(run), watch=watch), run.alert)


@dataclass(frozen=True)
class Steps:
    """How the three jobs are run: by plain calls, or as flows (flows/prefect/retrain.py)."""

    build: Callable[[BuildRun, Watch], BuildResult] = build_here
    train: Callable[[TrainRun, Watch], TrainOutcome] = training.train
    evaluate: Callable[[EvaluateRun, Watch], EvaluateResult] = evaluation.evaluate


@dataclass(frozen=True, kw_only=True)
class RetrainOutcome:
    """What a night did."""

    out: str
    version: str
    """The dataset version there is now."""
    decision: Decision
    reason: str
    candidate: str | None
    """The candidate that this is about; None when none was due."""
    promoted: str | None
    """The candidate in use afterwards."""
    adapter: str | None
    """The folder of its adapter."""
    new_pairs: int
    """Pairs that the promoted adapter's dataset version does not have."""
    comparison: Comparison | None = None
    build: dict[str, Any] = field(default_factory=dict)
    wall_seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {"command": "retrain", **asdict(self)}


def retrain(
    run: RetrainRun, steps: Steps | None = None, watch: Watch = quiet, clock: Clock = now
) -> RetrainOutcome:
    """One night: build, then train when that is due, then promote what is better.

    UserError when another process does the same in this folder, and what the steps raise.
    """
    started = time.perf_counter()
    with opened(run.out, "a retraining") as out:
        out.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out.folder / ".retrain.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(
                f"{run.out}: another process retrains here; wait for it, or choose another --out"
            ) from error
        with lock:
            night = _Night(run, out, steps or Steps(), watch, clock)
            outcome = night.spend()
    seconds = round(time.perf_counter() - started, 3)
    log.info("%s: %s: %s", run.out, outcome.decision, outcome.reason)
    return RetrainOutcome(**{**vars(outcome), "wall_seconds": seconds})


class _Night:
    """One call of `retrain`. Its jobs have folders or addresses of their own below `out`."""

    def __init__(
        self, run: RetrainRun, out: Output, steps: Steps, watch: Watch, clock: Clock
    ) -> None:
        self.run, self.out, self.steps, self.watch, self.clock = run, out, steps, watch, clock
        self.models = out.folder

    def spend(self) -> RetrainOutcome:
        """Build, decide, train, evaluate, promote or keep."""
        _settle(self.models)
        save_config(self.run, self.models / "retrain.yaml")
        self.built = self.steps.build(self.run.build_run(), self.watch)
        self.promoted = read_promoted(self.models)
        self.version = open_version(self.run.dataset_root, self.built.version)
        self.new_pairs, gone = new_pairs(self.version, self.promoted)
        self.base = fingerprint_of(self.run.family, "generator")
        self.name = candidate_name(self.version.id, self.base, self.run)
        self.folder = self.models / CANDIDATES / self.name
        decided = read_json(self.folder / DECISION)
        if decided is not None:
            return self._told("tried before", f"{decided['decision']}: {decided['reason']}")
        if not (self.folder / STARTED).exists():
            due, reason = self._due(gone)
            if not due:
                return self._told("not due", reason)
            about = {
                "candidate": self.name,
                "version": self.version.id,
                "started": self.clock().isoformat(),
                "because": reason,
                "new_pairs": self.new_pairs,
                "pairs": len(self.version.rows),
            }
            write_whole(self.folder / STARTED, about)
            self.out.send()
        return self._try_out()

    def _due(self, gone: str) -> tuple[bool, str]:
        """Whether to train, and why (not)."""
        rule, promoted = self.run.retrain, self.promoted
        if promoted is None:
            return True, "no adapter is promoted yet"
        if promoted.base != self.base:
            return True, f"the base has changed since {promoted.candidate} was promoted"
        told = f"{self.new_pairs} pairs are new since {promoted.candidate}{gone}"
        if self.new_pairs >= rule.min_new_pairs:
            return True, f"{told}, at least {rule.min_new_pairs}"
        age = self.clock() - datetime.fromisoformat(promoted.promoted)
        days = f"{age / timedelta(days=1):.1f} days old"
        limit = f"{rule.max_age_days:g}"
        if age > timedelta(days=rule.max_age_days) and self.new_pairs:
            return True, f"{told}, and it is {days}, more than {limit}"
        return False, (
            f"{told}, fewer than {rule.min_new_pairs}, and it is {days} "
            f"(trained on fewer after {limit})"
        )

    def _try_out(self) -> RetrainOutcome:
        """Train, evaluate, compare, decide; each goes on where it was stopped."""
        run, folder = self.run, self.folder
        job = run.train_run(self.version.id, self._job(self.name, "train"))
        trained = self.steps.train(job, self.watch)
        own = run.evaluate_run(trained.adapter, self._job(self.name, "evaluate"))
        self.steps.evaluate(own, self.watch)
        rival = self.promoted
        against = None
        if rival is not None and rival.base == self.base:
            against = self._rival(rival)
        name = rival.candidate if rival is not None and against is not None else "base"
        found = compare(local(own.out, *RECORDS), against, name, run.retrain, run.evaluate)
        promote, reason = decide(found, run.retrain)
        decision: dict[str, Any] = {
            "decision": "promoted" if promote else "kept",
            "reason": reason,
            "decided": self.clock().isoformat(),
            "comparison": asdict(found),
            "rule": run.retrain.model_dump(mode="json"),
            "adapter": f"{CANDIDATES}/{self.name}/train/adapter",
            "base": self.base,
            "version": self.version.id,
            "before": rival.candidate if rival is not None else None,
            "settled": not promote,
        }
        write_whole(folder / DECISION, decision)
        self.out.send()
        _settle(self.models)
        self.promoted = read_promoted(self.models)
        return self._told("promoted" if promote else "kept", reason, found)

    def _rival(self, rival: Promoted) -> Path:
        """The folder of the promoted adapter's evaluation by tonight's settings: its own when
        these have not changed, else one that is made now."""
        adapter = self.out.at(rival.adapter)
        before = self.run.evaluate_run(adapter, self._job(rival.candidate, "evaluate"))
        if evaluation.finished(before) is not None:
            return local(before.out, *RECORDS)
        again = self.run.evaluate_run(adapter, self._job(self.name, "against"))
        self.steps.evaluate(again, self.watch)
        return local(again.out, *RECORDS)

    def _job(self, candidate: str, name: str) -> str:
        """The `out` of a candidate's job."""
        return self.out.at(f"{CANDIDATES}/{candidate}/{name}")

    def _told(
        self, decision: Decision, reason: str, found: Comparison | None = None
    ) -> RetrainOutcome:
        inside = self.promoted
        return RetrainOutcome(
            out=self.run.out,
            version=self.version.id,
            decision=decision,
            reason=reason,
            candidate=None if decision == "not due" else self.name,
            promoted=inside.candidate if inside is not None else None,
            adapter=self.out.at(inside.adapter) if inside is not None else None,
            new_pairs=self.new_pairs,
            comparison=found,
            build=self.built.as_dict(),
        )


def candidate_name(version: str, base: str, run: RetrainRun) -> str:
    """Of what decides the weights: the data, the base, the settings of the training."""
    settings = {"train": run.train.model_dump(mode="json"), "base": base}
    return f"{version}-{config_digest(settings)[:8]}"


def new_pairs(version: DatasetVersion, promoted: Promoted | None) -> tuple[int, str]:
    """How many pairs the promoted adapter's dataset version does not have; and a remark where
    that version is gone, so that all count as new."""
    if promoted is None:
        return len(version.rows), ""
    if not version.store.files.exists(f"versions/{promoted.version}/manifest.json"):
        return len(version.rows), f" (its dataset version {promoted.version} is gone: all count)"
    known = open_version(version.store, promoted.version).ids()
    return len(version.ids() - known), ""


def _settle(models: Path) -> None:
    """Let the pointer follow a decision that was stored just before a stop."""
    for file in sorted((models / CANDIDATES).glob(f"*/{DECISION}")):
        decided = read_json(file)
        if decided is None or decided["settled"]:
            continue
        promoted = Promoted(
            candidate=file.parent.name,
            adapter=decided["adapter"],
            version=decided["version"],
            base=decided["base"],
            promoted=decided["decided"],
            before=decided["before"],
        )
        write_promoted(models, promoted)
        write_whole(file, {**decided, "settled": True})
