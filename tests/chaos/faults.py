"""Moments at which a command is killed: drawn from a seed, found without any help of the product.

`Call`: before the n-th call that changes files, exactly. `Files`: some milliseconds after the n-th
file appeared, seen from outside. `Time`: after a share of the time that an undisturbed run takes.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from .jobs import Job, files_below
from .processes import PATIENCE, Running

LOOK_SECONDS = 0.008

NAMED = {
    "build-dataset": {
        **{
            f"first artefact of {stage}": rf"stages/{stage}/.*\.tar"
            for stage in (
                *("compose", "generate", "segment", "describe", "disrupt", "score", "pair"),
                "subjects",
            )
        },
        "a lease is taken": r"\.leases/.*\.json",
        "a shard is written": r"shards/.*\.tar",
        "the version's index": r"versions/[^/]*/index\.parquet",
        "the version's manifest": r"versions/[^/]*/manifest\.json",
        "the version's twin": r"versions/[^/]*/twin\.tar",
        "LATEST": r"LATEST",
        "the version's request": r"versions/.*/requests/.*",
    },
    "train": {
        "a checkpoint is begun": r"checkpoints/\.tmp-step-\d+",
        "a checkpoint's state": r"checkpoints/\.tmp-step-\d+/state\.safetensors",
        "a checkpoint's words": r"checkpoints/\.tmp-step-\d+/checkpoint\.json",
        "a checkpoint appears": r"checkpoints/step-\d+",
        "an old checkpoint goes": r"checkpoints/step-\d+",
        "a part of the metrics": r"metrics/steps.*",
        "the adapter": r"adapter/.*",
        "the summary": r"run\.json",
    },
    "evaluate": {
        "a picture": r"images/.*",
        "the table": r"rows\.json",
        "the summary": r"run\.json",
    },
    "retrain": {
        "why it trains": r"candidates/.*/started\.json.*",
        "the decision": r"candidates/.*/decision\.json.*",
        "the pointer": r"promoted\.json.*",
    },
}
"""Job -> moment -> the paths, below what the command fills, of the call that makes it."""


@dataclass(frozen=True)
class Call:
    """Before the n-th call that changes files (or just after it: before the next one)."""

    number: int
    name: str

    def environment(self) -> dict[str, str]:
        return {"CHAOS_KILL_AT": str(self.number)}

    def strike(self, job: Job, running: Running, usual: float) -> None:
        running.wait()

    def __str__(self) -> str:
        return f"{self.name} (call {self.number})"


@dataclass(frozen=True)
class Files:
    """Some milliseconds after the n-th new file was seen."""

    number: int
    delay: float
    group: bool
    name: str = "files"

    def environment(self) -> dict[str, str]:
        return {}

    def strike(self, job: Job, running: Running, usual: float) -> None:
        before = sum(1 for _ in files_below(job.out))
        end = time.monotonic() + PATIENCE
        while running.ended(LOOK_SECONDS) is None and time.monotonic() < end:
            if sum(1 for _ in files_below(job.out)) >= before + self.number:
                running.ended(self.delay)
                running.kill(group=self.group)
                break
        running.wait()

    def __str__(self) -> str:
        return f"{self.delay * 1000:.0f} ms after file {self.number}"


@dataclass(frozen=True)
class Time:
    """After a share of the usual time."""

    share: float
    group: bool
    name: str = "time"

    def environment(self) -> dict[str, str]:
        return {}

    def strike(self, job: Job, running: Running, usual: float) -> None:
        if running.ended(self.share * usual) is None:
            running.kill(group=self.group)
        running.wait()

    def __str__(self) -> str:
        return f"after {self.share:.2f} of the usual time"


Strike = Call | Files | Time


def draw_strikes(
    random_: random.Random, job: str, calls: Sequence[str], files: int
) -> list[Strike]:
    """One to four kills, each of the command that goes on after the one before. `calls`: paths of
    the calls of an undisturbed run; `files`: how many files it makes."""
    first = _draw(random_, job, calls, files, whole=True)
    more = random_.choice((0, 0, 1, 1, 2, 3))
    return [first, *(_draw(random_, job, calls, files, whole=False) for _ in range(more))]


def _draw(
    random_: random.Random, job: str, calls: Sequence[str], files: int, *, whole: bool
) -> Strike:
    # What is left to do after a kill is less: later ones are drawn from its beginning.
    reach = 1.0 if whole else random_.random() * 0.6
    kind = random_.choice(("call", "call", "named", "named", "files", "time"))
    if kind == "named" and whole:
        return _named(random_, job, calls)
    if kind in ("call", "named"):
        return Call(random_.randint(1, max(1, int(reach * len(calls)))), "call")
    group = random_.random() < 0.5
    if kind == "files":
        delay = random_.choice((0.0, 0.001, 0.005, 0.02))
        return Files(random_.randint(1, max(1, int(reach * files))), delay, group)
    return Time(random_.random() * reach, group)


def _named(random_: random.Random, job: str, calls: Sequence[str]) -> Call:
    name, pattern = random_.choice(list(NAMED[job].items()))
    found = [at for at, path in enumerate(calls, 1) if re.fullmatch(pattern, path)]
    if not found:
        return Call(random_.randint(1, len(calls)), "call")
    at = found[0] if name.startswith("first") else random_.choice(found)
    side = random_.choice((0, 1))
    return Call(min(at + side, len(calls)), f"{('before', 'after')[side]}: {name}")
