"""Disturb the commands and tell what was lost: `python -m tests.chaos --kills 200`.

A trial's faults depend on --seed and its number alone: --only repeats one. What cannot be repeated
is the moment as such; the JSON tells which files were there by then.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from .faults import draw_strikes
from .jobs import Build, Evaluate, Job, Train
from .summary import table, write
from .trials import Outcome, killed, reference


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="of build-dataset")
    parser.add_argument("--train-kills", type=int, default=0)
    parser.add_argument("--evaluate-kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one trial, by its number")
    parser.add_argument("--fresh", type=int, default=20, help="every so many trials, interpreters")
    parser.add_argument("--work", type=Path, help="an empty folder; default: a temporary one")
    parser.add_argument("--json", type=Path, default=Path("chaos.json"), help="all that was found")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no trial after so many")
    return parser.parse_args(given)


class Session:
    """All trials of a call."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options, self.work = options, work
        self.outcomes: list[Outcome] = []
        self.end = time.monotonic() + 60 * options.minutes

    def about(self) -> dict[str, object]:
        words = {name: str(value) for name, value in vars(self.options).items()}
        return {"options": words, "cpus": os.cpu_count()}

    def keep(self, outcome: Outcome) -> None:
        """Tell of a trial and write all so far."""
        self.outcomes.append(outcome)
        faults = ", then ".join(outcome.faults) or "missed"
        state = "ok" if outcome.whole else "WRONG"
        say(f"{outcome.job} {outcome.number} {outcome.scenario}: {faults}: {state}")
        for line in [*outcome.lost, *outcome.twice, *outcome.half_visible]:
            say(f"    {line}")
        write(self.options.json, self.outcomes, self.about())

    def kill(self, job: Job, wanted: int) -> None:
        """Trials until so many kills have struck."""
        if not wanted:
            return
        references = {scenario: reference(job, scenario) for scenario in job.scenarios}
        for scenario, found in references.items():
            say(
                f"{job.name} {scenario}: undisturbed {found.seconds:.1f} s, {len(found.calls)} "
                f"calls that change files, {len(found.state)} files compared"
            )
        number, struck = self.options.only or 0, 0
        while struck < wanted and time.monotonic() < self.end:
            draw = random.Random(f"{self.options.seed}/{job.name}/{number}")
            scenario = draw.choice(job.scenarios)
            found = references[scenario]
            strikes = draw_strikes(draw, job.name, found.calls, found.files)
            fresh = bool(self.options.fresh) and number % self.options.fresh == 1
            outcome = killed(job, scenario, found, strikes, number, fresh=fresh)
            self.keep(outcome)
            struck += len(outcome.kinds)
            number += 1
            if self.options.only is not None:
                break

    def run(self) -> None:
        """Build, and what goes on from it."""
        options = self.options
        build = Build(below(self.work, "build"))
        dataset = self.work / "dataset"
        with closing(build):
            build.grow()
            self.kill(build, options.kills)
            undisturbed(build, dataset)
        if not options.train_kills and not options.evaluate_kills:
            return
        train = Train(below(self.work, "train"), dataset)
        trained = self.work / "trained"
        with closing(train):
            self.kill(train, options.train_kills)
            undisturbed(train, trained)
        if options.evaluate_kills:
            evaluate = Evaluate(below(self.work, "evaluate"), trained / "adapter")
            with closing(evaluate):
                self.kill(evaluate, options.evaluate_kills)


def undisturbed(job: Job, target: Path) -> None:
    """The job once more, for the next one to go on from."""
    job.lay("new")
    running = job.launcher.start(job.arguments("new"), job.work, {})
    assert running.wait() == 0, running.said()
    shutil.move(job.out, target)


def below(work: Path, name: str) -> Path:
    """A new folder."""
    (work / name).mkdir()
    return work / name


@contextlib.contextmanager
def closing(job: Job) -> Iterator[None]:
    try:
        yield
    finally:
        job.launcher.close()


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(given: list[str] | None = None) -> int:
    """All that was asked for; 0 when nothing was lost."""
    options = arguments(given)
    with contextlib.ExitStack() as stack:
        work = options.work
        if work is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        work = work.resolve()
        work.mkdir(parents=True, exist_ok=True)
        session = Session(options, work)
        session.run()
    say("\n" + table(session.outcomes))
    return 0 if all(one.whole for one in session.outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
