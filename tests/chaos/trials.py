"""One trial: start the command, let a fault strike, run the same command until it ends, compare."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .faults import Strike
from .jobs import Build, Job, State, files_below
from .processes import Running
from .reading import Reader

ROUNDS = 6
"""Starts of the same command after which it should have ended well."""


@dataclass
class Reference:
    """What the undisturbed command does."""

    state: State
    calls: list[str]
    """Paths of the calls that change files, in order."""
    seconds: float
    files: int
    pages: int
    """Of 4 KiB, that all files below the folder take then."""


@dataclass
class Outcome:
    """What became of a trial."""

    job: str
    number: int
    scenario: str
    kind: str
    faults: list[str] = field(default_factory=list)
    """Those that struck."""
    kinds: list[str] = field(default_factory=list)
    missed: int = 0
    """Faults that came when the command had ended."""
    lost: list[str] = field(default_factory=list)
    """What differs from the undisturbed run, or why it did not end well."""
    twice: list[str] = field(default_factory=list)
    """Partitions computed again although they were finished."""
    half_visible: list[str] = field(default_factory=list)
    done_again: int = 0
    """Partitions that were being computed when the fault struck, and so were begun again."""
    looks: int = 0
    advice: list[str] = field(default_factory=list)
    """What messages said to do, and was done."""
    moments: list[list[str]] = field(default_factory=list)
    """Files that were there when each fault had struck."""
    seconds: float = 0.0

    @property
    def whole(self) -> bool:
        """Nothing is wrong."""
        return not (self.lost or self.twice or self.half_visible)


class Log:
    """What the commands of a trial have noted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.unlink(missing_ok=True)

    def environment(self, folder: Path) -> dict[str, str]:
        return {"CHAOS_LOG": str(self.path), "CHAOS_FOLDER": str(folder)}

    def lines(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text("utf-8").splitlines()]

    def computed(self) -> list[str]:
        """Keys in the order in which their computation began."""
        return [one["key"] for one in self.lines() if "computes" in one]


def reference(job: Job, scenario: str) -> Reference:
    """The undisturbed run, done twice: it must be the same both times, or nothing can be said."""
    states, seconds = [], []
    log = Log(job.work / "log")
    for _ in range(2):
        log = Log(job.work / "log")
        job.lay(scenario)
        before = sum(1 for _ in files_below(job.out))
        started = time.monotonic()
        environment = {**log.environment(job.out), "CHAOS_CALLS": "1"}
        running = job.launcher.start(job.arguments(scenario), job.work, environment)
        if running.wait() != 0:
            raise AssertionError(f"undisturbed {job.name} failed:\n{running.said()}")
        seconds.append(time.monotonic() - started)
        states.append(job.state())
    wrong = differences(states[1], states[0])
    if wrong:
        raise AssertionError(f"two undisturbed runs of {job.name} differ: {wrong[:5]}")
    calls = [one["path"] for one in log.lines() if "call" in one]
    files = sum(1 for _ in files_below(job.out)) - before
    pages = sum(-(-path.stat().st_size // 4096) for _, path in files_below(job.out))
    return Reference(states[0], calls, min(seconds), files, pages)


def killed(
    job: Job,
    scenario: str,
    wanted: Reference,
    strikes: Sequence[Strike],
    number: int,
    *,
    fresh: bool = False,
) -> Outcome:
    """A trial with kills: the same command each time, to its end after the last of them."""
    outcome = Outcome(job.name, number, scenario, "kill")
    started = time.monotonic()
    job.lay(scenario)
    base = job.state()
    log = Log(job.work / "log")
    watch = Reader(job.out) if isinstance(job, Build) else nullcontext()
    with watch as reader:
        finished = job.finished_units()
        for strike in strikes:
            seen = len(log.computed())
            environment = {**log.environment(job.out), **strike.environment()}
            running = job.launcher.start(
                job.arguments(scenario), job.work, environment, fresh=fresh
            )
            strike.strike(job, running, wanted.seconds)
            note_twice(outcome, log, seen, finished)
            if running.wait() != -signal.SIGKILL:
                outcome.missed += 1
                if running.wait() != 0:
                    outcome.lost.append(f"exit {running.wait()}: {running.said()[-800:]}")
                break
            outcome.faults.append(str(strike))
            outcome.kinds.append(strike.name)
            outcome.moments.append(sorted(name for name, _ in files_below(job.out)))
            outcome.half_visible += partly(job, base, wanted.state)
            finished = job.finished_units()
        finish(job, scenario, outcome, log, fresh=fresh)
    if reader is not None:
        outcome.looks = reader.looks
        outcome.half_visible += reader.wrong[:5]
    outcome.lost += differences(job.state(), wanted.state)[:5]
    counts = Counter(log.computed())
    outcome.done_again = sum(count - 1 for count in counts.values())
    outcome.seconds = round(time.monotonic() - started, 2)
    return outcome


def finish(
    job: Job,
    scenario: str,
    outcome: Outcome,
    log: Log,
    *,
    arguments: Sequence[str] | None = None,
    fresh: bool = False,
    **more: str,
) -> Running | None:
    """The same command until it ends well, doing what its messages say in between. `more`: its
    environment."""
    arguments = arguments or job.arguments(scenario)
    for _ in range(ROUNDS):
        seen, finished = len(log.computed()), job.finished_units()
        environment = {**log.environment(job.out), **more}
        running = job.launcher.start(arguments, job.work, environment, fresh=fresh)
        code = running.wait()
        note_twice(outcome, log, seen, finished)
        if code == 0:
            return running
        if code < 0 or not follow(job, running.said(), outcome):
            outcome.lost.append(f"exit {code}, no way on: {running.said()[-800:]}")
            return None
    outcome.lost.append(f"not done after {ROUNDS} starts: {outcome.advice}")
    return None


def note_twice(outcome: Outcome, log: Log, seen: int, finished: frozenset[str]) -> None:
    """Which computations since line `seen` were of partitions that were finished, or done twice."""
    computed = log.computed()[seen:]
    outcome.twice += [f"finished before: {key}" for key in computed if key in finished]
    again = [key for key, count in Counter(computed).items() if count > 1]
    outcome.twice += [f"twice in one run: {key}" for key in again]


def partly(job: Job, base: State, wanted: State) -> list[str]:
    """Files that are visible after a kill and are neither as before nor as they must become."""
    if not isinstance(job, Build):
        return []
    return [
        f"{name} after a kill"
        for name, digest in job.state().items()
        if digest not in (base.get(name), wanted.get(name))
    ]


def differences(found: State, wanted: State) -> list[str]:
    """What is not as in the undisturbed run."""
    told = []
    for name in sorted(found.keys() | wanted.keys()):
        if name not in found:
            told.append(f"{name}: missing")
        elif name not in wanted:
            told.append(f"{name}: too much")
        elif found[name] != wanted[name]:
            told.append(f"{name}: differs")
    return told


def follow(job: Job, said: str, outcome: Outcome) -> bool:
    """Do what a message says to do; False when it says nothing of use."""
    if re.search(r"[Rr]un\s+`focusdpo\s+doctor\s+--root\s+\S+\s+--repair`", said):
        outcome.advice.append("doctor --repair")
        return doctor(job, repair=True)[0]
    found = re.search(r"[Rr]emove\s+(?:the\s+folder\s+)?(/\S+)\s+and\s", said) or re.search(
        r"(/[^\s:]+/versions/[^\s:/]+)[^\s:]*: .*remove the (?:folder|version)", said
    )
    if found and Path(found[1]).is_relative_to(job.work):
        outcome.advice.append(f"remove {Path(found[1]).relative_to(job.now)}")
        path = Path(found[1])
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return True
    found = re.search(r"(/[^\s:]+): damaged .*; write (\{.*\}) into it", said)
    if found:
        outcome.advice.append("write dataset.json")
        Path(found[1]).write_text(found[2] + "\n")
        return True
    if re.search(r"[Rr]un the same command again", said):
        outcome.advice.append("the same command again")
        return True
    return False


def doctor(job: Job, *, repair: bool = False) -> tuple[bool, str]:
    """What `focusdpo doctor` says of the dataset: whether it is whole (or was mended), and how it
    puts it."""
    more = ["--repair"] if repair else []
    running = job.launcher.start(
        ["doctor", "--root", job.address, "--json", *more], job.work, {}, fresh=False
    )
    code = running.wait()
    said = running.said()
    try:
        told = json.loads(running.stdout.read_text("utf-8").splitlines()[-1])
    except (ValueError, IndexError):
        return False, f"exit {code}: {said}"
    if "error" in told:
        return False, str(told["error"])
    checks = {one["name"]: one for one in told["checks"]}
    return bool(checks["dataset"]["ok"]), str(checks["dataset"]["told"])
