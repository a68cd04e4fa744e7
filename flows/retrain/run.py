"""The job retrain: build, decide whether to train, train, evaluate, promote or keep.

Every step can be stopped at any point: build, train and evaluate go on from what they left, and
what lies in a candidate's folder says how far it came (promotion.py). The same call again
does what is left.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.runs import Watch, quiet
from focusdpo.flows.build.run import Build
from focusdpo.flows.build.sources import require_folder
from focusdpo.flows.config import RetrainRun
from focusdpo.flows.evaluate.run import Evaluate
from focusdpo.flows.jobs import KEPT, PROMOTED, Event, Exhibit, Job, Steps, Table, Text
from focusdpo.flows.retrain.promotion import (
    CANDIDATES,
    DECISION,
    RECORDS,
    STARTED,
    Comparison,
    Promoted,
    compare,
    decide,
    history,
    read_promoted,
    read_record,
    write_promoted,
    write_record,
)
from focusdpo.flows.settings import save_config
from focusdpo.flows.train.run import Train
from focusdpo.flows.wiring import fingerprint_of
from focusdpo.store.keys import config_digest
from focusdpo.store.outputs import Output, local, opened
from focusdpo.store.versions import DatasetVersion, open_version

log = logging.getLogger(__name__)

Clock = Callable[[], datetime]
"""What time it is, in UTC: tests pass one that runs faster."""

SHOWN = 50
"""Candidates in the table of the history."""

Decision = Literal["promoted", "kept", "not due", "tried before"]


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


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


class Retrain(Job[RetrainRun, RetrainOutcome]):
    """New subjects -> a better adapter in `run.out`, or the reason why the old one stays.

    Build, training and evaluation are jobs of their own, with folders or addresses below `out`.
    """

    name = "retrain"
    config = RetrainRun
    needs_gpu = False
    """Its jobs take the GPU's slot one after another: held here, they would wait for it."""

    def __init__(self, run: RetrainRun, clock: Clock = now) -> None:
        super().__init__(run)
        self.clock = clock

    @property
    def folder(self) -> str:
        return self.run.out

    def require_inputs(self) -> None:
        if self.run.subjects is not None:
            require_folder(self.run.subjects)

    def finished(self) -> bool:
        return False  # the build says whether anything is new

    def title(self, result: RetrainOutcome | None = None) -> str:
        if result is None:
            return f"{self.run.out} from {self.run.dataset_root}"
        return f"{self.run.out}: version {result.version}, {result.decision}"

    def perform(self, steps: Steps, watch: Watch = quiet) -> RetrainOutcome:
        """Once through: build, then train when that is due, then promote what is better.

        UserError when another process does the same in this folder, and what the steps raise.
        """
        started = time.perf_counter()
        with opened(self.run.out, "a retraining") as out:
            out.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(out.folder / ".retrain.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout as error:
                raise UserError(
                    f"{self.run.out}: another process retrains here; wait for it, or choose "
                    "another --out"
                ) from error
            with lock:
                outcome = _Round(self.run, out, steps, watch, self.clock).complete()
        seconds = round(time.perf_counter() - started, 3)
        log.info("%s: %s: %s", self.run.out, outcome.decision, outcome.reason)
        return replace(outcome, wall_seconds=seconds)

    def changed(self, result: RetrainOutcome) -> bool:
        return result.decision in ("promoted", "kept") or result.build["new"]

    def exhibits(self, result: RetrainOutcome) -> Iterator[Exhibit]:
        yield Text("retrain", result.decision, summary(result))
        rows = [_history_row(decided) for decided in history(local(self.run.out))[-SHOWN:]]
        if rows:
            yield Table("retrain-history", "candidates, newest first", rows[::-1])

    def events(self, result: RetrainOutcome) -> Iterator[Event]:
        if result.decision not in ("promoted", "kept"):
            return
        payload: dict[str, Any] = {
            name: getattr(result, name)
            for name in ("out", "version", "candidate", "promoted", "adapter", "reason")
        }
        if result.comparison is not None:
            payload["comparison"] = asdict(result.comparison)
        yield Event(
            PROMOTED if result.decision == "promoted" else KEPT,
            f"focusdpo.adapter.{result.candidate}",
            result.out,
            payload,
            f"{result.candidate} {result.decision}: {result.reason}",
        )


class _Round:
    """One call of `retrain`."""

    def __init__(
        self, run: RetrainRun, out: Output, steps: Steps, watch: Watch, clock: Clock
    ) -> None:
        self.run, self.out, self.steps, self.watch, self.clock = run, out, steps, watch, clock
        self.models = out.folder

    def complete(self) -> RetrainOutcome:
        """Build, decide, train, evaluate, promote or keep."""
        _settle(self.models)
        save_config(self.run, self.models / "retrain.yaml")
        self.built = self.steps.job(Build(self.run.build_run()), self.watch)
        self.promoted = read_promoted(self.models)
        self.version = open_version(self.run.dataset_root, self.built.version)
        self.new_pairs, gone = new_pairs(self.version, self.promoted)
        self.base = fingerprint_of(self.run.family, "generator")
        decides = {"train": self.run.train.model_dump(mode="json"), "base": self.base}
        self.name = f"{self.version.id}-{config_digest(decides)[:8]}"
        self.folder = self.models / CANDIDATES / self.name
        decided = read_record(self.folder / DECISION)
        if decided is not None:
            return self._outcome("tried before", f"{decided['decision']}: {decided['reason']}")
        if not (self.folder / STARTED).exists():
            due, reason = self._due(gone)
            if not due:
                return self._outcome("not due", reason)
            about = {
                "candidate": self.name,
                "version": self.version.id,
                "started": self.clock().isoformat(),
                "because": reason,
                "new_pairs": self.new_pairs,
                "pairs": len(self.version.rows),
            }
            write_record(self.folder / STARTED, about)
            self.out.send()
        return self._try_out()

    def _due(self, gone: str) -> tuple[bool, str]:
        """Whether to train, and why (not)."""
        rule, promoted = self.run.retrain, self.promoted
        if promoted is None:
            return True, "no adapter is promoted yet"
        if promoted.base != self.base:
            return True, f"the base has changed since {promoted.candidate} was promoted"
        news = f"{self.new_pairs} pairs are new since {promoted.candidate}{gone}"
        if self.new_pairs >= rule.min_new_pairs:
            return True, f"{news}, at least {rule.min_new_pairs}"
        age = self.clock() - datetime.fromisoformat(promoted.promoted)
        days = f"{age / timedelta(days=1):.1f} days old"
        limit = f"{rule.max_age_days:g}"
        if age > timedelta(days=rule.max_age_days) and self.new_pairs:
            return True, f"{news}, and it is {days}, more than {limit}"
        return False, (
            f"{news}, fewer than {rule.min_new_pairs}, and it is {days} "
            f"(trained on fewer after {limit})"
        )

    def _try_out(self) -> RetrainOutcome:
        """Train, evaluate, compare, decide; each goes on where it was stopped."""
        run, folder = self.run, self.folder
        training = run.train_run(self.version.id, self._place(self.name, "train"))
        trained = self.steps.job(Train(training), self.watch)
        evaluation = run.evaluate_run(trained.adapter, self._place(self.name, "evaluate"))
        self.steps.job(Evaluate(evaluation), self.watch)
        rival = self.promoted
        against = None
        if rival is not None and rival.base == self.base:
            against = self._rival(rival, evaluation.out)
        name = rival.candidate if rival is not None and against is not None else "base"
        comparison = compare(
            local(evaluation.out, *RECORDS), against, name, run.retrain, run.evaluate
        )
        promote, reason = decide(comparison, run.retrain)
        decision: dict[str, Any] = {
            "decision": "promoted" if promote else "kept",
            "reason": reason,
            "decided": self.clock().isoformat(),
            "comparison": asdict(comparison),
            "rule": run.retrain.model_dump(mode="json"),
            "adapter": f"{CANDIDATES}/{self.name}/train/adapter",
            "base": self.base,
            "version": self.version.id,
            "before": rival.candidate if rival is not None else None,
            "settled": not promote,
        }
        write_record(folder / DECISION, decision)
        self.out.send()
        _settle(self.models)
        self.promoted = read_promoted(self.models)
        return self._outcome("promoted" if promote else "kept", reason, comparison)

    def _rival(self, rival: Promoted, base_folder: str) -> Path:
        """The folder of the promoted adapter's evaluation by tonight's settings: its own when
        these have not changed, else one that is made now, beside the pictures of the base in
        tonight's `base_folder`."""
        adapter = self.out.at(rival.adapter)
        before = self.run.evaluate_run(adapter, self._place(rival.candidate, "evaluate"))
        if Evaluate(before).finished():
            return local(before.out, *RECORDS)
        place = self._place(self.name, "against")
        again = self.run.evaluate_run(adapter, place, base_from=base_folder)
        self.steps.job(Evaluate(again), self.watch)
        return local(again.out, *RECORDS)

    def _place(self, candidate: str, name: str) -> str:
        """The `out` of a candidate's job."""
        return self.out.at(f"{CANDIDATES}/{candidate}/{name}")

    def _outcome(
        self, decision: Decision, reason: str, comparison: Comparison | None = None
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
            comparison=comparison,
            build=self.built.as_dict(),
        )


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
        decided = read_record(file)
        if decided is None or decided["settled"]:
            continue
        same = {name: decided[name] for name in ("adapter", "version", "base", "before")}
        promoted = Promoted(candidate=file.parent.name, promoted=decided["decided"], **same)
        write_promoted(models, promoted)
        write_record(file, {**decided, "settled": True})


_COMPARED = ("metric", "difference", "low", "high", "against")


def _history_row(decided: Mapping[str, Any]) -> dict[str, Any]:
    """A candidate as a line of the history."""
    comparison = decided.get("comparison") or {}
    return {
        "candidate": decided.get("candidate"),
        "decision": decided["decision"],
        "dataset": decided.get("version"),
        "new pairs": decided.get("new_pairs"),
        **{name: comparison.get(name) for name in _COMPARED},
        "reason": decided.get("reason") or decided.get("because"),
        "when": decided.get("decided") or decided.get("started"),
    }


def summary(outcome: RetrainOutcome) -> str:
    """A round as Markdown."""
    return (
        f"# {outcome.decision}\n\n{outcome.reason}.\n\n"
        f"Dataset `{outcome.version}`, {outcome.new_pairs} new pairs. In use: "
        f"`{outcome.adapter or 'the base alone'}`"
    )
