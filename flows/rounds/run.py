"""The job rounds: build, train, evaluate; then build with that adapter, and so on.

    round-1/ round-2/ ...   train/ and evaluate/ as those jobs leave them, and
        round.json          last: the round's dataset version, adapter and table

The rounds share one dataset root, in which each has a version of its own. Every round's adapter is
trained from the base: what a round has over the one before are its pairs, painted by that adapter.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import TypeAdapter

from focusdpo.data_schemas.errors import UserError, counted
from focusdpo.data_schemas.runs import EvalRow, Watch, quiet
from focusdpo.evaluation.comparison import by_model
from focusdpo.evaluation.folder import read_object, write_json
from focusdpo.evaluation.protocols import ADAPTER, BASE, DIFFERENCE
from focusdpo.flows.build.run import Build
from focusdpo.flows.build.sources import require_folder
from focusdpo.flows.config import RoundsRun
from focusdpo.flows.evaluate.run import Evaluate
from focusdpo.flows.jobs import Exhibit, Job, Steps, Table, Text
from focusdpo.flows.settings import save_config
from focusdpo.flows.train.run import Train
from focusdpo.store.keys import config_digest

DONE = "round.json"
SHOWN = ("failed", "identity", "leakage_margin", "confusion", "duplicate", "copy_paste")
"""Metrics of the table of rounds."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """What a round came to."""

    key: str
    """Digest of its settings and of the rounds before."""
    version: str
    """The dataset version that it learned from."""
    pairs: int
    painted_with: str | None
    """The adapter of the round before; None: the base."""
    adapter: str
    rows: list[EvalRow]
    """Its evaluation's table."""


@dataclass(frozen=True, kw_only=True)
class RoundsOutcome:
    """What all rounds came to."""

    out: str
    rounds: list[Round]
    made: int
    """Rounds that were made now."""
    wall_seconds: float

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {"command": "rounds", **asdict(self)}


class Rounds(Job[RoundsRun, RoundsOutcome]):
    """Build, train and evaluate by turns, each round's pairs painted by the adapter before."""

    name = "rounds"
    config = RoundsRun
    needs_gpu = False
    """Its jobs take the GPU's slot one after another: held here, they would wait for it."""

    @property
    def folder(self) -> str:
        return self.run.out

    def require_inputs(self) -> None:
        if self.run.subjects is not None:
            require_folder(self.run.subjects)

    def finished(self) -> bool:
        return False  # the rounds say

    def title(self, result: RoundsOutcome | None = None) -> str:
        return f"{self.run.out}: {counted(self.run.rounds.count, 'round')}"

    def perform(self, steps: Steps, watch: Watch = quiet) -> RoundsOutcome:
        """Round after round; those that are there are passed over. UserError when another process
        does the same in this folder, and what the jobs raise."""
        started = time.perf_counter()
        out = Path(self.run.out)
        out.mkdir(parents=True, exist_ok=True)
        rounds: list[Round] = []
        made = 0
        try:
            with FileLock(out / ".rounds.lock", timeout=0):
                save_config(self.run, out / "config.yaml")
                for number in range(1, self.run.rounds.count + 1):
                    folder = out / f"round-{number}"
                    key = self._key(rounds)
                    there = _read(folder, key)
                    made += there is None
                    rounds.append(there or self._make(folder, key, rounds, steps, watch))
        except Timeout as error:
            raise UserError(
                f"{out}: another process makes rounds here; wait for it, or choose another --out"
            ) from error
        seconds = round(time.perf_counter() - started, 3)
        return RoundsOutcome(out=str(out), rounds=rounds, made=made, wall_seconds=seconds)

    def _key(self, before: Sequence[Round]) -> str:
        where = {"out", "executor", "num_processes"}
        settings = self.run.model_dump(mode="json", exclude={"rounds", *where})
        return config_digest({"settings": settings, "before": [earlier.key for earlier in before]})

    def _make(
        self, folder: Path, key: str, before: Sequence[Round], steps: Steps, watch: Watch
    ) -> Round:
        run = self.run
        adapter = before[-1].adapter if before else None
        built = steps.job(Build(run.build_round(adapter)), watch)
        training = run.train_run(built.version, f"{folder}/train")
        trained = steps.job(Train(training), watch)
        first = str(folder.parent / "round-1" / "evaluate") if before else None
        evaluation = run.evaluate_run(trained.adapter, f"{folder}/evaluate", base_from=first)
        evaluated = steps.job(Evaluate(evaluation), watch)
        done = Round(
            key=key,
            version=built.version,
            pairs=trained.pairs,
            painted_with=adapter,
            adapter=trained.adapter,
            rows=evaluated.rows,
        )
        write_json(folder / DONE, asdict(done))
        return done

    def changed(self, result: RoundsOutcome) -> bool:
        return result.made > 0

    def exhibits(self, result: RoundsOutcome) -> Iterator[Exhibit]:
        yield Text("rounds", "what the rounds came to", summary(result))
        yield Table("rounds-table", "each round against the base", table(result.rounds))


def _read(folder: Path, key: str) -> Round | None:
    """A round that is done; None for one that is not. UserError for one of other settings."""
    file = folder / DONE
    if not file.is_file():
        return None
    about = read_object(file, f"remove {folder} and run again")
    if about.get("key") != key:
        raise UserError(
            f"{folder}: this round was made with other settings; choose another --out, or remove "
            "it and the rounds after it"
        )
    return TypeAdapter(Round).validate_python(about)


def table(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """A row per round and metric, over all scenes: base, adapter and their paired difference."""
    rows = []
    for number, done in enumerate(rounds, 1):
        models = by_model(done.rows)
        for metric in SHOWN:
            figures = models.get((metric, "all"))
            if figures is None or DIFFERENCE not in figures:
                continue
            gap = figures[DIFFERENCE]
            rows.append(
                {
                    "round": number,
                    "metric": metric,
                    "base": round(figures[BASE].mean, 4),
                    "adapter": round(figures[ADAPTER].mean, 4),
                    "difference": round(gap.mean, 4),
                    "low": round(gap.low, 4),
                    "high": round(gap.high, 4),
                    "scenes": gap.scenes,
                    "pairs": done.pairs,
                    "version": done.version,
                }
            )
    return rows


def summary(result: RoundsOutcome) -> str:
    """The rounds as Markdown."""
    lines = ["| round | pairs | metric | base | adapter | difference |", "| --- |" + " --- |" * 5]
    lines += [
        f"| {row['round']} | {row['pairs']} | {row['metric']} | {row['base']:.4f} | "
        f"{row['adapter']:.4f} | {row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}] |"
        for row in table(result.rounds)
    ]
    return "# Rounds\n\n" + "\n".join(lines) + "\n"
